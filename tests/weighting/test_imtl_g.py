"""imtl-g: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch

from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_imtl_g_has_equal_projections(k: int, scale: float) -> None:
    rows = gradients(k, 8) * math.sqrt(scale)
    weights = weigh("imtl-g", rows @ rows.T)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-9)
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ (weights @ rows)
    torch.testing.assert_close(projections, projections.mean().expand(k), rtol=1e-9, atol=0.0)


def test_imtl_g_by_hand() -> None:
    # Orthogonal: w_i proportional to 1 / |g_i|: (1, 1/3) / (4/3).
    torch.testing.assert_close(
        weigh("imtl-g", [[1.0, 0.0], [0.0, 9.0]]), tensor([0.75, 0.25]), **EXACT
    )
