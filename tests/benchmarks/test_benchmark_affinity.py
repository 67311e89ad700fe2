"""Gains and correlations of ``benchmarks/affinity.py``, and a run of it in small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from affinity import agreement, correlations, gains, main


def test_a_gain_is_how_much_lower_the_error_is() -> None:
    alone = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    together = torch.tensor([[[math.nan, 1.5], [6.0, math.nan]]], dtype=torch.float64)
    found = gains(alone, together)
    assert found[0, 0, 1] == 25
    assert found[0, 1, 0] == -50
    assert found[0].diagonal().isnan().all()


def test_correlations_are_of_ranks_and_pairs_take_the_mean() -> None:
    affinity = torch.tensor([[1.0, 0.1, 0.2], [0.1, 1.0, 0.9], [0.2, 0.9, 1.0]])
    gain = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 50.0], [2.0, 50.0, 0.0]]]).double()
    assert correlations(affinity, gain)["pairs"]["rho"] == pytest.approx(1)
    assert correlations(affinity, -gain)["directed"]["rho"] == pytest.approx(-1)
    # Gains of one side only: the means are 10, -5, 0, of ranks 3, 1, 2 against 1, 2, 3.
    gain[0, 0, 1], gain[0, 1, 0] = 30, -10
    gain[0, 0, 2], gain[0, 2, 0] = -10, 0
    gain[0, 1, 2], gain[0, 2, 1] = -1, 1
    assert correlations(affinity, gain)["pairs"]["rho"] == pytest.approx(-0.5)


def test_agreement_needs_two_seeds() -> None:
    gain = torch.randn(1, 4, 4, dtype=torch.float64)
    assert agreement(gain) is None
    assert agreement(torch.cat([gain, 3 * gain])) == pytest.approx(1)


def test_a_small_run_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--out", str(tmp_path), "--tasks", "u0,mu,h", "--epochs", "1", "--seeds", "1"]
    main([*asked, "--figure", str(tmp_path / "figure.png")])
    assert "reduced recipe" in capsys.readouterr().out
    found = json.loads((tmp_path / "affinity.json").read_text())
    assert found["tasks"] == ["mu", "u0", "h"]
    assert (tmp_path / "figure.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-0/*/result.json")}
    assert len(before) == 3 + 3 + 2
    main(asked)
    assert before == {path: path.stat().st_mtime_ns for path in before}
