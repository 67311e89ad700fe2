"""config: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import aggregation

from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_config_equals_torchjd(k: int, seed: int, scale: float) -> None:
    rows = gradients(k, 8, seed) * scale * torch.logspace(-2, 2, k, dtype=torch.float64)[:, None]
    found = weigh("config", rows @ rows.T) @ rows
    torch.testing.assert_close(found, aggregation.ConFIG()(rows), rtol=1e-8, atol=1e-10 * scale)
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (found / found.norm())
    torch.testing.assert_close(cosines, cosines.mean().expand(k), **EXACT)
    length = found.norm()
    torch.testing.assert_close(length, (rows @ found).sum() / length, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", ["twice", "zero", "more than entries"])
def test_config_of_dependent_gradients_equals_torchjd(kind: str) -> None:
    rows = gradients(4, 8)
    if kind == "twice":
        rows[3] = 2 * rows[0]
    elif kind == "zero":
        rows[1] = 0
    else:
        rows = gradients(6, 3)
    found = weigh("config", rows @ rows.T) @ rows
    torch.testing.assert_close(found, aggregation.ConFIG()(rows), rtol=1e-7, atol=1e-9)


def test_config_by_hand() -> None:
    # Orthogonal, norms 1 and 3: the direction is (1, 1) / sqrt(2) of units, the projections on it
    # sum to 4 / sqrt(2), so the gradient is 2 (u_1 + u_2): w = (2, 2/3).
    found = weigh("config", torch.diag(tensor(1.0, 9.0)))
    torch.testing.assert_close(found, tensor(2.0, 2 / 3), **EXACT)
    # Opposite: no direction serves both.
    assert weigh("config", [[1.0, -3.0], [-3.0, 9.0]]).tolist() == [0.0, 0.0]
    assert weigh("config", torch.zeros(2, 2)).tolist() == [0.0, 0.0]
