"""Weights held within a block: for L-BFGS, SAM and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.weighting import accepted_options, create, names

HELD = [
    n
    for n in names()
    if n not in ("stl", "modo", "sdmgrad", "ntkmtl-x")
    and create(n).requires != "jacobian"
    and not create(n).has_head_objective
]
REFUSED = [n for n in names() if create(n).requires == "jacobian" or create(n).has_head_objective]


def problem() -> tuple[nn.Module, nn.ModuleList, Callable[[], list[Tensor]]]:
    """Two losses of one small network, the second a hundred times as large."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = [x.sin().sum(1, keepdim=True), 10 * x[:, :1].square()]

    def losses() -> list[Tensor]:
        z = trunk(x)
        return [(h(z) - t).square().mean() for h, t in zip(heads, y, strict=True)]

    return trunk, heads, losses


def make(method: str, **options: Any) -> Balancer:
    if "seed" in accepted_options(method):
        options["seed"] = 0
    if method == "fixed":
        options["weights"] = [1.0, 0.5]
    if create("ls" if method == "fixed" else method).requires != "losses":
        options.setdefault("minibatches", 1)
        if method == "ntkmtl-tk":
            options["pooling"] = "blockwise"
    return Balancer(method, **options)


@pytest.mark.parametrize("method", HELD)
def test_weights_of_the_first_call_are_reused(method: str) -> None:
    trunk, heads, losses = problem()
    parameters = [*trunk.parameters(), *heads.parameters()]
    balancer = make(method)
    log = balancer.options.log_losses
    with balancer.hold():
        first = balancer.backward(losses())
        with torch.no_grad():
            for p in parameters:
                p.add_(0.1 * torch.randn_like(p))
                p.grad = None
        second = balancer.backward(losses())
    made = losses()
    balanced = [m.log() if log else m for m in made]
    # What is held are the weights of what is balanced: logarithms stay logarithms.
    torch.testing.assert_close(second.balanced, first.balanced)
    total = sum(w * b for w, b in zip(second.balanced, balanced, strict=True))
    torch.testing.assert_close(second.total, total.detach(), rtol=1e-9, atol=1e-12)
    shared = list(trunk.parameters())
    for p, g in zip(shared, torch.autograd.grad(total, shared), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_do_more_than_weigh_losses_cannot_hold(method: str) -> None:
    _, _, losses = problem()
    balancer = make(method)
    words = r"more than weigh whole gradients.*cannot be held"
    with pytest.raises(ValueError, match=words), balancer.hold():
        balancer.backward(losses())


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "fairgrad", "imtl-g", "si"])
def test_lbfgs_within_a_block_reaches_what_fixed_weights_reach(method: str) -> None:
    trunk, heads, losses = problem()
    parameters = [*trunk.parameters(), *heads.parameters()]
    balancer = make(method, **({} if method == "si" else {"weight_heads": True}))
    weights: list[Tensor] = []

    def closure() -> Tensor:
        for p in parameters:
            p.grad = None
        out = balancer.backward(losses())
        weights.append(out.weights)
        return out.total

    optimizer = torch.optim.LBFGS(parameters, lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
    with balancer.hold():
        for _ in range(10):
            optimizer.step(closure)
    held = [float(loss) for loss in losses()]
    assert all(torch.equal(w, weights[0]) for w in weights)

    trunk, heads, losses = problem()
    parameters = [*trunk.parameters(), *heads.parameters()]

    def plain() -> Tensor:
        for p in parameters:
            p.grad = None
        total = sum(w * loss for w, loss in zip(weights[0], losses(), strict=True))
        total.backward()
        return total.detach()

    optimizer = torch.optim.LBFGS(parameters, lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
    for _ in range(10):
        optimizer.step(plain)
    # Two hundred iterations blow rounding up, so what is compared is the objective.
    wanted = sum(float(w) * float(m) for w, m in zip(weights[0], losses(), strict=True))
    start = sum(float(w) * float(m) for w, m in zip(weights[0], problem()[2](), strict=True))
    reached = sum(float(w) * m for w, m in zip(weights[0], held, strict=True))
    assert reached < 1.2 * wanted < 0.1 * start


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "fairgrad", "si"])
def test_lbfgs_with_a_block_for_each_step_reduces_the_losses(method: str) -> None:
    trunk, heads, losses = problem()
    parameters = [*trunk.parameters(), *heads.parameters()]
    balancer = make(method)
    optimizer = torch.optim.LBFGS(parameters, lr=1.0, max_iter=20, line_search_fn="strong_wolfe")
    start = [float(loss) for loss in losses()]

    def closure() -> Tensor:
        for p in parameters:
            p.grad = None
        return balancer.backward(losses()).total

    for _ in range(10):
        with balancer.hold():
            optimizer.step(closure)
    # The optimizer remembers curvature of the last blocks' objectives, so the end is rough.
    assert sum(map(float, losses())) < 0.5 * sum(start)


def test_two_passes_of_sam_have_one_objective() -> None:
    trunk, heads, losses = problem()
    parameters = [*trunk.parameters(), *heads.parameters()]
    balancer = make("ntkmtl-sr")
    with balancer.hold():
        first = balancer.backward(losses())
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        moves = [0.05 * p.grad / norm for p in parameters]
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move)
                p.grad = None
        second = balancer.backward(losses())
    assert torch.equal(first.weights, second.weights)
    total = sum(w * loss for w, loss in zip(first.weights, losses(), strict=True))
    for p, g in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)
    third = balancer.backward(losses())
    assert not torch.equal(third.weights, first.weights)


def test_blocks_within_blocks_and_after_errors() -> None:
    _, _, losses = problem()
    balancer = make("ntkmtl-sr")
    with balancer.hold():
        first = balancer.backward(losses())
        with balancer.hold():
            second = balancer.backward([7 * loss for loss in losses()])
        third = balancer.backward([7 * losses()[0], losses()[1]])
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.weights, third.weights)
    with pytest.raises(ValueError, match="1 losses for 2 tasks"), balancer.hold():
        balancer.backward(losses()[:1])
    fresh = balancer.backward([7 * losses()[0], losses()[1]])
    assert not torch.equal(first.weights, fresh.weights)


@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "imtl-g", "ls"])
def test_micro_batches_of_one_step(method: str) -> None:
    trunk, _, losses = problem()
    balancer = make(method)
    with balancer.hold():
        first = balancer.backward(losses(), scale=0.5)
        second = balancer.backward([2 * loss for loss in losses()], scale=0.5)
    assert torch.equal(first.weights, second.weights)
    shared = list(trunk.parameters())
    total = sum(w * 1.5 * loss for w, loss in zip(first.weights, losses(), strict=True))
    for p, g in zip(shared, torch.autograd.grad(total, shared), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_a_task_that_comes_later_in_a_block() -> None:
    # Its weight is made when it is first there; those that are known stay.
    _, _, losses = problem()
    balancer = Balancer("ntkmtl-auto", tasks=2)
    with balancer.hold():
        both = balancer.backward(losses()).weights
        one = balancer.backward([losses()[0], None]).weights
        again = balancer.backward(losses()).weights
    assert float(one[0]) == float(both[0])
    assert torch.equal(both, again)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "si", "fairgrad"])
def test_a_new_task_changes_no_weight_of_a_block(method: str) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(3)]
    x = torch.randn(6, 3)

    def losses() -> list[Tensor | None]:
        z = trunk(x).tanh()
        return [10.0**i * (head(z) - i).square().mean() for i, head in enumerate(heads)]

    options = {"minibatches": 1} if method == "ntkmtl-sr" else {}
    balancer = Balancer(method, tasks=3, **options)
    with balancer.hold():
        some = losses()
        some[1] = None
        first = balancer.backward(some).weights
        trunk.weight.grad = None
        second = balancer.backward(losses()).weights
        found = trunk.weight.grad.clone()
        third = balancer.backward(losses()).weights
    assert first[[0, 2]].tolist() == second[[0, 2]].tolist()
    assert torch.equal(second, third)
    total = sum(w * loss for w, loss in zip(second, losses(), strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(total, trunk.weight)[0])
