"""The Balancer: features that the user passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balance.small_network import close, gradients, inputs, losses_of, network
from ntkmtl import Balancer


def plainly(
    weights: Tensor, form: Callable[[nn.ModuleList, Tensor], list[Tensor]], prepare: Any
) -> tuple[list[Tensor | None], Tensor | None]:
    trunk, heads = network()
    z = trunk(inputs())
    prepare(z)
    total = sum(w * loss for w, loss in zip(weights.tolist(), form(heads, z), strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    return gradients(trunk, heads), z.grad if z.retains_grad else None


def sharing(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    """Every head reads z through an operation that all share."""
    return losses_of(heads, z * 1.5)


def test_a_path_around_the_features_may_appear_later() -> None:
    balancer = Balancer("ntkmtl-sr", minibatches=2)
    trunk, heads = network(2)
    extra = nn.Parameter(torch.full((6,), 0.3, dtype=torch.float64))
    for step in range(2):
        z = trunk(inputs()) + (extra if step else 0.0)
        first = (heads[0](z * (1 + extra)) - 1).square().mean()
        losses = [first, 5 * (heads[1](z) - 2).square().mean()]
        if step == 0:
            balancer.backward(losses, features=z)
            continue
        with pytest.raises(ValueError, match=r"task 0 reaches a parameter.*shape \(6,\)"):
            balancer.backward(losses, features=z)


@pytest.mark.parametrize("form", [losses_of, sharing])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "mgda"])
@pytest.mark.parametrize(
    "prepare", [lambda z: z.register_hook(lambda g: 0.1 * g), lambda z: z.retain_grad()]
)
def test_hooks_on_the_features_act_as_in_plain_training(
    form: Any, method: str, prepare: Any
) -> None:
    trunk, heads = network()
    z = trunk(inputs())
    prepare(z)
    options = {"minibatches": 2} if method == "ntkmtl-sr" else {}
    out = Balancer(method, weight_heads=True, **options).backward(form(heads, z), features=z)
    expected, retained = plainly(out.weights, form, prepare)
    close(gradients(trunk, heads), expected)
    if retained is not None:
        assert z.grad is not None
        torch.testing.assert_close(z.grad, retained, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("once", [False, True])
def test_a_feature_computed_from_another_counts_its_direct_path_only(once: bool) -> None:
    """By hand: d loss / d f with c held, whether or not the heads share the operation on both."""
    torch.manual_seed(0)
    a, b = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(3)).double()
    f = a(inputs()).tanh()
    c = (3 * b(f)).tanh()
    joined = torch.cat([f, c], 1) if once else None
    losses = [
        (head(torch.cat([f, c], 1) if joined is None else joined) - i).square().mean()
        for i, head in enumerate(heads)
    ]
    found = Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=(f, c)).eigenvalues
    held = torch.cat([f, c], 1).detach().requires_grad_()
    expected = [
        torch.autograd.grad((head(held) - i).square().mean(), held)[0].square().sum()
        for i, head in enumerate(heads)
    ]
    assert found is not None
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("form", ["list", "none in a dict", "left out of the dict"])
def test_a_task_without_a_batch_needs_no_features(form: str) -> None:
    found = []
    for absent in (False, True):
        trunk, heads = network()
        z = {name: trunk(inputs(rows)) for name, rows in (("a", 8), ("b", 12))}
        own: dict[str, Tensor | None] = {
            name: (head(z[name]) - 1).square().mean()
            for name, head in zip("ab", heads, strict=False)
        }
        features: Any = dict(z)
        if absent:
            own["c"] = None
            if form == "list":
                features = [z["a"], z["b"], None]
            elif form == "none in a dict":
                features = {**z, "c": None}
        names = ["a", "b", "c"] if absent else ["a", "b"]
        balancer = Balancer("ntkmtl-sr", minibatches=4, tasks=names)
        losses: Any = list(own.values()) if form == "list" else own
        if not absent and form == "list":
            features = [z["a"], z["b"]]
        out = balancer.backward(losses, features=features)
        found.append((out.weights[:2], gradients(trunk, heads)))
        if absent:
            assert float(out.weights[2]) == 0.0
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0.0)
    close(found[1][1], found[0][1])


def test_a_task_with_a_batch_needs_its_features() -> None:
    trunk, heads = network()
    z = trunk(inputs())
    losses = dict(zip("abc", losses_of(heads, z), strict=True))
    with pytest.raises(ValueError, match="features are given for"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses, features={"a": z, "b": z})
