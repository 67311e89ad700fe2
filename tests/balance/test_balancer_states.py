"""The Balancer: loading a state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from balance.small_network import inputs, losses_of, network
from ntkmtl import Balancer, weighting


def test_a_refused_state_changes_nothing() -> None:
    trunk, heads = network()
    z = trunk(inputs())
    averaged = Balancer("ntkmtl", ema=0.5, source="representation")
    averaged.backward(losses_of(heads, z), features=z)
    other = Balancer("ntkmtl", ema=0.5)
    with pytest.raises(ValueError, match="averages the kernel of representation, blockwise"):
        other.load_state_dict(averaged.state_dict())
    probing = Balancer("ntkmtl-sr", source="probe", trunk=trunk, tasks=3)
    state = Balancer("ntkmtl-sr", tasks=3).state_dict()
    before = probing.state_dict()
    with pytest.raises(ValueError, match="without a probe"):
        probing.load_state_dict(state)
    after = probing.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("method", [name for name in weighting.names() if name != "stl"])
def test_a_state_from_before_the_first_step_starts_again(method: str) -> None:
    trunk, heads = network()
    balancer = Balancer(method)
    fresh = balancer.state_dict()
    found = []
    for _ in range(2):
        for module in (trunk, heads):
            module.zero_grad()
        parameters = list(balancer.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
        for step in range(3):
            losses: list[Tensor | None] = []
            z = trunk(inputs(seed=step))
            losses.extend(losses_of(heads, z))
            if step == 0:
                losses[0] = None  # fewer labels than tasks in the first step
            found.append(balancer.backward(losses, features=z).weights)
            if balancer.weighting.needs_after_step:
                balancer.after_step([None if v is None else v.detach() * 0.9 for v in losses])
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        balancer.load_state_dict(fresh)
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0.0, equal_nan=True)
