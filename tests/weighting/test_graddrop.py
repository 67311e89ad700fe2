"""graddrop: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    tensor,
    weigh,
)


def test_graddrop_keeps_one_sign_per_entry() -> None:
    jacobian = tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -2.0, 2.0, 0.0], [1.0, 1.0, 0.5, 0.0]])
    positive = jacobian.clamp_min(0).sum(dim=0)
    negative = jacobian.clamp_max(0).sum(dim=0)
    weighting = create("graddrop", seed=0)
    draws = torch.stack([weighting.combine(jacobian)[0] for _ in range(2000)])
    assert ((draws == positive) | (draws == negative)).all()
    # Purity P = (1 + sum / sum of absolutes) / 2 = (4/5, 1/4, 1, -): probability of positive.
    kept = (draws == positive).double().mean(dim=0)
    torch.testing.assert_close(kept[:3], tensor([4 / 5, 1 / 4, 1.0]), rtol=0.0, atol=0.05)


def test_graddrop_reports_the_share_that_was_kept() -> None:
    jacobian = tensor([[3.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    combined, kept = create("graddrop", seed=1).combine(jacobian)
    for row, share in zip(jacobian, kept, strict=True):
        same = (row.sign() == combined.sign()) * row.abs()
        expected = same.sum() / row.abs().sum() if row.any() else 1.0
        assert float(share) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="entry by entry"):
        weigh("graddrop", torch.eye(2))
