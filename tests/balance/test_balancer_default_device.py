"""The Balancer under ``torch.set_default_device``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from balance.small_network import close, gradients, inputs, losses_of, network
from ntkmtl import Balancer, weighting


@pytest.mark.parametrize("method", [n for n in weighting.names() if n != "stl"])
def test_another_default_device_changes_nothing(method: str) -> None:
    """A default GPU would do as "meta" does here: nothing of it may be mixed with the CPU's."""
    found = []
    for place in ("cpu", "meta"):
        trunk, heads = network()
        torch.manual_seed(3)
        x = inputs()
        with torch.device(place):
            balancer = Balancer(method)
            for _ in range(2):
                for p in (*trunk.parameters(), *heads.parameters()):
                    p.grad = None
                z = trunk(x)
                own = losses_of(heads, z)
                weights = balancer.backward(own, features=z).weights
                balancer.after_step([loss.detach() for loss in own])
            balancer.end_epoch()
            balancer.load_state_dict(balancer.state_dict())
        found.append((weights, gradients(trunk, heads)))
        assert all(p.device.type == "cpu" for p in balancer.parameters())
    assert torch.equal(found[0][0], found[1][0])
    close(found[1][1], found[0][1])


def test_the_trunk_is_probed_under_its_own_default_device() -> None:
    class Makes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            made.append(torch.zeros(1).device.type)
            return super().forward(x)

    made: list[str] = []
    trunk, head = Makes(5, 4), nn.Linear(4, 1)
    x = torch.randn(8, 5)
    with torch.device("meta"):
        balancer = Balancer("ntkmtl", source="probe", minibatches=2, trunk=trunk)
        z = trunk(x)
        balancer.backward([head(z).square().mean(), head(z).mean()], features=z)
    assert len(made) > 1
    assert set(made) == {"meta"}
