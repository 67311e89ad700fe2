"""The state of every method through safetensors and ``torch.save`` with ``weights_only``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from balance.test_messages import METHODS, Net, make
from ntkmtl import Balancer

safetensors = pytest.importorskip("safetensors.torch")


def train(balancer: Balancer, net: Net, steps: int) -> list[Tensor]:
    found = []
    for _ in range(steps):
        net.z = net.trunk(net.x)
        losses = net.losses()
        found.append(balancer.backward(losses, features=net.z).weights)
        balancer.after_step([0.9 * loss.detach() for loss in losses])
        with torch.no_grad():
            for p in [*net.trunk.parameters(), *(q for h in net.heads for q in h.parameters())]:
                p.add_(p.grad, alpha=-0.05)
                p.grad = None
        balancer.end_epoch()
    return found


def through_safetensors(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    safetensors.save_file(state, folder / "state.safetensors")
    loaded: dict[str, Tensor] = safetensors.load_file(folder / "state.safetensors")
    return loaded


def through_torch(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Tensor] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("way", [through_safetensors, through_torch])
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_as_if_it_had_not_stopped(
    method: str, steps: int, way: Any, tmp_path: Path
) -> None:
    whole, net = make(method), Net()
    train(whole, net, steps)
    state = way(whole.state_dict(), tmp_path)
    assert all(isinstance(v, Tensor) for v in state.values())
    values = [p.detach().clone() for p in [*net.trunk.parameters()]]
    heads = [p.detach().clone() for h in net.heads for p in h.parameters()]
    expected = train(whole, net, 3)

    resumed, other = make(method), Net()
    resumed.load_state_dict(state)
    with torch.no_grad():
        for p, v in zip(other.trunk.parameters(), values, strict=True):
            p.copy_(v)
        for p, v in zip([q for h in other.heads for q in h.parameters()], heads, strict=True):
            p.copy_(v)
    for found, wanted in zip(train(resumed, other, 3), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "tasks", [["a.b", "c"], ["json", ""], ["weighting", "memory.names"], ["ü", "日本"]]
)
def test_names_of_tasks_that_resemble_keys(tasks: list[str], tmp_path: Path) -> None:
    for method in ("ntkmtl-auto", "dwa", "famo", "moco"):
        net = first = Net()
        balancer = make(method, tasks=tasks)
        balancer.backward(dict(zip(tasks, net.losses(), strict=True)), features=net.z)
        state = through_safetensors(balancer.state_dict(), tmp_path)
        fresh = make(method)
        fresh.load_state_dict(state)
        net = Net()
        out = fresh.backward(dict(zip(tasks, net.losses(), strict=True)), features=net.z)
        net = first
        net.z = net.trunk(net.x)
        same = balancer.backward(dict(zip(tasks, net.losses(), strict=True)), features=net.z)
        assert torch.equal(out.weights, same.weights)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ntkmtl-auto", "budget": 3.0},
        {"method": "ntkmtl-auto", "length": "unit"},
        {"method": "ntkmtl-sr", "every": 3, "ema": 0.5, "minibatches": 1},
        {"method": "imtl-g", "ema": 0.5, "priorities": [1, 3], "length": "plain"},
    ],
)
def test_options_keep_their_state_as_well(options: dict[str, Any], tmp_path: Path) -> None:
    options = dict(options)
    method = options.pop("method")
    whole, net = Balancer(method, **options), Net()
    train(whole, net, 5)
    state = through_safetensors(whole.state_dict(), tmp_path)
    resumed, other = Balancer(method, **options), Net()
    resumed.load_state_dict(state)
    with torch.no_grad():
        for p, q in zip(other.trunk.parameters(), net.trunk.parameters(), strict=True):
            p.copy_(q)
        for h, g in zip(other.heads, net.heads, strict=True):
            h.load_state_dict(g.state_dict())
    for found, wanted in zip(train(resumed, other, 9), train(whole, net, 9), strict=True):
        assert torch.equal(found, wanted)
