"""Custom functions whose backward pass returns None, or other gradients when it is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graph.zoo import data, linear, weights
from ntkmtl import Balancer

# ------------------------------------------------------------------ None as a gradient


class _Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:  # type: ignore[override]
        return None


class Stopped:
    """Some tasks read one of two tensors through a function without a gradient."""

    def __init__(self, stopped: Sequence[int], everywhere: bool) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = linear(5, 7), [linear(14, 2) for _ in range(3)]
        self.x = data(8, 5)
        self.stopped, self.everywhere = stopped, everywhere
        self.parameters = weights(self.trunk, *self.heads)

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.trunk(self.x).relu(), self.trunk(self.x + 1).relu()

    def losses(self, z: Tensor, y: Tensor) -> list[Tensor]:
        losses = []
        for i, head in enumerate(self.heads):
            stop = _Stop.apply if i in self.stopped else torch.clone
            other = stop(y) if self.everywhere else y
            losses.append((head(torch.cat([stop(z), other], 1)) - i).square().mean(1))
        return losses


@pytest.mark.parametrize("stopped", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("hooked", [None, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ntkmtl-auto", {}),
        ("ntkmtl-sr", {"minibatches": 1}),
        ("ntkmtl-sr", {"minibatches": 4}),
        ("mgda", {"source": "representation"}),
        ("ntkmtl", {"minibatches": 2, "weight_heads": True}),
    ],
)
def test_none_is_a_gradient_of_zero(
    method: str,
    options: dict[str, Any],
    hooked: bool | None,
    everywhere: bool,
    stopped: tuple[int, ...],
) -> None:
    net, same = Stopped(stopped, everywhere), Stopped(stopped, everywhere)
    balancer = Balancer(method, hooked=hooked, batch_dim=0, **options)
    out = balancer.backward(net.losses(*net.tensors()))
    means = [loss.mean() for loss in same.losses(*same.tensors())]
    on_heads = out.weights if balancer.weight_heads else torch.ones(3)
    shared = weights(same.trunk)
    for part, w, own in (
        (shared, out.weights, net.parameters[:2]),
        (same.parameters[2:], on_heads, net.parameters[2:]),
    ):
        total = sum(a * b for a, b in zip(w, means, strict=True))
        wanted = torch.autograd.grad(total, part, retain_graph=True, allow_unused=True)
        for p, g in zip(own, wanted, strict=True):
            found = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(found, torch.zeros_like(p) if g is None else g)
    if method == "ntkmtl-sr" and options["minibatches"] == 1 and out.eigenvalues is not None:
        z, y = (t.detach().requires_grad_() for t in same.tensors())
        for value, loss in zip(out.eigenvalues, same.losses(z, y), strict=True):
            found = torch.autograd.grad(loss.mean(), [z, y], allow_unused=True)
            known = [g.square().sum() for g in found if g is not None]
            torch.testing.assert_close(value, sum(known, torch.zeros((), dtype=torch.float64)))


# ------------------------------------------------------------------ in place


class _InPlace(torch.autograd.Function):
    """Made in forward, scaled in place in backward, as fused losses of language models do."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        out = (z @ weight.T).sum(1)
        ctx.gz = 2 * out[:, None] * weight.sum(0) / len(z)
        ctx.gw = (2 * out[:, None] * z / len(z)).sum(0).expand_as(weight).clone()
        return out.square().mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if float(gradient) == 1.0:
            return ctx.gz, ctx.gw
        return ctx.gz.mul_(gradient), ctx.gw.mul_(gradient)


class Fused:
    """Two tasks, the first of which may end in the function."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads, self.x = linear(4, 5), [linear(5, 2) for _ in range(2)], data(6, 4)
        self.parameters = weights(self.trunk, *self.heads)

    def losses(self, fused: bool = True, factor: float = 1.0) -> list[Tensor]:
        z = self.trunk(self.x).tanh()
        first = self.heads[0].weight
        own = _InPlace.apply(z, first) if fused else (z @ first.T).sum(1).square().mean()
        return [factor * own, (self.heads[1](z) - 10).square().mean()]


METHODS = [
    ("ntkmtl-auto", {}),
    ("ntkmtl", {"minibatches": 1}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("mgda", {}),
    ("fairgrad", {}),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("why", ["scale", "factor"])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_function_that_changes_what_it_saved(
    method: str, options: dict[str, Any], why: str, late: bool
) -> None:
    net, balancer = Fused(), Balancer(method, **options)
    if late:  # the first step does not contain it, or leaves it as it is
        balancer.backward(net.losses(fused=why == "scale"))
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters]
    losses = net.losses(factor=0.5 if why == "factor" else 1.0)
    with pytest.raises(RuntimeError, match=r"custom function \(_InPlace\).*reads losses only"):
        balancer.backward(losses, scale=0.25 if why == "scale" else 1.0)
    for p, kept in zip(net.parameters, before, strict=True):
        assert (p.grad is None) == (kept is None)
        assert kept is None or torch.equal(p.grad, kept)


@pytest.mark.parametrize(("method", "options"), [*METHODS, ("ls", {})])
@pytest.mark.parametrize("hooked", [None, True])
def test_it_is_right_where_only_the_last_pass_changes_it(
    method: str, options: dict[str, Any], hooked: bool | None
) -> None:
    net, same = Fused(), Fused()
    out = Balancer(method, hooked=hooked, **options).backward(net.losses())
    total = sum(w * loss for w, loss in zip(out.weights, same.losses(False), strict=True))
    shared = weights(same.trunk)
    for p, g in zip(net.parameters, torch.autograd.grad(total, shared), strict=False):
        torch.testing.assert_close(p.grad, g)
