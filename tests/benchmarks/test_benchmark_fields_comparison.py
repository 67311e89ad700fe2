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


def test_rows_are_means_over_seeds_and_times_relative_to_the_sum() -> None:
    def runs(value: float, step: float) -> dict:
        tests = {"l2": value, "energy": value, "forces": value, "dipole": value, "charges": value}
        return {
            str(seed): {"test": {k: v + seed for k, v in tests.items()}, "step_ms": step}
            for seed in range(2)
        }

    rows = {"ls": runs(10.0, 2.0), "lra": runs(20.0, 3.0)}
    text = fields_comparison.table({"pinn-wave": rows, "xtb": {"ls": runs(1.0, 2.0)}})
    assert "| lra |  |  |  | 20.5 ± 0.5 |  | 1.50 to 1.50 |" in text
    assert "| ls | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.5 ± 0.5 | 1.00 |" in text
    assert text.endswith("seeds of a row: 2.")
