"""Balancers in several threads: each run gives the same results as alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn

from ntkmtl import Balancer
from ntkmtl.weighting import accepted_options, names, spec

METHODS = [name for name in names() if name != "stl"]
STEPS, THREADS = 6, 4


def train(method: str, seed: int, start: Barrier | None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(6, 1).double() for _ in range(3))
    parameters = [*trunk.parameters(), *heads.parameters()]
    with torch.no_grad():
        for p in parameters:
            p.copy_(0.5 * draw(*p.shape))
    options: dict[str, Any] = {"seed": seed} if "seed" in accepted_options(method) else {}
    if spec(method).requires != "losses":
        options["batch_dim"] = 0
    balancer = Balancer(method, **options)
    optimizer = torch.optim.SGD([*parameters, *balancer.parameters()], lr=1e-2)
    x, y = draw(8, 4), draw(3, 8, 1)
    found = []
    for _ in range(STEPS):
        if start is not None:
            start.wait(60)
        optimizer.zero_grad()
        z = trunk(x)
        losses = [10.0**i * (head(z) - y[i]).square().mean() for i, head in enumerate(heads)]
        found.append(balancer.backward(losses, features=z).weights)
        optimizer.step()
        if balancer.needs_after_step:
            balancer.after_step([loss.detach() for loss in losses])
    return [*found, *(p.detach() for p in parameters)]


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_interact(method: str) -> None:
    alone = [train(method, seed, None) for seed in range(THREADS)]
    start = Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda seed: train(method, seed, start), range(THREADS)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", [m for m in METHODS if "seed" in accepted_options(m)])
def test_the_global_generator_is_left_alone(method: str) -> None:
    torch.manual_seed(3)
    train(method, 1, None)
    # The layers that it makes draw from the global generator, the method does not.
    left = torch.get_rng_state()
    torch.manual_seed(3)
    nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
    assert torch.equal(torch.get_rng_state(), left)
