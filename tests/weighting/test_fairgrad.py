"""fairgrad: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.aggregation import FairGradWeighting

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("k", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_fairgrad_solves_its_equation(k: int, alpha: float, seed: int) -> None:
    rows = gradients(k, k + 5, seed)
    gramian = rows @ rows.T
    weights = weigh(create("fairgrad", alpha=alpha), gramian)
    assert (weights > 0).all()
    torch.testing.assert_close(gramian @ weights, weights.pow(-1 / alpha), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["nash-mtl", "fairgrad"])
@pytest.mark.parametrize("seed", range(5))
def test_fair_allocation_of_unlike_gradients(name: str, seed: int) -> None:
    # Norms over six orders of magnitude, as raw regression targets have.
    rows = gradients(11, 20, seed) * torch.logspace(-3, 3, 11, dtype=torch.float64)[:, None]
    gramian = rows @ rows.T
    weights = weigh(name, gramian)
    power = {"nash-mtl": 1.0, "fairgrad": 0.5}[name]
    torch.testing.assert_close(gramian @ weights, weights.pow(-power), rtol=1e-6, atol=0.0)


def test_fairgrad_of_orthogonal_gradients() -> None:
    # |g|^2 w = w^(-1/2): w = |g|^(-4/3); 8^(-2/3) = 1/4, 27^(-2/3) = 1/9.
    found = weigh("fairgrad", torch.diag(tensor([1.0, 8.0, 27.0])))
    torch.testing.assert_close(found, tensor([1.0, 1 / 4, 1 / 9]), **EXACT)


def test_fairgrad_with_alpha_1_is_nash_mtl() -> None:
    rows = gradients()
    torch.testing.assert_close(
        weigh(create("fairgrad", alpha=1.0), rows @ rows.T),
        weigh("nash-mtl", rows @ rows.T),
        **EXACT,
    )


@pytest.mark.parametrize("seed", range(3))
def test_fairgrad_agrees_with_torchjd(seed: int) -> None:
    rows = gradients(seed=seed)
    expected = FairGradWeighting(alpha=2.0)(rows @ rows.T)
    torch.testing.assert_close(weigh("fairgrad", rows @ rows.T), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["nash-mtl", "fairgrad"])
def test_fair_allocation_with_a_vanishing_gradient(name: str) -> None:
    rows = gradients()
    rows[1] = 0
    rest = rows[[0, 2]]
    found = weigh(name, rows @ rows.T)
    inner = weigh(name, rest @ rest.T)
    torch.testing.assert_close(found[[0, 2]], inner, **EXACT)
    # As a task by itself with the mean m of the squared norms: m w = w^(-1 / alpha).
    mean = (rest * rest).sum() / 3
    alone = mean ** {"nash-mtl": -1 / 2, "fairgrad": -2 / 3}[name]
    torch.testing.assert_close(found[1], alone, **EXACT)
    assert weigh(name, torch.zeros(2, 2)).tolist() == [1.0, 1.0]


def test_a_vanishing_gradient_does_not_take_the_weight_of_a_tiny_one() -> None:
    # Squared norms 1, 1e-24 and 0: mean 1/3, so the last weighs as one of norm sqrt(1/3).
    found = weigh("nash-mtl", torch.diag(tensor([1.0, 1e-24, 0.0])))
    torch.testing.assert_close(found, tensor([1.0, 1e12, math.sqrt(3)]), **EXACT)
    found = weigh("ntkmtl-x", torch.diag(tensor([1.0, 1e-24, 0.0])))
    assert found[2] == 1.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "spread"), [(8.0, 3.0), (16.0, 3.0), (50.0, 1.0)])
def test_fair_weights_of_a_large_alpha(alpha: float, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (spread * torch.randn(40, 1, dtype=torch.float64, generator=generator))
    rows = scales * torch.randn(40, 200, dtype=torch.float64, generator=generator)
    gramian = rows @ rows.T
    weights = weigh(create("fairgrad", alpha=alpha), gramian)
    size = gramian.abs() @ weights
    assert bool(((gramian @ weights - weights.pow(-1 / alpha)).abs() <= 1e-9 * size).all())
