"""famo: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import scalarization

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    LOSSES,
    slopes,
    tensor,
)


def test_famo_by_hand() -> None:
    # z = (1/3, 1/3, 1/3): w_i = (1 / l_i) / sum_j 1 / l_j; 1 / l = (2, 1/4, 1/2), sum 11/4.
    weighting = create("famo")
    found = weighting(losses=LOSSES)
    torch.testing.assert_close(found, tensor(8, 1, 2) / 11, rtol=1e-7, atol=0.0)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_famo_is_the_slope_of_its_total() -> None:
    weighting = create("famo")
    for _ in range(3):
        losses = torch.rand(3, dtype=torch.float64)
        found = weighting(losses=losses)
        z = torch.softmax(weighting.state_dict()["logits"], dim=0)
        c = 1 / (z / (losses + 1e-8)).sum()
        expected = slopes(lambda x, z=z, c=c: c * (z * (x + 1e-8).log()).sum(), losses)
        torch.testing.assert_close(found, expected, **EXACT)
        weighting.after_step(losses * torch.rand(3, dtype=torch.float64), torch.arange(3))


def test_famo_after_step_is_a_step_of_adam() -> None:
    learning_rate, gamma = 0.1, 0.01
    weighting = create("famo", learning_rate=learning_rate, gamma=gamma)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate, weight_decay=gamma)
    for _ in range(10):
        before, after = torch.rand(2, 3, dtype=torch.float64)
        share = torch.softmax(logits.detach(), dim=0) / (before + 1e-8)
        torch.testing.assert_close(weighting(losses=before), share / share.sum(), **EXACT)
        weighting.after_step(after, torch.arange(3))
        fall = (before + 1e-8).log() - (after + 1e-8).log()
        (logits.grad,) = torch.autograd.grad(torch.softmax(logits, dim=0), logits, fall)
        optimizer.step()


def test_famo_equals_torchjd_over_many_steps() -> None:
    ours = create("famo", min_loss=0.05)
    theirs = scalarization.FAMO(4, min_losses=torch.full((4,), 0.05, dtype=torch.float64)).double()
    losses = torch.rand(4, dtype=torch.float64) * tensor(1, 10, 100, 1000) + 1
    for _ in range(60):
        torch.testing.assert_close(ours(losses=losses), slopes(theirs, losses), **EXACT)
        losses = 0.1 + losses * (1 - 0.05 * torch.rand(4, dtype=torch.float64))
        ours.after_step(losses, torch.arange(4))
        theirs.update(losses)


def test_famo_input() -> None:
    weighting = create("famo", min_loss=1.0)
    with pytest.raises(ValueError, match=r"above min_loss=1\.0"):
        weighting(losses=LOSSES)
    weighting = create("famo")
    weighting(losses=LOSSES)
    weighting.after_step(LOSSES, torch.arange(3))
    with pytest.raises(ValueError, match="last backward"):
        weighting.after_step(LOSSES, torch.arange(3))
