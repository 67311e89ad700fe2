"""Estimates of the kernel beside exact ones, step by step and smoothed."""

from __future__ import annotations

import json
from pathlib import Path

import estimators
import estimators_figures
import estimators_study
import pytest
import torch
from sidebyside.tables import fill_page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_numbers_that_are_kept() -> None:
    page = (DOCS / "estimators.md").read_text(encoding="utf-8")
    path = DOCS / "images" / "estimators-measured.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert fill_page(page, estimators_figures.table(report)) == page


def test_a_few_steps_of_qm9_mini(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "measured.json"
    arguments = ["--steps", "12", "--cache", str(tmp_path), "--json", str(path)]
    try:
        estimators.main(["--workloads", "qm9-mini", *arguments])
    finally:
        torch.set_num_threads(threads)
    case = json.loads(path.read_text(encoding="utf-8"))["cases"]["qm9-mini"]
    rows = {row["label"]: row for row in case["rows"]}
    assert case["reduced"]
    assert rows["exact, each step"]["error"] == 0.0
    assert rows["exact, each step"]["smoothed"] > 0.0
    assert rows["equal weights"]["error"] > rows["blockwise"]["error"]
    assert "| exact every 10, averaged |" in capsys.readouterr().out


def test_steps_are_for_all_or_for_each() -> None:
    with pytest.raises(SystemExit):
        estimators.main(["--steps", "1", "2"])


def test_averages_are_those_of_auto() -> None:
    eigenvalues = torch.tensor([[1.0], [9.0], [16.0], [9.0]], dtype=torch.float64)
    found = estimators_study._averaged(eigenvalues, 2)
    decay = estimators_study.DECAY
    second = 16.0 ** (1.0 / (1.0 + decay))  # of log 1 = 0, which counts as much as the decay
    torch.testing.assert_close(
        found.flatten(), torch.tensor([1.0, 1.0, second, second], dtype=torch.float64)
    )
