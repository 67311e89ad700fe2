"""Methods that combine gradients entry by entry: mini-batches, columns of one output, hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from balance.small_network import inputs, losses_of, network
from ntkmtl import Balancer
from ntkmtl.weighting import create

METHODS = ("moco", "graddrop", "db-mtl", "trimmed-mean", "excess-mtl")


def balancer(method: str, **options: object) -> Balancer:
    seed = {"seed": 0} if method == "graddrop" else {}
    return Balancer(method, **options, **seed)  # type: ignore[arg-type]


def by_hand(method: str, losses: list[Tensor], shared: list[Tensor]) -> list[Tensor]:
    weighting = create(method, **({"seed": 0} if method == "graddrop" else {}))
    weighting.prepare(len(losses), torch.device("cpu"))
    values = [loss.log() if method == "db-mtl" else loss for loss in losses]
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, shared, retain_graph=True)])
        for v in values
    ]
    combined, _ = weighting.combine(torch.stack(rows), torch.stack(values).detach())
    sizes = [p.numel() for p in shared]
    return [g.view_as(p) for g, p in zip(combined.split(sizes), shared, strict=True)]


def same(shared: list[Tensor], expected: list[Tensor]) -> None:
    for p, g in zip(shared, expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["samples around", "samples", "means", "features"])
@pytest.mark.parametrize("method", METHODS)
def test_minibatches_are_the_whole_batch(method: str, form: str) -> None:
    if method == "graddrop" and form != "samples around":
        return  # draws by the order in which parameters are found
    trunk, heads = network()
    shared = list(trunk.parameters())
    z = trunk(inputs())
    samples = [(head(z)[:, 0] - i).square() + 0.1 for i, head in enumerate(heads)]
    if form == "samples around":
        samples = [loss + 1e-3 * trunk[0].weight.square().sum() for loss in samples]
    means = [loss.mean() for loss in samples]
    expected = by_hand(method, means, shared)
    options = {"shared": shared} if form == "samples around" else {}
    made = balancer(method, minibatches=2, **options)
    assert made.minibatches == 1
    given = means if form in ("means", "features") else samples
    made.backward(given, features=z if form == "features" else None)
    same(shared, expected)


@pytest.mark.parametrize("options", [{}, {"hooked": False}, {"named": True}])
@pytest.mark.parametrize("method", METHODS)
def test_columns_of_one_output(method: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x, t = torch.randn(8, 5).double(), torch.randn(8, 2).double()
    losses = list((net(x) - t).square().mean(0))
    shared = list(net.parameters())
    if method == "graddrop":  # draws by the order in which parameters are found
        options = {**options, "named": True}
    expected = by_hand(method, losses, shared)
    own = {k: v for k, v in options.items() if k != "named"}
    named = {"shared": shared} if options.get("named") else {}
    balancer(method, **own, **named).backward(losses)
    same(shared, expected)


@pytest.mark.parametrize("method", METHODS)
def test_errors_name_what_helps(method: str) -> None:
    trunk, heads = network()
    for options in ({"hooked": True}, {"hooked": True, "shared": trunk.parameters()}):
        with pytest.raises(ValueError, match=r"hooked=True asks for such a pass: leave it out"):
            balancer(method, **options).backward(losses_of(heads, trunk(inputs())))
    handle = heads[0].weight.register_hook(lambda g: g)
    with pytest.raises(ValueError, match=r"have hooks, which only .*: hooked=False leaves them"):
        balancer(method).backward(losses_of(heads, trunk(inputs())))
    assert all(p.grad is None for p in [*trunk.parameters(), *heads.parameters()])
    balancer(method, hooked=False).backward(losses_of(heads, trunk(inputs())))
    handle.remove()


@pytest.mark.parametrize("method", ["graddrop", "trimmed-mean", "excess-mtl"])
def test_columns_at_the_representation(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x = torch.randn(8, 5).double()
    with pytest.raises(ValueError, match=r"set source='exact', or pass features=z"):
        balancer(method, source="representation").backward(list(net(x).square().mean(0)))
    z = net[:2](x)
    balancer(method, source="representation").backward(list(net[2](z).square().mean(0)), features=z)
