"""The table of the field's weightings: from its JSON file, and nothing typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import fields_comparison
from sidebyside.tables import fill_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_what_the_file_holds() -> None:
    known = json.loads((DOCS / "fields" / "comparison.json").read_text("utf-8"))
    page = (DOCS / "forces-and-equations.md").read_text("utf-8")
    assert fill_page(page, fields_comparison.table(known)) == page


def runs(value: float, step: float) -> dict:
    names = ("l2", "energy", "forces", "dipole", "charges")
    return {
        str(seed): {"metrics": dict.fromkeys(names, value + seed), "step_ms": step}
        for seed in range(2)
    }


def test_rows_are_means_over_seeds_and_times_relative_to_the_sum() -> None:
    rows = {"ls": runs(10.0, 2.0), "lra": runs(20.0, 3.0)}
    known = {"runs": {"pinn-wave": rows, "xtb": {"ls": runs(1.0, 2.0)}}, "trials": {}}
    text = fields_comparison.table(known)
    assert "| lra |  |  |  | 20.5 ± 0.5 |  | 1.50 to 1.50 |" in text
    assert "| ls | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.00 |" in text
    assert text.endswith("seeds of a row: 2.")


def test_the_best_trial_chooses_the_ratio() -> None:
    rows = {"ls": runs(10.0, 2.0), "fixed, ratio 10": runs(5.0, 2.0)}
    trials = {
        "pinn-wave": {
            "ls": {"l2": 3.0, "boundary": 0.1},
            "fixed, ratio 10": {"l2": 2.0, "boundary": 9.0},
        },
        "xtb": {
            "ls": {"energy": 1.0, "forces": 100.0},
            "fixed, ratio 10": {"energy": 0.1, "forces": 1001.0},
        },
    }
    known = {"runs": {"pinn-wave": rows, "xtb": {"ls": runs(1.0, 2.0)}}, "trials": trials}
    text = fields_comparison.table(known)
    assert "| fixed, tuned ratio |  |  |  | 5.5 ± 0.5 |  |  |" in text
    assert text.endswith("Tuned ratios: 10 (`pinn-wave`), 1 (`xtb`).")


def test_rows_are_named_by_their_weights() -> None:
    assert fields_comparison.label("lra", None) == "lra"
    assert fields_comparison.label("fixed", [1, 100, 100]) == "fixed, ratio 100"
    assert fields_comparison.label("fixed", [10, 1, 10, 10]) == "fixed, ratio 10"
    assert fields_comparison.label("fixed", [1, 100, 1, 1]) == "fixed, 1:100:1:1"
