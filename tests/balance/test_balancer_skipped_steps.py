"""The Balancer: steps that the gradient scaler skips."""

from __future__ import annotations

import torch
from torch import nn

from ntkmtl import Balancer


def test_famo_does_not_learn_from_a_step_that_the_scaler_skipped() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    balancer = Balancer("famo")
    for bad in (False, True):
        optimizer.zero_grad()
        if bad:
            # A loss that is finite, with a gradient that is not.
            with torch.no_grad():
                weight[0] = 1.0
            losses = [(weight[0] - 1.0).abs().sqrt() + weight[1], weight[1].square()]
        else:
            losses = [weight[0].square(), 3 * weight[1].square()]
        balancer.backward(losses, scaler=scaler)
        before = weight.detach().clone()
        state = {k: v.clone() for k, v in balancer.weighting.state_dict().items() if v is not None}
        scaler.step(optimizer)
        scaler.update()
        balancer.after_step([2 * loss.detach() for loss in losses])
        after = balancer.weighting.state_dict()
        same = all(torch.equal(after[k], v) for k, v in state.items())
        assert same == bad
        assert torch.equal(weight, before) == bad
