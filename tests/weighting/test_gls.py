"""gls: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import scalarization

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    slopes,
    tensor,
)


def test_gls_by_hand() -> None:
    # (1 * 4 * 2) ** (1/3) = 2; d L / d l_i = L / (3 l_i) = (2/3, 1/6, 1/3).
    found = create("gls")(losses=tensor(1.0, 4.0, 2.0))
    torch.testing.assert_close(found, tensor(2 / 3, 1 / 6, 1 / 3), **EXACT)
    # A loss of zero is left out: sqrt(1 * 4) = 2; 2 / (2 * 1), 2 / (2 * 4).
    found = create("gls")(losses=tensor(0.0, 1.0, 4.0))
    torch.testing.assert_close(found, tensor(0.0, 1.0, 0.25), **EXACT)
    with pytest.raises(ValueError, match="negative"):
        create("gls")(losses=tensor(-1.0, 1.0))


@pytest.mark.parametrize("k", [1, 2, 40])
def test_gls_is_the_slope_of_torchjds_geometric_mean(k: int) -> None:
    losses = torch.rand(k, dtype=torch.float64) * 10 + 1e-3
    expected = slopes(scalarization.GeometricMean(), losses)
    torch.testing.assert_close(create("gls")(losses=losses), expected, **EXACT)
