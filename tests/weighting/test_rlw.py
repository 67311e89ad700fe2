"""rlw: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    LOSSES,
)


def test_rlw_is_a_softmax_of_normal_numbers() -> None:
    weighting = create("rlw", seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(400):
        weights = weighting(losses=LOSSES)
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert (weights > 0).all()
        normal = torch.randn(3, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(weights, normal.exp() / normal.exp().sum(), **EXACT)
        drawn.append(weights)
    # log w_i - log w_j is the difference of two standard normals: mean 0, variance 2.
    logs = torch.stack(drawn).log()
    difference = logs[:, 0] - logs[:, 1]
    assert abs(difference.mean()) < 4 * math.sqrt(2 / 400)
    assert difference.var() == pytest.approx(2.0, rel=0.3)


def test_rlw_follows_the_global_seed_and_leaves_it_alone() -> None:
    torch.manual_seed(11)
    first = create("rlw")(losses=LOSSES)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    second = create("rlw")(losses=LOSSES)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
