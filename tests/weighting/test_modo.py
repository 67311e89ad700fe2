"""modo: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import MoDoWeighting

from kernel.oracle import flat_gradient, make_case
from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    close,
    kernel_of_gradients,
    kernel_of_products,
    random,
    simplex_oracle,
)


def test_modo_by_hand() -> None:
    # lambda <- P(lambda - .1 diag(2, 1) lambda) from (.5, .5):
    # (.4, .45) + .075; (.38, .4725) + .07375; (.363, .491625) + .0726875.
    modo = create("modo", rho=0.0)
    kernel = kernel_of_products([[2.0, 0.0], [0.0, 1.0]])
    close(modo(kernel), [0.475, 0.525])
    close(modo(kernel), [0.45375, 0.54625])
    close(modo(kernel), [0.4356875, 0.5643125])


def test_modo_pulls_to_equal_weights() -> None:
    # With rho = 1 the matrix is diag(2, 1) for these products, and one task alone has weight 1.
    close(create("modo", rho=1.0)(kernel_of_products([[1.0, 0.0], [0.0, 0.0]])), [0.475, 0.525])
    # A large step ends on a corner: (.5, .5) - (5, .5) and then (0, 1) - (0, 1).
    modo = create("modo", rho=0.0, gamma=1.0)
    kernel = kernel_of_products([[10.0, 0.0], [0.0, 1.0]])
    assert modo(kernel).tolist() == [0.0, 1.0]
    # (0, 0), and half of the missing 1 each.
    assert modo(kernel).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_modo_is_torchjds_on_the_same_products(seed: int) -> None:
    modo, peer = create("modo", gamma=0.2, rho=0.3), MoDoWeighting(gamma=0.2, rho=0.3)
    for step in range(6):
        gradients = random(4, 2, 6, seed=10 * seed + step)
        products = gradients[:, 0] @ gradients[:, 1].T
        # The two orders in which the samples could have been drawn.
        expected = peer((products + products.T) / 2)
        close(modo(kernel_of_gradients(gradients)), expected)


def test_modo_on_halves_of_a_batch_is_the_original_on_two_batches() -> None:
    # lambda by products of the two halves' gradients, then the mean of both under it.
    case, fresh = make_case(), make_case()
    balancer = Balancer("modo", gamma=0.05)
    z = case.features()
    out = balancer.backward(case.losses(z), features=z)
    rows = fresh.rows(fresh.features())
    halves = [
        torch.stack([flat_gradient(row[part].mean(), fresh.shared) for row in rows])
        for part in (slice(0, 4), slice(4, 7))
    ]
    products = halves[0] @ halves[1].T
    products = (products + products.T) / 2
    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    slope = products @ start + 0.1 * start
    expected = simplex_oracle((start - 0.05 * slope).tolist())
    close(out.weights, expected)
    mean = (4 * halves[0] + 3 * halves[1]) / 7
    found = torch.cat([p.grad.flatten() for p in case.shared if p.grad is not None])
    close(found, out.weights @ mean)
