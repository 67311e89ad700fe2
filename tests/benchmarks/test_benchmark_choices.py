"""What the automatic source settles on, for the networks of the benchmarks."""

from __future__ import annotations

import choices
import pytest


def test_one_row_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    choices.main(["--scale", "0.1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(choices.CASES)
    assert all(line.count("|") == 6 for line in lines)
    assert "probe" in lines[2]


def test_a_large_budget_buys_exact_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    choices.main(["--scale", "0.1", "--budget", "1000"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert all("exact kernels fit the budget in each step" in row for row in rows)
