"""The benchmarks of forces and equations, on few steps."""

from __future__ import annotations

import sys

import fields
import ntk_weightings
import pytest


def test_costs_and_eigenvalues() -> None:
    row = fields.measure("pinn-helmholtz", steps=4, blocks=2, batch=16)
    assert (row["tasks"], row["batch"]) == (2, 16)
    assert row["error"] < 1e-5
    assert row["step_ms"] > 0
    assert row["ratio"] > 0


def test_weightings_named_after_the_kernel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ntk_weightings.py", "--problem", "pinn-helmholtz"])
    ntk_weightings.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    numbers = {
        cells[0]: [float(c) for c in cells[1:]]
        for cells in (line.strip("| ").split(" | ") for line in lines[2:])
    }
    assert all(sum(values) == pytest.approx(2, abs=2e-3) for values in numbers.values())
    # Gradients' norms at one step: learning-rate annealing without memory is ntkmtl.
    assert numbers["`lra`"] == numbers["`ntkmtl`"]
