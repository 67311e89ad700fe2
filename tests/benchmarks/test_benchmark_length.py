"""Methods, lengths and learning rates on qm9-mini."""

from __future__ import annotations

import json
from pathlib import Path

import length
import pytest
import torch
from sidebyside.tables import fill_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_numbers_that_are_kept() -> None:
    page = (DOCS / "length.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "length" / "measured.json").read_text(encoding="utf-8"))
    assert fill_page(page, length.table(report)) == page


def test_methods_that_read_losses_have_their_own_length_only() -> None:
    found = list(length.variants(["ls", "si", "ntkmtl-sr"], [0.005]))
    assert [(v.label, v.length) for v in found] == [
        ("ls", "method"),
        ("ls, log losses", "method"),
        ("si", "method"),
        *[("ntkmtl-sr", how) for how in length.LENGTHS],
        *[("ntkmtl-sr, log losses", how) for how in length.LENGTHS],
    ]
    assert len({v.folder for v in found}) == len(found)


def test_runs_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []

    class Done:
        def __init__(self, value: float) -> None:
            self.result = self
            self.test = (value,)

    def train(problem: object, method: str, seed: int, folder: Path, **more: object) -> Done:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / length.RESULT).touch()
        trained.append(folder)
        return Done(2.0 if method == "stl" else 1.0)

    monkeypatch.setattr(length, "train", train)
    chosen = list(length.variants(["si"], [0.005]))
    with pytest.raises(FileNotFoundError, match="no complete run; leave --known out"):
        length.measure(chosen, 1, length.Runs(tmp_path, known=True))
    runs = length.Runs(tmp_path)
    alone = runs.baselines()
    assert alone == [2.0] * len(trained)
    higher = torch.zeros(len(alone), dtype=torch.bool)
    assert length.delta_m(torch.ones(len(alone)), torch.tensor(alone), higher) == -50.0
    known = length.Runs(tmp_path, known=True)
    assert known.of(chosen[0], 0) is None
    assert runs.of(chosen[0], 0) == [1.0]
    assert known.of(chosen[0], 0) == [1.0]


def test_table_leaves_gaps_where_nothing_was_run() -> None:
    rows = {
        "a": {"label": "si", "length": "method", "rate": 0.005, "delta_m": [-20.0, -22.0]},
        "b": {"label": "si", "length": "method", "rate": 0.01, "delta_m": []},
    }
    facts = {"date": "d", "torch": "t", "epochs": 25, "baseline_rate": 0.005, "seeds": 2}
    lines = length.table({"facts": facts, "rows": rows}).splitlines()
    assert lines[-1] == "| si | method | -21.0 ± 1.0 |  |"
