"""ConsMTL: heads that also minimize an objective of their gradients to the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, ExtendedNTK, NonFiniteError, branch
from ntkmtl.weighting import create

EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Case:
    """A trunk and three heads, one of which is not linear and one of which has no bias."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
        self.heads = nn.ModuleList(
            [
                nn.Linear(5, 1),
                nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)),
                nn.Linear(5, 1, bias=False),
            ]
        ).double()
        self.x = torch.randn(6, 3).double()
        self.y = torch.randn(3, 6, 1).double()

    def losses(self, views: Any) -> list[Tensor]:
        return [
            (head(z) - t).square().mean()
            for head, z, t in zip(self.heads, views, self.y, strict=True)
        ]


def by_hand(strength: float, bound: float = 0.1) -> tuple[Case, list[Tensor], Tensor]:
    """Gradients of trunk and heads, step by step as the method is written down."""
    case = Case()
    z = case.trunk(case.x)
    losses = case.losses([z] * 3)
    shared = list(case.trunk.parameters())
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(x, shared, retain_graph=True)])
        for x in losses
    ]
    matrix = torch.stack(rows)
    weights = create("fairgrad", alpha=2.0)(ExtendedNTK((matrix @ matrix.T).view(3, 1, 3, 1)))
    flat = weights @ matrix
    trunk = [
        part.view_as(p)
        for part, p in zip(flat.split([p.numel() for p in shared]), shared, strict=True)
    ]
    deltas = [torch.autograd.grad(x, z, create_graph=True)[0] for x in losses]
    joint = sum(w * d.detach() for w, d in zip(weights, deltas, strict=True))
    on_heads: list[Tensor] = []
    for loss, delta, head in zip(losses, deltas, case.heads, strict=True):
        parameters = list(head.parameters())
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        extra = -strength * (delta * joint).sum()
        second = torch.autograd.grad(extra, parameters, retain_graph=True, allow_unused=True)
        second = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, second, strict=True)
        ]
        length = sum(g.square().sum() for g in first).sqrt()
        other = sum(g.square().sum() for g in second).sqrt()
        factor = min(1.0, float(bound * length / other))
        on_heads += [g + factor * h for g, h in zip(first, second, strict=True)]
    return case, trunk + on_heads, weights


@pytest.mark.parametrize("form", ["tensor", "branch"])
@pytest.mark.parametrize("strength", [1e-4, 1.0, 50.0])
def test_gradients_of_trunk_and_heads(strength: float, form: str) -> None:
    _, expected, weights = by_hand(strength)
    case = Case()
    z = case.trunk(case.x)
    given = branch(z, 3) if form == "branch" else z
    views = given if form == "branch" else [z] * 3
    out = Balancer("consmtl", strength=strength).backward(case.losses(views), features=given)
    torch.testing.assert_close(out.weights, weights, **EXACT)
    parameters = [*case.trunk.parameters(), *case.heads.parameters()]
    for p, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)


def test_the_bound_has_an_effect_only_if_it_is_exceeded() -> None:
    # lambda = 1e-4 is far inside the bound, lambda = 50 is held by it: both branches were tested.
    inner, outer = by_hand(1e-4, bound=0.1)[1], by_hand(1e-4, bound=1e9)[1]
    assert all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))
    inner, outer = by_hand(50.0, bound=0.1)[1], by_hand(50.0, bound=1e9)[1]
    assert not all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))


def test_heads_turn_the_gradients_towards_each_other() -> None:
    """Its purpose: guided heads agree better after their step than unguided ones."""

    def agreement(method: str, **options: Any) -> float:
        case = Case()
        z = case.trunk(case.x)
        Balancer(method, **options).backward(case.losses([z] * 3), features=z)
        with torch.no_grad():
            for p in case.heads.parameters():
                p -= 1e-3 * p.grad
        z = case.trunk(case.x).detach().requires_grad_()
        own = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in case.losses([z] * 3)]
        _, _, weights = by_hand(1.0)
        joint = sum(w * g for w, g in zip(weights, own, strict=True))
        return sum(float((g * joint).sum()) for g in own)

    assert agreement("consmtl", bound=1.0, strength=50.0) > agreement("fairgrad")


def test_one_representation_per_task() -> None:
    grads = []
    for separate in (False, True):
        case = Case()
        z = case.trunk(case.x)
        views: Any = [1.0 * z for _ in range(3)] if separate else branch(z, 3)
        Balancer("consmtl").backward(case.losses(views), features=views)
        grads.append([p.grad for p in (*case.trunk.parameters(), *case.heads.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_representations_of_several_shapes_are_refused() -> None:
    trunk, heads = nn.Linear(3, 4), [nn.Linear(2, 1), nn.Linear(4, 1)]
    z = trunk(torch.randn(5, 3))
    own = [z[:, :2] * 1.0, z * 1.0]
    losses = [h(v).square().mean() for h, v in zip(heads, own, strict=True)]
    with pytest.raises(ValueError, match=r"shapes \[\(5, 2\), \(5, 4\)\]"):
        Balancer("consmtl").backward(losses, features=own)
    assert trunk.weight.grad is None


def test_needs_features() -> None:
    case = Case()
    losses = case.losses([case.trunk(case.x)] * 3)
    balancer = Balancer("consmtl", shared=case.trunk.parameters())
    with pytest.raises(ValueError, match="consmtl needs the features that part trunk and heads"):
        balancer.backward(losses)


def test_second_derivatives_that_are_not_finite_change_nothing() -> None:
    def losses(z: Tensor) -> list[Tensor]:
        # u ** 1.5 has a finite first and an infinite second derivative at u = 0.
        return [(head(z) * 0.0).abs().pow(1.5).mean() + head(z).square().mean(), z.square().mean()]

    trunk, head = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    x = torch.randn(5, 3).double()
    z = trunk(x)
    with pytest.raises(NonFiniteError, match="gradient of task a"):
        Balancer("consmtl", tasks=["a", "b"]).backward(losses(z), features=z)
    assert all(p.grad is None for p in (*trunk.parameters(), *head.parameters()))
    z = trunk(x)
    Balancer("fairgrad").backward(losses(z), features=z)  # the first derivatives are finite


def test_weights_are_kept_between_kernels() -> None:
    balancer = Balancer("consmtl", every=2)
    found = []
    for _ in range(2):
        case = Case()
        z = case.trunk(case.x)
        out = balancer.backward(case.losses([z] * 3), features=z)
        found.append((out.weights, [p.grad for p in case.heads.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
