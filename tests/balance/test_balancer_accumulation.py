"""The Balancer: gradient accumulation."""

from __future__ import annotations

import pytest
import torch

from balance.small_network import close, gradients, inputs, losses_of, network
from ntkmtl import Balancer


def test_the_published_clipping_refuses_accumulated_gradients() -> None:
    trunk, heads = network()
    balancer = Balancer("ntkmtl", preset="published")
    for _ in range(2):  # zeroed gradients are none
        z = trunk(inputs())
        balancer.backward(losses_of(heads, z), features=z)
        norm = torch.stack([p.grad.norm() for p in trunk.parameters() if p.grad is not None])
        assert float(norm.norm()) <= 1 + 1e-6
        trunk.zero_grad(set_to_none=False)
    z = trunk(inputs())
    balancer.backward(losses_of(heads, z), features=z, scale=0.5)
    before = gradients(trunk)
    z = trunk(inputs())
    with pytest.raises(ValueError, match=r"clips the gradient of one batch.*zero_grad"):
        balancer.backward(losses_of(heads, z), features=z, scale=0.5)
    close(gradients(trunk), before)
