"""Gradients that are not finite below the heads, in new parts and in the loss outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graph.zoo import data, linear, weights
from ntkmtl import Balancer, NonFiniteError

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ntkmtl-auto", {}),
    ("ntkmtl", {"minibatches": 1}),
    ("ntkmtl", {"minibatches": 1, "weight_heads": True, "every": 3}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("ntkmtl-sr", {"minibatches": 1, "hooked": True}),
    ("mgda", {"source": "representation"}),
    ("graddrop", {"source": "representation"}),
    ("graddrop", {"source": "exact"}),
]
IDS = [f"{m}-{'-'.join(f'{k}={v}' for k, v in o.items())}" for m, o in METHODS]


def assert_raises_and_keeps(
    parameters: Sequence[Tensor], call: Callable[[], Any], match: str = "gradient"
) -> None:
    """Check that ``.grad`` is as it was before an error."""
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    with pytest.raises(NonFiniteError, match=match):
        call()
    for p, kept in zip(parameters, before, strict=True):
        assert (p.grad is None) == (kept is None)
        assert kept is None or torch.equal(p.grad, kept)


class Net:
    """The root has no derivative at a sample of zeros, so that the gradient of ``below`` is NaN."""

    def __init__(self, tasks: int = 2) -> None:
        torch.manual_seed(0)
        self.below, self.heads = linear(5, 7), [linear(7, 2) for _ in range(tasks)]
        torch.nn.init.zeros_(self.below.bias)
        self.x = data(8, 5)
        self.zero = self.x.clone()
        self.zero[3] = 0.0
        self.parameters = weights(self.below, *self.heads)

    def losses(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        v = torch.nn.functional.linear(x, self.below.weight)
        z = torch.tanh(v * v.square().sum(1, keepdim=True).sqrt() + self.below.bias)
        return [(h(z) - i).square().mean() for i, h in enumerate(self.heads)], z


@pytest.mark.parametrize("filled", ["none", "some", "all"])
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=IDS)
def test_below_the_representation(
    method: str, options: dict[str, Any], named: bool, filled: str
) -> None:
    if method == "graddrop":
        options = {**options, "seed": 0}
    net, balancer = Net(), Balancer(method, **options)

    def step(x: Tensor) -> Any:
        losses, z = net.losses(x)
        return balancer.backward(losses, z if named else None)

    if filled != "none":
        step(net.x)
    if filled == "some":
        for p in net.parameters[1:4]:
            p.grad = None
    for _ in range(3):  # with every=3 the weights are reused
        assert_raises_and_keeps(net.parameters, lambda: step(net.zero))
    step(net.x)
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters)


def test_every_step_of_a_default_balancer_with_many_tasks() -> None:
    net, balancer = Net(tasks=6), Balancer()
    for _ in range(60):
        balancer.backward(net.losses(net.x)[0])
    for p in net.parameters:
        p.grad = None
    for _ in range(20):  # one in 16 computes the representation's kernel
        assert_raises_and_keeps(net.parameters, lambda: balancer.backward(net.losses(net.zero)[0]))


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=IDS)
def test_the_loss_outside_the_balance(
    method: str, options: dict[str, Any], filled: bool, named: bool
) -> None:
    if method == "graddrop":
        options = {**options, "seed": 0}
    net, balancer = Net(), Balancer(method, **options)
    other = linear(2, 2)
    other.bias.data.zero_()
    parameters = [*net.parameters, *weights(other)]

    def step(bad: bool) -> Any:
        losses, z = net.losses(net.x)
        squares = [p.square().sum() for p in (*net.parameters[2:], *weights(other))]
        penalty = sum(s.sqrt() if bad else s for s in squares)
        return balancer.backward(losses, z if named else None, extra=penalty)

    if filled:
        step(bad=False)
    for _ in range(4):
        assert_raises_and_keeps(
            parameters, lambda: step(bad=True), "gradient of task .*extra|weigh"
        )
    step(bad=False)


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_that_earlier_steps_did_not_contain(first: int) -> None:
    torch.manual_seed(0)
    adapters, trunk = [linear(5, 5) for _ in range(2)], linear(5, 7)
    heads, x = [linear(7, 2) for _ in range(2)], data(8, 5)

    def losses(domain: int, bad: bool = False) -> list[Tensor]:
        y = adapters[domain](x)
        y = x + ((0 * y).square().sum(1, keepdim=True).sqrt() if bad else y)
        z = trunk(y).relu()
        return [(h(z) - i).square().mean() for i, h in enumerate(heads)]

    balancer = Balancer()
    for step in range(60):
        if balancer.backward(losses(first)).eigenvalues is None and step > 3:
            break  # a step that reuses weights
    parameters = weights(*adapters, trunk, *heads)
    for p in parameters:
        p.grad = None
    assert_raises_and_keeps(parameters, lambda: balancer.backward(losses(1, bad=True)))


def test_tasks_that_share_nothing() -> None:
    torch.manual_seed(0)
    nets, x = [linear(3, 1) for _ in range(2)], data(4, 3)
    losses = [net(x).square().mean() for net in nets]
    losses[1] = losses[1] + (0 * nets[1].weight).square().sum().sqrt()
    with pytest.warns(UserWarning, match="share no parameter"):
        assert_raises_and_keeps(weights(*nets), lambda: Balancer().backward(losses))
