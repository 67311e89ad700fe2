"""IMGrad: values by hand, and the objective of its authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import create


def kernel(gramian: Tensor) -> ExtendedNTK:
    k = len(gramian)
    return ExtendedNTK(gramian.reshape(k, 1, k, 1))


def test_two_orthogonal_gradients() -> None:
    # g_1 = (1, 0), g_2 = (0, 2): g_0 = (.5, 1) of length sqrt 1.25; the shortest combination has
    # w = (.8, .2), so g_m = (.8, .4) of length sqrt .8, and mu = .8 / sqrt(1.25 * .8) = .8. The
    # radius in the dual is r = c sqrt 1.25 * .8 / .7. With g_w = (w, 2 - 2 w) the derivative of
    # .5 w + 2 (1 - w) + r |g_w| is -1.5 + r (5 w - 4) / |g_w|: zero at w = .9, |g_w| = sqrt .85,
    # if r = 3 sqrt .85. Then d = g_0 + c sqrt 1.25 (.9 g_1 + .1 g_2) / sqrt .85.
    c = 3 * math.sqrt(0.85) * (0.7 / 0.8) / math.sqrt(1.25)
    factor = c * math.sqrt(1.25 / 0.85)
    assert factor == pytest.approx(2.625)
    found = create("imgrad", c=c)(kernel(torch.diag(torch.tensor([1.0, 4.0])).double()))
    assert found.tolist() == pytest.approx([0.5 + 0.9 * factor, 0.5 + 0.1 * factor], rel=1e-9)


def test_without_imbalance_the_step_is_longer_and_not_turned() -> None:
    assert create("imgrad", c=0.8)(kernel(torch.eye(3).double())).tolist() == pytest.approx(
        [0.6, 0.6, 0.6], rel=1e-12
    )
    assert create("imgrad", c=0.0)(kernel(torch.diag(torch.tensor([1.0, 9.0])))).tolist() == [
        0.5,
        0.5,
    ]


def test_at_a_cosine_of_three_quarters_it_is_cagrad() -> None:
    # Orthogonal gradients of squared lengths 1 and s: |g_0|^2 = (1 + s) / 4, |g_m|^2 = s / (1 + s),
    # their product is |g_m|^2, so mu = 2 sqrt s / (1 + s) = 3/4 at sqrt s = (4 + sqrt 7) / 3.
    root = (4 + math.sqrt(7)) / 3
    gramian = torch.diag(torch.tensor([1.0, root**2], dtype=torch.float64))
    ours, cagrad = (create(name, c=0.5)(kernel(gramian)) for name in ("imgrad", "cagrad"))
    torch.testing.assert_close(ours, cagrad, rtol=1e-9, atol=1e-12)


def published(gramian: np.ndarray, c: float) -> np.ndarray:
    """The authors' objective, by a general solver from several starts; weights of d."""
    k = len(gramian)
    b = np.full(k, 1 / k)
    length = math.sqrt(b @ gramian @ b)
    simplex = {"bounds": [(0, 1)] * k, "constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}}

    def norm(w: np.ndarray) -> float:
        return math.sqrt(max(w @ gramian @ w, 0) + 1e-16)

    def best(objective: object) -> np.ndarray:
        starts = [b, *(0.9 * np.eye(k) + 0.1 / k)]
        options = {"maxiter": 500}
        runs = [
            minimize(objective, s / s.sum(), tol=1e-14, options=options, **simplex) for s in starts
        ]
        return min(runs, key=lambda run: run.fun).x

    shortest = best(lambda w: w @ gramian @ w)
    mu = shortest @ gramian @ b / (length * norm(shortest))
    w = best(lambda w: (1.5 - mu) * w @ gramian @ b + mu * c * length * norm(w))
    return b + c * length * w / norm(w)


@pytest.mark.parametrize("seed", range(6))
def test_as_the_authors_objective(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = 2 + seed % 3
    J = torch.randn(k, 8, dtype=torch.float64, generator=generator)
    J *= torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)[:k, None]
    gramian = J @ J.T
    found = create("imgrad", c=0.8)(kernel(gramian)).numpy()
    expected = published(gramian.numpy(), 0.8)
    # The general solver knows the weights to some four digits.
    np.testing.assert_allclose(J.numpy().T @ found, J.numpy().T @ expected, rtol=0, atol=2e-3)


def test_where_gradients_cancel_the_step_goes_to_the_one_that_gains_least() -> None:
    # g = 1, -1, and one at right angles of length 3: g_0 = (0, 1), products 0, 0, 3.
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    # The first two gain least, equally: g_w is their sum, which is 0, and nothing is added.
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(create("imgrad")(kernel(J @ J.T)), third)
    # A task that is done: product 0, nothing to go toward.
    done = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert create("imgrad")(kernel(done)).tolist() == [0.5, 0.5]
    # g = 1, -3: g_0 = -1, products -1 and 3: c |g_0| = .8 toward g_1.
    two = torch.tensor([[1.0, -3.0], [-3.0, 9.0]], dtype=torch.float64)
    assert create("imgrad")(kernel(two)).tolist() == pytest.approx([1.3, 0.5])
