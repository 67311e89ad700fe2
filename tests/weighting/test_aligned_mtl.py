"""aligned-mtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_aligned_mtl_makes_singular_values_equal(k: int, scale: float, mode: str) -> None:
    # G = U S V^T has the aligned form s U V^T; its rows are summed.
    rows = gradients(k, 8) * math.sqrt(scale)
    left, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    size = {
        "min": values.min(),
        "median": np.sort(values)[(k - 1) // 2],
        "rmse": np.sqrt((values**2).mean()),
    }[mode]
    expected = torch.from_numpy(size * (left @ right).sum(axis=0))
    found = weigh(create("aligned-mtl", scale_mode=mode), rows @ rows.T) @ rows
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12 * math.sqrt(scale))


def test_aligned_mtl_of_orthogonal_gradients() -> None:
    # All norms become the smallest, 1: w = 1 / |g|.
    found = weigh("aligned-mtl", torch.diag(tensor([1.0, 4.0, 100.0])))
    torch.testing.assert_close(found, tensor([1.0, 0.5, 0.1]), **EXACT)
