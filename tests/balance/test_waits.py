"""A step waits for the device at most once, and does not mix devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from far_device import Far, Waits, send
from torch import Tensor, nn

from ntkmtl import Balancer

TASKS = 3


def network(seed: int = 0) -> tuple[nn.Module, nn.ModuleList, Tensor]:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    heads = nn.ModuleList(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)) for _ in range(TASKS))
    return trunk, heads, torch.randn(8, 5)


def losses_of(trunk: nn.Module, heads: nn.ModuleList, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    z = trunk(x)
    return z, [(head(z) - i).square().mean() * 10.0**i for i, head in enumerate(heads)]


def steps(method: str, named: bool, far: bool, number: int, options: dict[str, Any]) -> Any:
    trunk, heads, x = network()
    balancer = Balancer(method, **options)
    waits = Waits()
    if far:
        send(trunk)
        send(heads)
        x = Far(x)
    counts, weights = [], []
    for _ in range(number):
        for p in (*trunk.parameters(), *heads.parameters()):
            p.grad = None
        with waits:
            z, losses = losses_of(trunk, heads, x)
            waits.found.clear()
            out = balancer.backward(losses, features=z if named else None)
            counts.append(dict(waits.found))
        weights.append(out.weights)
    grads = [p.grad for p in (*trunk.parameters(), *heads.parameters())]
    near = [v.near if isinstance(v, Far) else v for v in (*weights, *grads)]
    return counts, near


CASES = [
    ("ls", {}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("ntkmtl-sr", {"minibatches": 2, "batch_dim": 0}),
    ("ntkmtl-sr", {"minibatches": 2, "batch_dim": 0, "pooling": "pooled"}),
    ("ntkmtl-auto", {}),
    ("ntkmtl", {"minibatches": 1}),
    ("fairgrad", {"source": "representation"}),
    ("si", {}),
]


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("method", "options"), CASES, ids=[f"{m}-{o}" for m, o in CASES])
def test_one_wait_per_step(method: str, options: dict[str, Any], named: bool) -> None:
    if method == "ntkmtl-auto":
        options = {**options, "minibatches": 1}
    counts, far = steps(method, named, True, 4, options)
    _, near = steps(method, named, False, 4, options)
    for a, b in zip(far, near, strict=True):
        torch.testing.assert_close(a, b)
    assert all(sum(found.values()) <= 1 for found in counts), counts
