"""uw: values worked out by hand, and independent implementations."""

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


def test_uw() -> None:
    # Total sum_i (exp(-s_i) l_i + s_i) / 2. At s = (0, log 4, -log 2): w = (1, 1/4, 2) / 2.
    weighting = create("uw", tasks=3)
    (parameter,) = weighting.parameters()
    with torch.no_grad():
        parameter.copy_(tensor(0.0, math.log(4.0), -math.log(2.0)))
    torch.testing.assert_close(
        weighting(losses=LOSSES), tensor(0.5, 0.125, 1.0), rtol=1e-6, atol=0.0
    )
    # d / d s_i = (1 - exp(-s_i) l_i) / 2 = ((1 - 1/2), (1 - 1), (1 - 4)) / 2.
    weighting.accumulate(LOSSES, torch.arange(3), 1.0)
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad.double(), tensor(0.25, 0.0, -1.5), rtol=0, atol=1e-6)
    weighting.accumulate(LOSSES[1:], torch.tensor([1, 2]), 2.0)
    torch.testing.assert_close(parameter.grad.double(), tensor(0.25, 0.0, -4.5), rtol=0, atol=1e-6)


def test_uw_trains_as_torchjd_does() -> None:
    ours, theirs = create("uw", tasks=3), scalarization.UW(3)
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


def test_uw_parameter_is_accepted_by_optimizers_before_the_first_step() -> None:
    weighting = create("uw")
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weighting(losses=LOSSES)
        weighting.accumulate(LOSSES, torch.arange(3), 1.0)
        optimizer.step()
    (parameter,) = weighting.parameters()
    assert parameter.shape == (3,)
    assert parameter.abs().min() > 0


def test_uw_with_another_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="tasks"):
        create("uw", tasks=2)(losses=LOSSES)
