"""The table's numbers, against numbers worked out by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from report_folders import METRICS, realistic, toy, write, write_run

from ntkmtl.bench.report import SeedMean, build_table, build_tables, render
from ntkmtl.bench.runs import RunFileError

if TYPE_CHECKING:
    from pathlib import Path


def approx(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def test_rows_stand_in_the_order_asked_for_with_stl_first(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    # compare.json asks for stl, uw, ls; ntkmtl lies there from an earlier call.
    assert [row.method for row in table.rows] == ["stl", "uw", "ls", "ntkmtl"]
    assert [row.is_baseline for row in table.rows] == [True, False, False, False]


def test_rows_without_compare_json_are_alphabetical(tmp_path: Path) -> None:
    (toy(tmp_path) / "compare.json").unlink()
    assert [row.method for row in build_table(tmp_path).rows] == ["stl", "ls", "ntkmtl", "uw"]


def test_means_and_standard_errors(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    accuracy, error = table.row("ls").estimates
    # 45 and 55: deviation sqrt(50) over sqrt(2). 0.2 and 0.3: sqrt(0.005) over sqrt(2).
    assert accuracy is not None
    assert error is not None
    assert (accuracy.mean, accuracy.stderr, accuracy.count) == (approx(50), approx(5), 2)
    assert (error.mean, error.stderr, error.count) == (approx(0.25), approx(0.05), 2)


def test_mean_ranks_leave_stl_out(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    # accuracy (higher): ntkmtl 60, ls 50, uw 40; mae (lower): uw 0.10, ntkmtl 0.24, ls 0.25.
    assert {row.method: row.mean_rank for row in table.rows} == {
        "stl": None,
        "uw": approx(2.0),
        "ls": approx(2.5),
        "ntkmtl": approx(1.5),
    }


def test_delta_m_is_taken_per_seed_against_the_mean_of_stl(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    # STL 50 and 0.2. ls seed 0: (+10 % + 0 %) / 2 = 5; seed 1: (-10 % + 50 %) / 2 = 20.
    ls = table.row("ls").delta_m
    assert ls is not None
    assert (ls.mean, ls.stderr) == (approx(12.5), approx(7.5))
    # uw, both seeds: (+20 % - 50 %) / 2.
    uw = table.row("uw").delta_m
    assert uw is not None
    assert (uw.mean, uw.stderr) == (approx(-15), approx(0))
    # ntkmtl: (-20 % + 10 %) / 2 = -5 and (-20 % + 30 %) / 2 = 5.
    ntkmtl = table.row("ntkmtl").delta_m
    assert ntkmtl is not None
    assert (ntkmtl.mean, ntkmtl.stderr) == (approx(0), approx(5))


def test_times_are_relative_to_the_mean_of_ls_and_have_a_spread(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    # ls 1 and 2 s: mean 1.5, deviation sqrt(0.5), over sqrt(2) is 0.5, over 1.5 is 1/3.
    # uw 1.2; ntkmtl 3; stl 0.75 for each of two tasks, both seeds the same.
    assert {row.method: row.relative_time for row in table.rows} == {
        "stl": SeedMean(approx(1.0), approx(0.0), 2),
        "uw": SeedMean(approx(0.8), approx(0.0), 2),
        "ls": SeedMean(approx(1.0), approx(1 / 3), 2),
        "ntkmtl": SeedMean(approx(2.0), approx(0.0), 2),
    }
    assert "1.00 ±0.33" in render(table, "text")


def test_times_of_a_busy_machine_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2], seconds=1.0, cpu_share=0.99)
    write_run(tmp_path, "ls", 1, [50.0, 0.2], seconds=30.0, cpu_share=0.3)
    write_run(tmp_path, "si", 0, [50.0, 0.2], seconds=3.0, cpu_share=0.9)
    write_run(tmp_path, "uw", 0, [50.0, 0.2], seconds=11.0, cpu_share=0.899)
    for task, share in (("seg", 0.95), ("depth", 0.5)):
        write_run(tmp_path, "stl", 0, [0.2], task=task, cpu_share=share)
    table = build_table(tmp_path)
    assert table.row("ls").relative_time == SeedMean(1.0, None, 1)
    assert table.row("si").relative_time == SeedMean(3.0, None, 1)
    assert table.row("uw").relative_time is None
    assert table.row("uw").seconds_per_epoch is None
    # One of its two networks does not count, so the sum is not known.
    assert table.row("stl").relative_time is None
    assert (
        "Times of 3 of 6 runs are left out, as the machine was busy: they had a processor core for "
        "less than 90 % of their training time." in table.notes
    )
    assert next(line for line in render(table).splitlines() if line.startswith("uw")).endswith("-")


def test_times_relative_to_a_run_on_a_busy_machine_are_not_known(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2], cpu_share=0.2)
    write_run(tmp_path, "uw", 0, [50.0, 0.2])
    table = build_table(tmp_path)
    assert table.row("uw").relative_time is None
    assert table.row("uw").seconds_per_epoch == 1.0
    assert "Time: not known relative to LS, as the machine was busy meanwhile." in table.notes


def test_facts_and_notes(tmp_path: Path) -> None:
    table = build_table(toy(tmp_path))
    facts = table.facts
    assert facts["seeds"] == [0, 1]
    assert facts["runs"] == 10
    assert facts["stl_runs"] == 4
    assert facts["reduced"] is True
    assert facts["sizes"] == {"train": 1000, "val": 100, "test": 200}
    assert facts["finished"] == "2025-01-02T12:00:00+00:00"
    # 4 stl x 1.25 s, ls 1.5 and 2.5 s, ntkmtl 2 x 3.5 s, uw 2 x 1.7 s.
    assert facts["wall_seconds"] == approx(5 + 4 + 7 + 3.4)
    assert table.warnings == ()
    text = "\n".join(table.notes)
    for part in (
        "Mean ± standard error over 2 seeds (0, 1)",
        "after the last epoch; no epoch is selected",
        "STL: trained here with the same budget",
        "among 3 multi-task methods, STL left out",
        "relative to LS (1.5 s)",
        "Reduced recipe, shorter than the problem's own: 4 epochs, batch size 8",
        "1,000 train, 100 val, 200 test samples, 12,345 parameters",
        "Wall time 19.4 s, summed over 10 runs, on cpu, A processor, 2 cores, 1 thread per run",
        "torch 2.6.0",
    ):
        assert part in text


def test_one_seed_has_no_standard_error(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 3, [50.0, 0.2])
    table = build_table(tmp_path)
    assert table.row("ls").estimates == (SeedMean(50.0, None, 1), SeedMean(0.2, None, 1))
    assert table.row("ls").mean_rank == 1.0
    assert table.notes[0].startswith("Numbers of 1 seed (3)")


def test_without_stl_delta_m_is_empty_and_a_warning_says_why(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    table = build_table(tmp_path)
    assert table.row("ls").delta_m is None
    assert table.warnings == ("There are no STL runs, so Δm is not known.",)
    assert table.facts["stl_runs"] == 0


def test_stl_of_some_tasks_only(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    write_run(tmp_path, "stl", 0, [55.0], task="seg")
    table = build_table(tmp_path)
    stl = table.row("stl")
    assert stl.estimates == (SeedMean(55.0, None, 1), None)
    assert stl.relative_time is None
    assert "There are no STL runs for mae, so Δm is not known." in table.warnings


def test_a_baseline_of_zero(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    write_run(tmp_path, "stl", 0, [55.0], task="seg")
    write_run(tmp_path, "stl", 0, [0.0], task="depth")
    table = build_table(tmp_path)
    assert table.row("ls").delta_m is None
    assert "STL is exactly 0 in mae, which Δm divides by: Δm is not known." in table.warnings


def test_a_negative_baseline(tmp_path: Path) -> None:
    # R2 of -2 under STL: -1 is better, and (-1 - -2) / -2 says -50 % of a higher-is-better metric.
    metrics = [{**METRICS[0], "name": "r2"}, METRICS[1]]
    write_run(tmp_path, "ls", 0, [-1.0, 0.2], metrics=metrics)
    write_run(tmp_path, "stl", 0, [-2.0], task="seg", metrics=metrics)
    write_run(tmp_path, "stl", 0, [0.2], task="depth", metrics=metrics)
    table = build_table(tmp_path)
    assert table.row("ls").delta_m is None
    (warning,) = table.warnings
    assert warning.startswith("STL is negative in ")
    assert "Δm is not known" in warning


@pytest.mark.parametrize(
    ("epochs", "tested", "said"),
    [
        (4, 3, "as means over the last 3 epochs"),
        (4, 10, "as means over the last 4 epochs"),
        (1, 10, "after the last epoch"),
    ],
)
def test_means_over_the_last_epochs_are_said(
    tmp_path: Path, epochs: int, tested: int, said: str
) -> None:
    recipe = {"epochs": epochs, "tested_epochs": tested}
    write_run(tmp_path, "ls", 0, [50.0, 0.2], recipe=recipe)
    assert f"on the test split {said}; no epoch is selected" in build_table(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("epochs", "tested", "warns"), [(10, 10, True), (19, 10, True), (20, 10, False), (4, 1, False)]
)
def test_a_mean_over_early_epochs_is_warned_of(
    tmp_path: Path, epochs: int, tested: int, warns: bool
) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2], recipe={"epochs": epochs, "tested_epochs": tested})
    said = [one for one in build_table(tmp_path).warnings if "are averaged in" in one]
    assert bool(said) is warns
    if warns:
        assert f"means over the last 10 of {epochs} epochs" in said[0]


def test_steps_left_out_are_said(tmp_path: Path) -> None:
    places = {
        write_run(tmp_path, "ls", 0, [50.0, 0.2]): 3,
        write_run(tmp_path, "ls", 1, [50.0, 0.2]): 1,
        write_run(tmp_path, "uw", 0, [50.0, 0.2]): 0,
        write_run(tmp_path, "uw", 1, [50.0, 0.2]): 0,
        write_run(tmp_path, "stl", 0, [50.0], task="seg"): 0,
        write_run(tmp_path, "stl", 0, [0.2], task="depth"): 2,
    }
    for place, skipped in places.items():
        result = json.loads((place / "result.json").read_text())
        write(place / "result.json", {**result, "steps": 600, "skipped_steps": skipped})
    warnings = build_table(tmp_path).warnings
    said = [text for text in warnings if "left out" in text]
    assert said == [
        "stl depth left out 2 of 600 steps, as a loss or a gradient was not finite.",
        "ls left out 4 of 1,200 steps, as a loss or a gradient was not finite.",
    ]


def test_several_metrics_per_task_come_from_the_run_of_their_task(tmp_path: Path) -> None:
    metrics = [*METRICS, {**METRICS[1], "name": "rmse", "label": "RMSE"}]
    write_run(tmp_path, "ls", 0, [50.0, 0.2, 0.4], metrics=metrics)
    write_run(tmp_path, "stl", 0, [55.0], task="seg", metrics=metrics)
    write_run(tmp_path, "stl", 0, [0.1, 0.2], task="depth", metrics=metrics)
    table = build_table(tmp_path)
    means = [e.mean for e in table.row("stl").estimates if e is not None]
    assert means == [55.0, 0.1, 0.2]
    delta = table.row("ls").delta_m
    assert delta is not None
    assert delta.mean == approx((100 * 5 / 55 + 100 + 100) / 3)


def test_without_ls_there_are_no_relative_times(tmp_path: Path) -> None:
    write_run(tmp_path, "uw", 0, [50.0, 0.2])
    table = build_table(tmp_path)
    assert table.row("uw").relative_time is None
    assert table.row("uw").seconds_per_epoch == 1.0
    assert any("LS is not among the runs" in note for note in table.notes)


def test_unfinished_runs_are_left_out_and_said(tmp_path: Path) -> None:
    toy(tmp_path)
    write_run(tmp_path, "uw", 2, None)
    place = write_run(tmp_path, "si", 0, None)
    write(place / "failure.json", {"message": "the loss is NaN"})
    table = build_table(tmp_path)
    assert "si" not in [row.method for row in table.rows]
    assert table.row("uw").seeds == (0, 1)
    (warning,) = table.warnings
    assert warning.startswith("2 runs are not complete and are left out: ")
    assert "seed-0 (failed: the loss is NaN)" in warning
    assert "seed-2 (unfinished)" in warning


def test_differing_configurations_are_said(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2], recipe={"epochs": 30})
    write_run(tmp_path, "uw", 0, [50.0, 0.2], recipe={"epochs": 60})
    write_run(tmp_path, "si", 0, [50.0, 0.2], recipe={"epochs": 60}, problem_options={"raw": True})
    write_run(tmp_path, "si", 1, [50.0, 0.2], recipe={"epochs": 60}, options={"scale": 2})
    table = build_table(tmp_path)
    assert "Runs differ in epochs: 60 in si, uw; 30 in ls." in table.warnings
    assert "Runs differ in raw: null in ls, uw; true or null in si." in table.warnings
    assert "Runs differ in seeds: 0 in ls, uw; 0, 1 in si." in table.warnings
    assert (
        "Runs differ in options of si: none in seed 0; scale 2 in seed 1."
        in table.warnings
    )  # fmt: skip


def test_stl_with_another_budget_is_not_called_the_same(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    for task, value in (("seg", 50.0), ("depth", 0.2)):
        write_run(tmp_path, "stl", 0, [value], task=task, recipe={"epochs": 1})
    table = build_table(tmp_path)
    assert any("another budget (see above)" in note for note in table.notes)
    assert "Runs differ in epochs: 4 in ls; 1 in stl." in table.warnings


def test_several_problems(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    write_run(tmp_path, "ls", 0, [60.0, 0.1], problem="other")
    assert list(build_tables(tmp_path)) == ["other", "toy"]
    assert build_table(tmp_path, "toy").problem == "toy"
    with pytest.raises(ValueError, match=r"holds 2 problems \(other, toy\)"):
        build_table(tmp_path)
    with pytest.raises(ValueError, match="no finished run of 'x'"):
        build_table(tmp_path, "x")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        build_table(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no finished multi-task run"):
        build_table(tmp_path)
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    write_run(tmp_path, "uw", 0, [0.2], metrics=METRICS[1:])
    with pytest.raises(ValueError, match="report different metrics"):
        build_table(tmp_path)


def test_two_runs_of_one_method_and_seed(tmp_path: Path) -> None:
    write_run(tmp_path, "ls", 0, [50.0, 0.2])
    write_run(tmp_path, "ls", 0, [50.0, 0.2], folder="copy")
    with pytest.raises(ValueError, match="both runs of 'ls' with seed 0"):
        build_table(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"methods": 3}', b"\xff\xfe", b"{}"])
def test_a_damaged_compare_json_is_named(tmp_path: Path, content: bytes) -> None:
    toy(tmp_path)
    (tmp_path / "compare.json").write_bytes(content)
    with pytest.raises(RunFileError, match=r"compare\.json"):
        build_table(tmp_path)


def test_tiny_numbers_are_told_apart(tmp_path: Path) -> None:
    for method, value in (("ls", 5.214e-10), ("uw", 1.239e-10), ("si", 4.2e-9)):
        write_run(tmp_path, method, 0, [50.0, value])
    text = render(build_table(tmp_path), "markdown")
    assert "**1.24e-10**" in text
    assert " 5.21e-10 " in text
    assert " 4.20e-09 " in text


def test_huge_numbers_stay_in_the_table(tmp_path: Path) -> None:
    for seed, error in ((0, 1e308), (1, 1e300)):
        write_run(tmp_path, "ls", seed, [50.0, error])
    estimate = build_table(tmp_path).row("ls").estimates[1]
    assert estimate is not None
    assert estimate.mean == pytest.approx(5e307)
    assert estimate.stderr == pytest.approx(5e307)


def test_to_dict_is_json(tmp_path: Path) -> None:
    value = build_table(realistic(tmp_path, seeds=1, steps=6, epochs=2)).to_dict()
    again = json.loads(json.dumps(value))
    assert again["problem"] == "qm9-mini"
    assert len(again["rows"]) == 12
    assert len(again["columns"]) == 11


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1.7e307, 5e-320])
def test_standard_errors_of_numbers_whose_squares_are_infinite_or_zero(scale: float) -> None:
    found = SeedMean.of([2.0 * scale, 4.0 * scale, 9.0 * scale])
    assert found.mean == pytest.approx(5.0 * scale, rel=1e-4, abs=0)
    assert found.stderr == pytest.approx(13**0.5 / 3**0.5 * scale, rel=1e-4, abs=0)


def test_standard_errors_are_those_of_numpy_to_the_last_digit() -> None:
    values = [0.1, 0.7, 123.456]
    found = SeedMean.of(values)
    assert (found.mean, found.stderr) == (np.mean(values), np.std(values, ddof=1) / 3**0.5)
