"""``torch.compile``: compiled parts, whole models, losses inside, forces, the cache on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer

pytestmark = pytest.mark.slow  # the compiler takes half a minute

ONE: dict[str, Any] = {"minibatches": 1, "weight_heads": True}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ls", {}),
    ("ntkmtl-auto", ONE),
    ("ntkmtl", ONE),
    ("ntkmtl-sr", ONE),
    ("fairgrad", ONE),
    ("pcgrad", {"seed": 0}),
    ("ntkmtl-sr", {**ONE, "hooked": True}),
    ("ntkmtl-auto", {**ONE, "hooked": True}),
]
IDS = [f"{m}-{'hooked' if 'hooked' in o else 'free'}" for m, o in METHODS]


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    # Past some number of modules of one class, torch runs them as they are.
    torch.compiler.reset()


class Net(nn.Module):
    def __init__(self, compiled: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.x, self.y = torch.randn(8, 5), torch.randn(3, 8, 1)
        self.whole = torch.compile(self.all_outputs) if compiled == "whole" else self.all_outputs
        self.made = torch.compile(self.inner) if compiled == "losses" else self.inner
        if compiled in ("trunk", "parts"):
            self.trunk = torch.compile(self.trunk)
        if compiled in ("heads", "parts"):
            self.heads = nn.ModuleList(torch.compile(head) for head in self.heads)

    def all_outputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        return z, [head(z) for head in self.heads]

    def inner(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        z, outputs = self.whole(x)
        return z, [10.0**i * (o - y[i]).square().mean() for i, o in enumerate(outputs)]

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        return self.made(self.x, self.y)


def is_compiled(loss: Tensor) -> bool:
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node.name() == "CompiledFunctionBackward":
            return True
        stack += [child for child, _ in node.next_functions if child is not None]
    return False


@pytest.mark.parametrize(("method", "options"), METHODS, ids=IDS)
@pytest.mark.parametrize(
    ("compiled", "named"),
    [
        ("trunk", False),
        ("trunk", True),
        ("heads", False),
        ("heads", True),
        ("parts", True),
        ("whole", False),
        ("whole", True),
        ("losses", False),
    ],
)
def test_compiled_is_plain(
    compiled: str, named: bool, method: str, options: dict[str, Any]
) -> None:
    nets = Net(compiled), Net("")
    balancers = [Balancer(method, **options) for _ in nets]
    if method != "ls" and (named and compiled == "whole"):
        # What a model that was compiled as a whole returns is a copy of what its heads read.
        z, losses = nets[0].losses()
        with pytest.raises(ValueError, match=r"no loss depends on the features.*in one piece"):
            balancers[0].backward(losses, features=z)
        return
    if method == "ntkmtl-sr" and compiled in ("whole", "losses"):
        with pytest.raises(ValueError, match=r"CompiledFunctionBackward, which may hold .*'auto'"):
            balancers[0].backward(nets[0].losses()[1])
        assert all(p.grad is None for p in nets[0].parameters())
        return
    for _ in range(3):
        found = []
        for net, balancer in zip(nets, balancers, strict=True):
            net.zero_grad()
            z, losses = net.losses()
            assert is_compiled(losses[0]) == (net is nets[0])
            found.append(balancer.backward(losses, features=z if named else None).weights)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def forces(how: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    positions = torch.randn(6, 3)

    def functional(p: Tensor) -> tuple[Tensor, Tensor]:
        return net(p)[:, 0], -torch.func.grad(lambda q: net(q).sum())(p)

    def by_autograd(p: Tensor) -> tuple[Tensor, Tensor]:
        p = p.requires_grad_(True)
        energy = net(p)[:, 0]
        return energy, -torch.autograd.grad(energy.sum(), p, create_graph=True)[0]

    if how == "outside":
        net = torch.compile(net)
        function = by_autograd
    else:
        function = torch.compile(functional if how == "functional" else by_autograd)

    def losses() -> list[Tensor]:
        energy, force = function(positions.clone())
        return [(energy - 1).square().mean(), (force - 0.3).square().mean()]

    return net, losses


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl"])
def test_forces_by_functional_gradients(method: str) -> None:
    net, losses = forces("functional")
    out = Balancer(method, **ONE).backward(losses())
    plain, eager = forces("outside")
    torch.compiler.set_stance("force_eager")
    try:
        right = Balancer(method, **ONE).backward(eager())
    finally:
        torch.compiler.set_stance("default")
    torch.testing.assert_close(out.weights, right.weights, rtol=1e-4, atol=1e-5)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["inside", "outside"])
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl"])
def test_double_backward_is_refused_with_an_explanation(method: str, how: str) -> None:
    net, losses = forces(how)
    with pytest.raises(RuntimeError, match=r"torch\.func\.grad inside"):
        Balancer(method, **ONE).backward(losses())
    assert all(p.grad is None for p in net.parameters())


def run(job: str, cache: Path) -> dict[str, Any]:
    worker = Path(__file__).with_name("compile_worker.py")
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(worker), job],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_graphs_that_plain_training_cached_on_disk_are_not_reused(tmp_path: Path) -> None:
    run("plain", tmp_path)
    found = run("balanced", tmp_path)
    assert found["errors"] == []
    assert len(found["weights"]) == 4


def test_a_part_compiled_for_one_pass_is_refused_until_the_compiler_is_reset(
    tmp_path: Path,
) -> None:
    found = run("early", tmp_path)
    assert len(found["errors"]) == 4
    assert all("torch.compiler.reset()" in error for error in found["errors"])
    assert len(found["weights"]) == 4
