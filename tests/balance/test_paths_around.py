"""Losses that reach shared parameters around the features: an error, or an exact kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graph.zoo import data, error, linear, weights
from ntkmtl import Balancer, branch

EXACT = {"rtol": 1e-9, "atol": 1e-14}


@dataclass
class Case:
    """Losses, the features that a user would name, and the parameters that are shared."""

    losses: list[Tensor]
    features: Any
    shared: list[Tensor]
    task: int
    """The task that goes around the features."""


def vae(scale: float = 1.0) -> Case:
    encoder, mean, spread, decoder = linear(5, 6), linear(6, 2), linear(6, 2), linear(2, 5)
    x = data(8, 5)
    h = encoder(x).tanh()
    a, log = mean(h), spread(h)
    z = a + (log / 2).exp() * data(8, 2)
    kl = scale * (-0.5 * (1 + log - a.square() - log.exp()).sum(1)).mean()
    return Case([error(decoder(z), x), kl], z, weights(encoder, mean, spread), 1)


def forces(head: nn.Module) -> Case:
    net, position = nn.Sequential(linear(3, 4), nn.SiLU()), data(6, 3).requires_grad_()
    z = net(position)
    energy = head(z)
    force = -torch.autograd.grad(energy.sum(), position, create_graph=True)[0]
    # The bias of the last layer has no part in the forces.
    shared = [*weights(net), *[p for p in head.parameters() if p.numel() > 1]]
    return Case([error(energy, data(6, 1)), error(force, data(6, 3))], z, shared, 1)


def finest_level() -> Case:
    low, high = nn.Conv2d(2, 3, 3, 2, 1).double(), nn.Conv2d(3, 3, 3, 2, 1).double()
    heads = [nn.Conv2d(3, 1, 1).double() for _ in range(2)]
    fine = low(data(4, 2, 8, 8)).tanh()
    coarse = high(fine).tanh()
    return Case(
        [error(heads[0](fine), data(())), error(heads[1](coarse), data(()))],
        coarse,
        weights(low),
        0,
    )


def auxiliary_head() -> Case:
    layers, heads = [linear(4, 4) for _ in range(2)], [linear(4, 1) for _ in range(3)]
    middle = layers[0](data(6, 4)).tanh()
    z = layers[1](middle).tanh()
    losses = [
        error(heads[0](z), data(6, 1)),
        error(heads[1](z), data(6, 1)),
        error(heads[2](middle), data(6, 1)),
    ]
    return Case(losses, z, weights(*layers), 2)


def load_balancing() -> Case:
    gate, parts, heads = (
        linear(4, 3),
        [linear(4, 4) for _ in range(3)],
        [linear(4, 1), linear(4, 1)],
    )
    x = data(6, 4)
    p = gate(x).softmax(-1)
    z = sum(p[:, i : i + 1] * part(x) for i, part in enumerate(parts))
    losses = [*(error(h(z), data(6, 1)) for h in heads), p.mean(0).square().sum()]
    return Case(losses, z, weights(gate, *parts), 2)


def skip_connection() -> Case:
    down, up, heads = linear(4, 6), linear(6, 3), [linear(3, 1), linear(9, 1)]
    h = down(data(6, 4)).tanh()
    z = up(h).tanh()
    losses = [error(heads[0](z), data(6, 1)), error(heads[1](torch.cat([z, h], 1)), data(6, 1))]
    return Case(losses, z, weights(down, up), 1)


def gradient_penalty() -> Case:
    trunk, heads = linear(4, 5), [linear(5, 1), linear(5, 1)]
    x = data(6, 4).requires_grad_()
    z = trunk(x).tanh()
    out = heads[1](z)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return Case([error(heads[0](z), data(6, 1)), out.mean() + penalty], z, weights(trunk), 1)


def second_view() -> Case:
    trunk, classify = linear(4, 5), linear(5, 1)
    x = data(6, 4)
    z, other = trunk(x).tanh(), trunk(x + 0.1 * data(6, 4)).tanh()
    return Case([error(classify(z), data(6, 1)), error(z, other)], z, weights(trunk), 1)


def decayed() -> Case:
    trunk, heads = linear(4, 5), [linear(5, 1), linear(5, 1)]
    z = trunk(data(6, 4)).tanh()
    losses = [error(h(z), data(6, 1)) for h in heads]
    losses[0] = losses[0] + 0.01 * trunk.weight.norm()
    return Case(losses, z, weights(trunk), 0)


def tied() -> Case:
    embed, body, classify = nn.Embedding(5, 4).double(), linear(4, 4), linear(4, 2)
    tokens = torch.tensor([0, 1, 3, 2, 4, 1])
    z = body(embed(tokens)).tanh()
    losses = [
        nn.functional.cross_entropy(z @ embed.weight.T, tokens.roll(1)),
        nn.functional.cross_entropy(classify(z), torch.tensor([0, 1, 1, 0, 1, 0])),
    ]
    return Case(losses, z, weights(embed, body), 0)


def own_pass() -> Case:
    trunk, heads = linear(4, 5), [linear(5, 1), linear(5, 1)]
    z, other = trunk(data(6, 4)).tanh(), trunk(data(4, 4)).tanh()
    return Case(
        [error(heads[0](z), data(6, 1)), error(heads[1](other), data(4, 1))], z, weights(trunk), 1
    )


CASES: dict[str, Callable[[], Case]] = {
    "VAE": vae,
    "VAE with a large factor": lambda: vae(1e4),
    "forces of a linear head": lambda: forces(linear(4, 1)),
    "forces of a deeper head": lambda: forces(nn.Sequential(linear(4, 4), nn.SiLU(), linear(4, 1))),
    "level of a pyramid": finest_level,
    "auxiliary head": auxiliary_head,
    "load balancing": load_balancing,
    "skip connection": skip_connection,
    "gradient penalty": gradient_penalty,
    "second view": second_view,
    "weight decay in a loss": decayed,
    "tied embedding": tied,
    "a task's own pass": own_pass,
}
REPRESENTATION: list[tuple[str, dict[str, Any]]] = [
    ("ntkmtl-sr", {}),
    ("ntkmtl-sr", {"minibatches": 1, "pooling": "pooled"}),
    ("ntkmtl-tk", {"minibatches": 1}),
    *((name, {"source": "representation"}) for name in ("mgda", "cagrad", "imtl-g", "nash-mtl")),
]


def make(name: str) -> Case:
    torch.manual_seed(0)
    return CASES[name]()


def rows(losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, grads, strict=True)
        found.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs])
        )
    return torch.stack(found)


@pytest.mark.parametrize(("method", "options"), REPRESENTATION)
@pytest.mark.parametrize("name", list(CASES))
def test_features_with_a_path_around_them_are_refused(
    name: str, method: str, options: dict[str, Any]
) -> None:
    case = make(name)
    with pytest.raises(
        ValueError, match=rf"the loss of task {case.task}.*parameter.*shape"
    ) as info:
        Balancer(method, **options).backward(case.losses, features=case.features)
    assert "source='auto'" in str(info.value)
    assert all(p.grad is None for p in case.shared)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "imtl-g"])
@pytest.mark.parametrize("name", list(CASES))
def test_exact_and_auto_are_right_for_any_features(name: str, method: str, named: bool) -> None:
    case = make(name)
    parameters = _leaves(case.losses)
    jacobian = rows(case.losses, parameters)
    below = _leaves([case.features]) if named else case.shared
    expected = rows(case.losses, below).square().sum(1)
    out = Balancer(method, weight_heads=True).backward(
        case.losses, features=case.features if named else None
    )
    found = out.kernel.blocks[:, 0, 0]
    torch.testing.assert_close(found, expected, **EXACT)
    filled = torch.cat(
        [
            p.grad.reshape(-1)
            if p.grad is not None
            else torch.zeros(p.numel(), dtype=torch.float64)
            for p in parameters
        ]
    )
    torch.testing.assert_close(filled, out.weights @ jacobian, **EXACT)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Parameters below some tensors, in a fixed order."""
    found: dict[Tensor, None] = {}
    stack, seen = [t.grad_fn for t in tensors], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), nn.Parameter):
            found[variable] = None
        stack += [child for child, _ in node.next_functions]
    return list(found)


@pytest.mark.parametrize(
    "name", ["VAE", "level of a pyramid", "auxiliary head", "load balancing", "skip connection"]
)
def test_without_features_the_cut_carries_everything(name: str) -> None:
    case = make(name)
    out = Balancer("ntkmtl-sr", minibatches=1).backward(case.losses)
    assert bool((out.eigenvalues > 0).all())


def test_the_factor_of_a_task_shows_in_its_weight() -> None:
    # What the task's loss is multiplied by is taken out of its weight.
    weighed = [
        Balancer("ntkmtl-sr", minibatches=1).backward(make_vae(s)).weights for s in (1.0, 1e4)
    ]
    ratio = (weighed[1][0] / weighed[1][1]) / (weighed[0][0] / weighed[0][1])
    torch.testing.assert_close(ratio, torch.tensor(1e4, dtype=torch.float64), rtol=1e-9, atol=0.0)


def make_vae(scale: float) -> list[Tensor]:
    torch.manual_seed(0)
    return vae(scale).losses


def test_levels_of_a_pyramid_as_a_tuple_or_one_for_each_task() -> None:
    """A tuple is read by all tasks; a list or a dict says which task reads which tensor, and is
    refused where a task reads another one's."""
    torch.manual_seed(0)
    low, high = linear(4, 4), linear(4, 4)
    heads = [linear(4, 1), linear(4, 1)]

    def forward() -> tuple[Tensor, Tensor, list[Tensor]]:
        fine = low(x).tanh()
        coarse = high(fine).tanh()
        return fine, coarse, [error(heads[0](fine + coarse), y), error(heads[1](coarse), y)]

    x, y = data(6, 4), data(6, 1)
    fine, coarse, losses = forward()
    leaves = [fine.detach().requires_grad_(), coarse.detach().requires_grad_()]
    expected = rows(
        [error(heads[0](leaves[0] + leaves[1]), y), error(heads[1](leaves[1]), y)], leaves
    )
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=(fine, coarse))
    torch.testing.assert_close(out.eigenvalues, expected.square().sum(1), **EXACT)
    fine, coarse, losses = forward()
    with pytest.raises(ValueError, match="task 0 also depends on the features of task 1"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=[fine, coarse])


def test_views_with_a_path_around_them_are_refused_too() -> None:
    torch.manual_seed(0)
    trunk, heads = linear(4, 5), [linear(5, 1), linear(5, 1)]
    views = branch(trunk(data(6, 4)).tanh(), 2)
    losses = [error(h(v), data(6, 1)) for h, v in zip(heads, views, strict=True)]
    losses[1] = losses[1] + trunk.bias.square().sum()
    with pytest.raises(ValueError, match="task 1 reaches a parameter of the trunk around"):
        Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=views)
