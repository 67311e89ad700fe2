"""Hooks that run once ``.grad`` is filled: optimizers in the backward pass, and reductions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graph.zoo import data, linear, weights
from ntkmtl import Balancer, NonFiniteError
from ntkmtl.weighting import accepted_options

RATE = 0.1
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ntkmtl-auto", {}),
    ("ntkmtl", {"minibatches": 1}),
    ("ntkmtl", {"minibatches": 1, "weight_heads": True}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("mgda", {}),
    ("fairgrad", {"source": "representation"}),
    ("graddrop", {}),
    ("graddrop", {"source": "exact"}),
    ("moco", {}),
    ("si", {}),
]
IDS = [f"{m}-{'-'.join(f'{k}={v}' for k, v in o.items())}" for m, o in METHODS]
FORMS = ["found", "named", "hooked", "shared"]


class Net:
    """A trunk, three heads, and a loss outside the balance that reads all of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = linear(4, 5), [linear(5, 1) for _ in range(3)]
        self.x, self.y = data(6, 4), data(3, 6, 1)

    @property
    def parameters(self) -> list[Tensor]:
        return weights(self.trunk, *self.heads)

    def step(self, balancer: Balancer, form: str, outside: bool) -> Any:
        z = self.trunk(self.x).tanh()
        losses = [
            10.0**i * (head(z) - y).square().mean()
            for i, (head, y) in enumerate(zip(self.heads, self.y, strict=True))
        ]
        extra = 0.1 * sum(p.square().sum() for p in self.parameters) if outside else None
        return balancer.backward(losses, z if form == "named" else None, extra=extra)


def make(net: Net, method: str, options: dict[str, Any], form: str) -> Balancer:
    options = dict(options)
    if "seed" in accepted_options(method):
        options["seed"] = 0
    if form == "hooked":
        options["hooked"] = True
    if form == "shared":
        options["shared"] = list(net.trunk.parameters())
    return Balancer(method, **options)


def impossible(method: str, options: dict[str, Any], form: str) -> bool:
    if method in ("graddrop", "moco") and form == "hooked":
        return True
    return method == "si" and form == "shared"


@pytest.mark.parametrize("outside", [False, True], ids=["", "extra"])
@pytest.mark.parametrize("where", ["all", "trunk", "heads"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=IDS)
def test_optimizers_in_the_backward_pass(
    method: str, options: dict[str, Any], form: str, where: str, outside: bool
) -> None:
    if impossible(method, options, form):
        pytest.skip("the method refuses it")
    net, same = Net(), Net()
    balancer, plain = make(net, method, options, form), make(same, method, options, form)
    hooked = {"all": net.parameters, "trunk": weights(net.trunk), "heads": weights(*net.heads)}
    calls: list[Tensor] = []

    def hook(p: Tensor) -> None:
        calls.append(p)
        with torch.no_grad():
            p -= RATE * p.grad
        p.grad = None

    for p in hooked[where]:
        p.register_post_accumulate_grad_hook(hook)
    for count in range(1, 4):
        out, wanted = net.step(balancer, form, outside), same.step(plain, form, outside)
        torch.testing.assert_close(out.weights, wanted.weights)
        with torch.no_grad():
            for p, q in zip(net.parameters, same.parameters, strict=True):
                q -= RATE * q.grad
                if not any(p is h for h in hooked[where]):
                    p -= RATE * p.grad
                p.grad = q.grad = None
                torch.testing.assert_close(p, q)
        assert len(calls) == count * len(hooked[where])


@pytest.mark.parametrize("outside", [False, True], ids=["", "extra"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=IDS)
def test_hooks_on_the_nodes_that_fill_grad(
    method: str, options: dict[str, Any], form: str, outside: bool
) -> None:
    if impossible(method, options, form):
        pytest.skip("the method refuses it")
    net, same = Net(), Net()
    balancer, plain = make(net, method, options, form), make(same, method, options, form)
    calls, nodes = [0] * len(net.parameters), []
    for i, p in enumerate(net.parameters):

        def hook(*_: Any, i: int = i) -> None:
            calls[i] += 1

        nodes.append(p.expand_as(p).grad_fn.next_functions[0][0])  # type: ignore[union-attr]
        nodes[-1].register_hook(hook)
    for count in range(1, 4):
        net.step(balancer, form, outside)
        same.step(plain, form, outside)
        for p, q in zip(net.parameters, same.parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        assert calls == [count] * len(calls)


@pytest.mark.parametrize("form", ["found", "named", "hooked"])
@pytest.mark.parametrize("where", ["trunk", "heads"])
@pytest.mark.parametrize("method", ["ntkmtl-sr", "ls"])
def test_hooks_on_gradients_run_once_with_an_extra_loss(method: str, where: str, form: str) -> None:
    net = Net()
    seen: list[Tensor] = []
    parameter = weights(net.trunk if where == "trunk" else net.heads[1])[0]
    parameter.register_hook(lambda g: seen.append(g.clone()))
    options = {} if method == "ls" else {"minibatches": 1}
    net.step(make(net, method, options, form), form, True)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], parameter.grad)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl-sr", "graddrop"])
def test_no_hook_runs_if_a_gradient_is_not_finite(method: str, every: int) -> None:
    torch.manual_seed(0)
    trunk, heads, x = linear(4, 5), [linear(5, 1) for _ in range(2)], data(6, 4)
    options = {} if method in ("ntkmtl-auto", "graddrop") else {"minibatches": 1, "every": every}
    balancer = Balancer(method, **options)
    calls: list[Tensor] = []

    def losses(x: Tensor) -> list[Tensor]:
        v = trunk(x) - trunk.bias
        z = torch.tanh(v * v.square().sum(1, keepdim=True).sqrt() + trunk.bias)
        return [(h(z) - i).square().mean() for i, h in enumerate(heads)]

    for p in weights(trunk, *heads):
        p.register_post_accumulate_grad_hook(calls.append)
    balancer.backward(losses(x))
    count, before = len(calls), [p.grad.clone() for p in weights(trunk, *heads)]
    x = x.clone()
    x[2] = 0.0  # the gradient of the root is infinite there
    with pytest.raises(NonFiniteError):
        balancer.backward(losses(x))
    assert len(calls) == count
    for p, kept in zip(weights(trunk, *heads), before, strict=True):
        assert torch.equal(p.grad, kept)


def test_hooks_of_two_kinds() -> None:
    net = Net()
    calls: list[Any] = []
    for p in net.parameters:
        p.register_hook(lambda g: None)
        p.register_post_accumulate_grad_hook(calls.append)
    net.step(Balancer("ntkmtl-sr", minibatches=1, weight_heads=True), "found", True)
    assert len(calls) == len(net.parameters)
    before = [p.grad.clone() for p in net.parameters]
    for method, options in (
        ("ntkmtl", {"minibatches": 1, "weight_heads": False}),
        ("moco", {"hooked": False}),
        ("ntkmtl-sr", {"minibatches": 1, "hooked": False}),
    ):
        with pytest.raises(ValueError, match="hooks of one kind"):
            net.step(Balancer(method, **options), "found", False)
        for p, kept in zip(net.parameters, before, strict=True):
            assert torch.equal(p.grad, kept)


def test_the_published_preset_clips_after_the_pass() -> None:
    net = Net()
    net.trunk.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match=r"clips \.grad after the backward pass"):
        net.step(Balancer("ntkmtl", preset="published", minibatches=1), "found", False)
    assert all(p.grad is None for p in net.parameters)


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    table, heads = nn.Embedding(5, 3, sparse=True).double(), [linear(3, 1) for _ in range(2)]
    calls: list[Tensor] = []
    table.weight.register_post_accumulate_grad_hook(calls.append)
    losses = [(h(table(torch.tensor([0, 2, 2]))) - i).square().mean() for i, h in enumerate(heads)]
    out = Balancer().backward(losses)
    losses = [(h(table(torch.tensor([0, 2, 2]))) - i).square().mean() for i, h in enumerate(heads)]
    total = sum(w * loss for w, loss in zip(out.weights, losses, strict=True))
    (wanted,) = torch.autograd.grad(total, [table.weight])
    assert len(calls) == 1
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad.to_dense(), wanted.to_dense())
