"""imtl-l: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd import scalarization

from ntkmtl.weighting import create
from weighting.by_hand import (
    LOSSES,
    tensor,
)


def test_imtl_l_by_hand() -> None:
    # w_i = exp(s_i); d / d s_i of sum_i exp(s_i) l_i - s_i is exp(s_i) l_i - 1.
    weighting = create("imtl-l", tasks=3)
    (parameter,) = weighting.parameters()
    with torch.no_grad():
        parameter.copy_(tensor(0.0, math.log(0.25), math.log(2.0)))
    torch.testing.assert_close(
        weighting(losses=LOSSES), tensor(1.0, 0.25, 2.0), rtol=1e-6, atol=0.0
    )
    weighting.accumulate(LOSSES, torch.arange(3), 1.0)
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad.double(), tensor(-0.5, 0.0, 3.0), rtol=0, atol=1e-6)
    weighting.accumulate(LOSSES[1:], torch.tensor([1, 2]), 2.0)
    torch.testing.assert_close(parameter.grad.double(), tensor(-0.5, 0.0, 9.0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="negative"):
        weighting(losses=-LOSSES)
    with pytest.raises(ValueError, match="made for 3 tasks, found 4"):
        weighting(losses=torch.ones(4))


def test_imtl_l_trains_as_torchjd_does() -> None:
    ours, theirs = create("imtl-l", tasks=3), scalarization.IMTLL(3)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for _ in range(20):
        losses = torch.rand(3, dtype=torch.float64) * 3
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = losses.clone().requires_grad_()
        theirs(values).backward()
        torch.testing.assert_close(ours(losses=losses), values.grad, rtol=1e-5, atol=1e-7)
        ours.accumulate(losses, torch.arange(3), 1.0)
        for optimizer in optimizers:
            optimizer.step()
