"""mgda: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch

from weighting.by_hand import (
    gradients,
    on_simplex,
    tensor,
    weigh,
)


@pytest.mark.parametrize(
    ("gramian", "expected"),
    [
        # Algorithm 1 of the paper, with a = |g_1|^2, b = |g_2|^2, c = <g_1, g_2>:
        # c >= a: all on the shorter one.
        ([[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ([[9.0, 2.0], [2.0, 1.0]], [0.0, 1.0]),
        ([[1.0, 1.0], [1.0, 4.0]], [1.0, 0.0]),
        # Otherwise w_1 = (b - c) / (a + b - 2 c).
        ([[1.0, 0.0], [0.0, 3.0]], [3 / 4, 1 / 4]),
        ([[2.0, 1.0], [1.0, 4.0]], [3 / 4, 1 / 4]),
        ([[2.0, -1.0], [-1.0, 4.0]], [5 / 8, 3 / 8]),
        # Opposite: the combination vanishes.
        ([[1.0, -2.0], [-2.0, 4.0]], [2 / 3, 1 / 3]),
        # A gradient of zero is the shortest combination by itself.
        ([[0.0, 0.0], [0.0, 4.0]], [1.0, 0.0]),
    ],
)
def test_mgda_of_two_tasks(gramian: list[list[float]], expected: list[float]) -> None:
    for scale in (1e-12, 1.0, 1e12):
        found = weigh("mgda", tensor(gramian) * scale)
        torch.testing.assert_close(found, tensor(expected), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mgda_of_three_tasks(seed: int) -> None:
    rows = gradients(seed=seed) * tensor([1.0, 2.0, 0.5])[:, None]
    gramian = rows @ rows.T
    G = gramian.numpy()
    best = on_simplex(lambda w: w @ G @ w, 3)
    found = weigh("mgda", gramian)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (found >= 0).all()
    norm, least = float(found @ gramian @ found), float(best @ G @ best)
    assert norm == pytest.approx(least, rel=1e-6, abs=1e-12)
    assert norm <= least + 1e-14
