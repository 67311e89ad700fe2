"""gradvac: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd import aggregation

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def test_gradvac_by_hand() -> None:
    # First step, targets 0: gradient surgery. g_1 = (1, 1), g_2 = (-1, 0): g_1 + g_2, g_2 + g_1/2.
    weighting = create("gradvac")
    found = weigh(weighting, [[2.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(found, tensor(1.5, 2.0), **EXACT)
    # Cosines were -1/sqrt(2), so with beta = 1/2 both targets are t = -1/sqrt(8). Unit gradients
    # of cosine -1/2 are below: each gets the other times
    # t sqrt(3/4) / sqrt(7/8) + 1/2 = 1/2 - sqrt(3/28).
    found = weigh(weighting, [[1.0, -0.5], [-0.5, 1.0]])
    step = 0.5 - math.sqrt(3 / 28)
    torch.testing.assert_close(found, tensor(1 + step, 1 + step), **EXACT)
    # Targets are (t - 1/2) / 2, below a cosine of 0: the plain sum.
    torch.testing.assert_close(weigh(weighting, torch.eye(2)), tensor(1.0, 1.0), **EXACT)


def test_gradvac_reaches_its_target() -> None:
    rows = gradients(2, 4)
    weighting = create("gradvac", beta=1.0)
    weigh(weighting, rows @ rows.T)
    before = float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0))
    other = gradients(2, 4, seed=3)
    assert float(torch.nn.functional.cosine_similarity(other[0], other[1], dim=0)) < before
    weights = weigh(weighting, other @ other.T)
    for i, j in ((0, 1), (1, 0)):
        changed = other[i] + (weights[j] - 1) * other[j]
        found = float(torch.nn.functional.cosine_similarity(changed, other[j], dim=0))
        assert found == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_gradvac_equals_torchjd(k: int, beta: float) -> None:
    ours = create("gradvac", beta=beta, seed=7)
    theirs = aggregation.GradVacWeighting(beta=beta, eps=1e-14)
    torch.manual_seed(7)
    # Both draw one permutation per task in each step.
    for seed in range(8):
        rows = gradients(k, 4, seed)
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), rtol=1e-8, atol=1e-9)
