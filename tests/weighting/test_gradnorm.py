"""gradnorm: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    gradients,
    tensor,
    weigh,
)


def test_gradnorm_by_hand() -> None:
    # Norms (3, 1), losses (2, 1) and then (1, 1). First step: r = (1, 1), targets 2, so the
    # weights move by 0.1 to (0.9, 1.1). Second: ratios (1/2, 1), mean 3/4, r = (2/3, 4/3), with
    # alpha = 1; G = (2.7, 1.1), mean 1.9; targets (1.27, 2.53): again down and up, and a step of
    # Adam whose gradients are all equal is 0.1 again.
    weighting = create("gradnorm", alpha=1.0, learning_rate=0.1)
    gramian = torch.diag(tensor(9.0, 1.0))
    expected = [(1.0, 1.0), (0.9, 1.1), (0.8, 1.2)]
    for losses, weights in zip([(2.0, 1.0), (1.0, 1.0), (1.0, 1.0)], expected, strict=True):
        found = weigh(weighting, gramian, losses=tensor(*losses))
        torch.testing.assert_close(found, tensor(*weights), rtol=1e-6, atol=0.0)
    with pytest.raises(ValueError, match="negative"):
        weigh(weighting, gramian, losses=tensor(-1.0, 1.0))


def test_gradnorm_rate_changes_the_sign() -> None:
    # Equal norms; task 1 fell to a quarter, task 0 not at all: r = (1.6, 0.4), so with alpha = 1
    # the target of task 0 is above its norm and that of task 1 below.
    weighting = create("gradnorm", alpha=1.0, learning_rate=0.1)
    weigh(weighting, torch.eye(2), losses=tensor(1.0, 1.0))
    weigh(weighting, torch.eye(2), losses=tensor(1.0, 0.25))
    found = weigh(weighting, torch.eye(2), losses=tensor(1.0, 0.25))
    assert found[0] > 1.0 > found[1]
    # With alpha = 0 rates do not matter.
    weighting = create("gradnorm", alpha=0.0, learning_rate=0.1)
    for losses in (tensor(1.0, 1.0), tensor(1.0, 0.25), tensor(1.0, 0.25)):
        assert weigh(weighting, torch.eye(2), losses=losses).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gradnorm_is_the_descent_of_algorithm_1(scale: float) -> None:
    alpha, learning_rate, k = 1.5, 0.05, 4
    weighting = create("gradnorm", alpha=alpha, learning_rate=learning_rate)
    weights = torch.ones(k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    first = None
    for seed in range(40):
        rows = gradients(k, 6, seed) * tensor(0.5, 1.0, 2.0, 3.0)[:, None]
        losses = torch.rand(k, dtype=torch.float64) + 0.1
        found = weigh(weighting, rows @ rows.T * scale, losses=losses)
        torch.testing.assert_close(found, weights.detach(), rtol=1e-6, atol=1e-9)
        first = losses if first is None else first
        norms = rows.norm(dim=1) / rows.square().sum(dim=1).mean().sqrt()
        sizes = weights * norms
        ratio = losses / first
        target = (sizes.mean() * (ratio / ratio.mean()) ** alpha).detach()
        optimizer.zero_grad()
        (sizes - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=1e-6)
            weights *= k / weights.sum()


def test_gradnorm_weights_stay_positive_and_keep_their_sum() -> None:
    weighting = create("gradnorm", learning_rate=0.5)
    for _ in range(20):
        found = weigh(weighting, torch.diag(tensor(1e4, 1.0, 1e-4)), losses=tensor(1.0, 1.0, 1.0))
        assert (found > 0).all()
        assert found.sum().item() == pytest.approx(3.0)


def test_gradnorm_with_losses_of_zero() -> None:
    weighting = create("gradnorm")
    for losses in (tensor(0.0, 0.0), tensor(0.0, 1.0), tensor(3.0, 0.0), tensor(1.0, 1.0)):
        assert weigh(weighting, torch.diag(tensor(1.0, 0.0)), losses=losses).isfinite().all()
