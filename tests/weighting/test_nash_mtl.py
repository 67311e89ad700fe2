"""nash-mtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_nash_mtl_solves_its_equation(k: int, scale: float, seed: int) -> None:
    rows = gradients(k, k + 5, seed)
    gramian = rows @ rows.T * scale
    weights = weigh("nash-mtl", gramian)
    assert (weights > 0).all()
    torch.testing.assert_close(gramian @ weights, 1 / weights, rtol=1e-9, atol=0.0)


def test_nash_mtl_of_orthogonal_gradients() -> None:
    # |g_i|^2 w_i = 1 / w_i: w_i = 1 / |g_i|.
    found = weigh("nash-mtl", torch.diag(tensor([4.0, 0.25, 1e-8, 1e8])))
    torch.testing.assert_close(found, tensor([0.5, 2.0, 1e4, 1e-4]), **EXACT)


def test_nash_mtl_of_two_equally_long_gradients() -> None:
    # (1 + c) w = 1 / w: w = 1 / sqrt(1 + c), for the cosine c.
    for cosine in (-0.9, -0.5, 0.0, 0.5, 0.9):
        found = weigh("nash-mtl", [[1.0, cosine], [cosine, 1.0]])
        expected = torch.full((2,), 1 / math.sqrt(1 + cosine), dtype=torch.float64)
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_nash_mtl_maximizes_the_product_of_utilities(seed: int) -> None:
    # The bargaining solution: of all updates of a given length, the one that maximizes
    # sum_i log <g_i, d>.
    rows = gradients(3, 4, seed)
    R = rows.numpy()
    direction = (weigh("nash-mtl", rows @ rows.T) @ rows).numpy()
    unit = direction / np.linalg.norm(direction)

    def utility(d: np.ndarray) -> float:
        return float(np.log(np.maximum(R @ d / np.linalg.norm(d), 1e-300)).sum())

    generator = np.random.default_rng(seed)
    for size in (1e-3, 1e-1, 1.0):
        for step in generator.normal(size=(50, 4)):
            assert utility(unit + size * step) <= utility(unit) + 1e-12
