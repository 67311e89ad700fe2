"""Options besides the method: priorities, length, and losses outside the balance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graph.zoo import data, error, linear, weights
from ntkmtl import Balancer
from ntkmtl.weighting import accepted_options, create, names

METHODS = [n for n in names() if n not in ("stl", "modo", "sdmgrad")]
ENTRIES = [n for n in METHODS if create(n).requires == "jacobian"]
LOSSES = [n for n in METHODS if create(n).requires == "losses"]
KERNEL = [
    n for n in METHODS if n not in ENTRIES and n not in LOSSES and not create(n).has_head_objective
]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Net:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trunk = nn.Sequential(linear(4, 5), nn.Tanh())
        self.heads = [linear(5, 1) for _ in range(3)]
        self.x, self.y = data(8, 4), data(3, 8, 1)
        self.z = self.trunk(self.x)

    def losses(self) -> list[Tensor]:
        pairs = zip(self.heads, self.y, strict=True)
        return [3.0**i * error(h(self.z), t) for i, (h, t) in enumerate(pairs)]

    @property
    def shared(self) -> list[Tensor]:
        return weights(self.trunk)


def make(method: str, **options: Any) -> Balancer:
    if "seed" in accepted_options(method):
        options["seed"] = 0
    if create(method).requires != "losses" and method != "ntkmtl-x":
        options.setdefault("minibatches", 1)
    return Balancer(method, **options)


def backward(net: Net, balancer: Balancer, **options: Any) -> Any:
    return balancer.backward(net.losses(), features=net.z, **options)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ENTRIES])
def test_priorities_multiply_what_was_balanced(method: str) -> None:
    plain = backward(Net(), make(method)).balanced
    named = backward(Net(), make(method, priorities={"1": 10.0})).balanced
    factors = torch.tensor([1.0, 10.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(named, plain * factors / factors.mean(), **EXACT)
    listed = backward(Net(), make(method, priorities=[1, 10, 1])).balanced
    torch.testing.assert_close(listed, named, **EXACT)


@pytest.mark.parametrize("method", ENTRIES)
def test_priorities_are_refused_where_entries_are_combined(method: str) -> None:
    with pytest.raises(ValueError, match="priorities have nothing to multiply"):
        make(method, priorities=[1, 2, 3])


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "imtl-g"])
def test_priorities_reach_tasks_that_share_nothing(method: str) -> None:
    net, lone = Net(), linear(4, 1)
    losses = [*net.losses(), error(lone(net.x), data(8, 1))]
    out = make(method, priorities=[1, 1, 1, 5]).backward(losses)
    assert float(out.weights[-1]) == pytest.approx(2.5)


@pytest.mark.parametrize("method", KERNEL)
@pytest.mark.parametrize("length", ["plain", "unit", 0.3])
def test_the_combined_gradient_has_the_given_length(method: str, length: Any) -> None:
    net = Net()
    balancer = make(method, length=length, source="exact")
    out = backward(net, balancer)
    losses = Net().losses()
    own = Net()
    losses = own.losses()
    found = _norm([p.grad for p in net.shared])
    weighted = _norm(
        torch.autograd.grad(
            sum(w * m for w, m in zip(out.weights, losses, strict=True)),
            own.shared,
            retain_graph=True,
        )
    )
    assert found == pytest.approx(weighted, rel=1e-9)
    if length == 0.3:
        assert found == pytest.approx(0.3, rel=1e-6)
    if length == "plain":
        plain = _norm(torch.autograd.grad(sum(losses), own.shared))
        assert found == pytest.approx(plain, rel=1e-6)
    if length == "unit":
        for p in net.shared:
            p.grad = None
        balancer.backward([9 * m for m in _again(net)], features=net.z)
        assert _norm([p.grad for p in net.shared]) == pytest.approx(found, rel=1e-6)


def _again(net: Net) -> list[Tensor]:
    net.z = net.trunk(net.x)
    return net.losses()


def _norm(gradients: Any) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


@pytest.mark.parametrize("method", LOSSES + ENTRIES)
@pytest.mark.parametrize("length", ["plain", "unit", 2.0])
def test_length_is_refused_where_no_gradient_is_weighed(method: str, length: Any) -> None:
    with pytest.raises(ValueError, match="compares lengths of gradients"):
        make(method, length=length)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_outside_the_balance_is_added_with_weight_one(method: str, named: bool) -> None:
    if not named and (create(method).has_head_objective or create(method).requires == "kernel"):
        pytest.skip("needs features")
    if not named and method == "ntkmtl-tk":
        pytest.skip("needs features")
    options = {"features": None} if not named else {}
    plain, net = Net(), Net()
    out = plain_backward(plain, method, options)
    other = 0.7 * (net.z.square().mean() + net.trunk[0].weight.abs().sum())
    with_extra = make(method).backward(
        net.losses(), net.z if named else None, extra=other, scale=0.5
    )
    torch.testing.assert_close(with_extra.weights, out.weights, **EXACT)
    same = Net()
    added = torch.autograd.grad(
        0.7 * (same.z.square().mean() + same.trunk[0].weight.abs().sum()), same.shared
    )
    for p, q, g in zip(net.shared, plain.shared, added, strict=True):
        torch.testing.assert_close(p.grad, 0.5 * (q.grad + g), **EXACT)
    torch.testing.assert_close(with_extra.total, out.total + other.detach(), **EXACT)
    for h, k in zip(net.heads, plain.heads, strict=True):
        torch.testing.assert_close(h.weight.grad, 0.5 * k.weight.grad, **EXACT)


def plain_backward(net: Net, method: str, options: dict[str, Any]) -> Any:
    return make(method).backward(net.losses(), options.get("features", net.z))


@pytest.mark.parametrize(
    ("extra", "error_type", "words"),
    [
        (torch.ones(3, requires_grad=True), ValueError, "extra must be a scalar"),
        (1.0, TypeError, "extra must be a tensor or None"),
        ("loss", TypeError, "extra must be a tensor or None"),
        ([torch.ones((), requires_grad=True)], TypeError, "extra must be a tensor or None"),
        (torch.tensor(math.nan, requires_grad=True), FloatingPointError, "loss of task extra"),
    ],
)
def test_wrong_extra_losses(extra: Any, error_type: type[Exception], words: str) -> None:
    net = Net()
    with pytest.raises(error_type, match=words):
        make("ntkmtl-sr").backward(net.losses(), extra=extra)
    assert all(p.grad is None for p in net.shared)


def test_an_extra_loss_that_is_constant_counts_in_the_total() -> None:
    net = Net()
    out = make("ntkmtl-sr").backward(net.losses(), extra=torch.tensor(2.0, dtype=torch.float64))
    same = make("ntkmtl-sr").backward(Net().losses())
    torch.testing.assert_close(out.total, same.total + 2.0, **EXACT)
