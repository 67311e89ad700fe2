"""Steps that reuse weights check gradients too, whatever ``.grad`` held before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, NonFiniteError


class _Explodes(torch.autograd.Function):
    """A finite loss whose gradient is infinite."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


def _losses(trunk: nn.Module, heads: nn.ModuleList, bad: bool) -> list[Tensor]:
    z = trunk(torch.ones(4, 3)).tanh()
    first, second = (head(z).square().mean() for head in heads)
    return [first, _Explodes.apply(second) if bad else second]


@pytest.mark.parametrize("hook", [None, "hook", "post_accumulate"])
@pytest.mark.parametrize("filled", ["none", "some", "all"])
@pytest.mark.parametrize("weight_heads", [True, False])
def test_a_gradient_that_is_not_finite_changes_no_grad(
    hook: str | None, filled: str, weight_heads: bool
) -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4)
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
    parameters = [*trunk.parameters(), *heads.parameters()]
    if hook == "hook":
        trunk.weight.register_hook(lambda g: g)
    elif hook == "post_accumulate":
        trunk.weight.register_post_accumulate_grad_hook(lambda p: None)
    balancer = Balancer("ntkmtl", every=10, weight_heads=weight_heads)
    weights = balancer.backward(_losses(trunk, heads, bad=False)).weights
    if filled != "all":
        for p in parameters if filled == "none" else parameters[:3]:
            p.grad = None
    before = [None if p.grad is None else p.grad.clone() for p in parameters]

    with pytest.raises(NonFiniteError, match="gradient"):
        balancer.backward(_losses(trunk, heads, bad=True))
    for p, kept in zip(parameters, before, strict=True):
        assert (p.grad is None) == (kept is None)
        assert kept is None or torch.equal(p.grad, kept)

    out = balancer.backward(_losses(trunk, heads, bad=False))
    assert torch.equal(out.weights, weights)
    losses = _losses(trunk, heads, bad=False)
    total = sum(w * x for w, x in zip(weights, losses, strict=True))
    added = [*torch.autograd.grad(total, list(trunk.parameters()), retain_graph=True)]
    added += torch.autograd.grad(total if weight_heads else sum(losses), list(heads.parameters()))
    for p, kept, new in zip(parameters, before, added, strict=True):
        torch.testing.assert_close(p.grad, new if kept is None else kept + new)
