"""Methods whose settings were searched are called tuned wherever they are shown."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from report_folders import write, write_run

from ntkmtl.bench.report import build_table, render, write_html
from ntkmtl.bench.runs import RunFileError

if TYPE_CHECKING:
    from pathlib import Path

BEST: dict[str, Any] = {
    "schema": 1,
    "sampler": "tpe",
    "seed": 0,
    "split": "val",
    "epochs": 2,
    "trials": 20,
    "diverged": 1,
    "number": 7,
    "value": -3.5,
    "start_value": 12.25,
    "parameters": {"weights.seg": 2.0, "weights.depth": 0.5},
    "method_options": {"weights": [2.0, 0.5]},
    "recipe": {},
    "wall_seconds": 200.0,
    "finished": "2026-01-01T00:00:00+00:00",
}


def folder(root: Path, **changes: Any) -> Path:
    for seed in (0, 1):
        write_run(root, "ls", seed, [50.0, 0.2])
        write_run(root, "fixed", seed, [60.0, 0.1], options={"weights": [2.0, 0.5]})
    write_run(root, "stl", 0, [50.0], task="seg")
    write_run(root, "stl", 0, [0.2], task="depth")
    write(root / "toy/fixed/tuning/best.json", {**BEST, **changes})
    # Trials are not runs: this one has the seed of one.
    write(root / "toy/fixed/tuning/study.json", {"schema": 1})
    write_run(root, "fixed/tuning/trial-0000", 0, [1.0, 1.0])
    return root


def test_every_format_says_so(tmp_path: Path) -> None:
    table = build_table(folder(tmp_path))
    assert table.row("fixed").label == "fixed (tuned, 20 trials)"
    for format in ("text", "markdown", "latex"):
        text = render(table, format)
        assert "fixed (tuned, 20 trials)" in text
        assert "best of 20 trials, of which 1 diverged" in text
        assert "ls (tuned" not in text
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [(row["method"], row["tuning_trials"]) for row in rows] == [
        ("stl", "0"),
        ("fixed", "20"),
        ("ls", "0"),
    ]
    content = json.loads(render(table, "json"))
    found = {row["method"]: row["tuning"] for row in content["rows"]}
    assert found["fixed"]["wall_seconds"] == 200.0
    assert found["ls"] is None


def test_settings_that_the_search_began_with_are_not_called_found(tmp_path: Path) -> None:
    table = build_table(folder(tmp_path, number=0, value=-50.0, start_value=-50.0))
    assert not any("do not hold" in warning for warning in table.warnings)


@pytest.mark.parametrize("start", [50.0, -50.0])
def test_settings_that_do_not_hold_for_other_seeds_are_told(tmp_path: Path, start: float) -> None:
    said = " ".join(build_table(folder(tmp_path, start_value=start)).warnings)
    assert ("The settings found for fixed do not hold for these seeds" in said) == (start < 0)
    # On the validation split both metrics are halved: 60 for 50, higher is better, and 0.1 for 0.2.
    assert ("is -35.00 %, with -3.50 % in the best trial and -50.00 %" in said) == (start < 0)


def test_the_note_is_honest_about_choice_and_cost(tmp_path: Path) -> None:
    (note,) = [note for note in build_table(folder(tmp_path)).notes if "is tuned" in note]
    for text in (
        "on the validation split: -3.50 %",
        "began with: 12.25 %",
        "seed 0 and 2 epochs (the runs have 4)",
        "took 3 min 20 s in all, which the times here leave out",
    ):
        assert text in note


def test_the_page_says_so(tmp_path: Path) -> None:
    page = write_html(folder(tmp_path)).read_text(encoding="utf-8")
    assert page.count("fixed (tuned, 20 trials)") >= 3
    assert "on the validation split" in page


@pytest.mark.parametrize(
    "changes", [{"method_options": {"weights": [1.0, 1.0]}}, {"recipe": {"learning_rate": 0.5}}]
)
def test_runs_with_other_settings_are_not_called_tuned(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    table = build_table(folder(tmp_path, **changes))
    assert table.row("fixed").label == "fixed"
    assert "fixed was tuned, and not all of its runs have the settings found." in table.warnings
    assert not any("is tuned" in note for note in table.notes)


def test_settings_of_the_recipe_count(tmp_path: Path) -> None:
    table = build_table(folder(tmp_path, recipe={"learning_rate": 0.001}))
    assert table.row("fixed").tuning is not None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"best\.json: key 'trials' must be an integer"):
        build_table(folder(tmp_path, trials="20"))
