"""The Balancer: losses from generators, and losses without an influence on the trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from balance.small_network import close, gradients, inputs, losses_of, network
from ntkmtl import Balancer, weighting


@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr"])
@pytest.mark.parametrize("lazy", [iter, lambda values: map(torch.Tensor.clone, values)])
def test_losses_may_come_from_a_generator(method: str, lazy: Callable[..., Any]) -> None:
    found = []
    for form in (list, lazy):
        trunk, heads = network()
        z = trunk(inputs())
        balancer = Balancer(method, **({"minibatches": 2} if method != "ls" else {}))
        assert balancer.backward(form(losses_of(heads, z)), features=z).weights.shape == (3,)
        found.append(gradients(trunk, heads))
    close(found[1], found[0])


@pytest.mark.parametrize("method", [name for name in weighting.names() if name != "stl"])
def test_a_head_that_starts_at_zero_learns(method: str) -> None:
    trunk, heads = network()
    for parameter in heads[1].parameters():
        nn.init.zeros_(parameter)
    z = trunk(inputs())
    Balancer(method).backward(losses_of(heads, z), features=z)
    assert float(heads[1].weight.grad.norm()) > 0
