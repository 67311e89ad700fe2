"""cagrad: values worked out by hand, and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    on_simplex,
    tensor,
    weigh,
)


def cagrad_oracle(gramian: Tensor, c: float) -> Tensor:
    """Dual of the paper's Eq. 5: min over the simplex of g_w . g_0 + sqrt(phi) |g_w|."""
    G = gramian.numpy()
    k = len(G)
    mean = np.full(k, 1 / k)
    root_phi = c * np.sqrt(mean @ G @ mean)
    w = on_simplex(lambda w: w @ G @ mean + root_phi * np.sqrt(w @ G @ w + 1e-30), k)
    return torch.from_numpy(mean + root_phi / np.sqrt(w @ G @ w) * w)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_cagrad_without_room_is_the_mean(scale: float) -> None:
    rows = gradients()
    found = weigh(create("cagrad", c=0.0), rows @ rows.T * scale)
    torch.testing.assert_close(found, torch.full((3,), 1 / 3, dtype=torch.float64), **EXACT)


def test_cagrad_of_two_equally_long_orthogonal_gradients() -> None:
    # By symmetry w = (1/2, 1/2) and g_w = g_0: the update is (1 + c) g_0.
    found = weigh("cagrad", torch.eye(2))
    torch.testing.assert_close(found, tensor([0.7, 0.7]), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_cagrad_solves_the_dual(k: int, c: float, seed: int) -> None:
    rows = gradients(k, seed=seed)
    gramian = rows @ rows.T
    expected = cagrad_oracle(gramian, c)
    found = weigh(create("cagrad", c=c), gramian)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],  # one gradient vanishes
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1e-5]],  # or almost
        [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # two cancel
        [[1.0, 0.2, 0.0], [-1.0, 0.3, 0.1], [0.4, 1.0, -0.2]],
    ],
)
@pytest.mark.parametrize("c", [0.0, 0.4])
def test_cagrad_stays_within_its_ball(rows: list[list[float]], c: float) -> None:
    # Eq. 4: |d - g_0| <= c |g_0|. In particular d is not zero where g_0 is not, as c < 1.
    matrix = tensor(rows)
    mean = matrix.mean(dim=0)
    update = weigh(create("cagrad", c=c), matrix @ matrix.T) @ matrix
    assert float((update - mean).norm()) <= c * float(mean.norm()) * (1.0 + 1e-12) + 1e-15
