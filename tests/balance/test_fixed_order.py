"""Methods that follow gradients over steps: each entry stays that of its parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.weighting import create

METHODS = ("moco", "db-mtl", "excess-mtl")
ABSENT: tuple[tuple[int, ...], ...] = ((), (0,), (), (0, 3), (2,), ())
"""Tasks without a label, by step. Without task 0 the encoders are met the other way round."""


class Encoders(nn.Module):
    """Two encoders of equal shapes, which heads read in one order or the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(4))
        self.double()

    @property
    def shared(self) -> list[Tensor]:
        return [*self.a.parameters(), *self.b.parameters()]

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
        a, b = self.a(x).tanh(), self.b(y).tanh()
        pairs = [[a, b], [b, a], [b, a], [a, b]]
        return [
            (head(torch.cat(pair, 1)) - i).square().mean()
            for i, (head, pair) in enumerate(zip(self.heads, pairs, strict=True))
        ]


class Joined(Encoders):
    """The same, with one sigmoid over the joined outputs of all heads."""

    def losses(self, step: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
        a, b = self.a(x).tanh(), self.b(y).tanh()
        pairs = [[a, b], [b, a], [b, a], [a, b]]
        outputs = [h(torch.cat(pair, 1)) for h, pair in zip(self.heads, pairs, strict=True)]
        whole = torch.cat(outputs, 1).sigmoid()
        return [(whole[:, 2 * i : 2 * i + 2] - i).square().mean() for i in range(4)]


def labeled(losses: list[Tensor], step: int) -> list[Tensor | None]:
    return [None if i in ABSENT[step] else loss for i, loss in enumerate(losses)]


def by_hand(method: str, net: Encoders, steps: range, weighting: object = None) -> list[Tensor]:
    """Combine rows of gradients of one list of parameters, the same in every step."""
    weighting = weighting or create(method)
    weighting.prepare(4, torch.device("cpu"))
    found = []
    for step in steps:
        here = torch.tensor([i for i in range(4) if i not in ABSENT[step]])
        losses = [loss for loss in labeled(net.losses(step), step) if loss is not None]
        values = [loss.log() if method == "db-mtl" else loss for loss in losses]
        rows = [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(v, net.shared, retain_graph=True)]
            )
            for v in values
        ]
        raw = torch.stack(values).detach()
        found.append(weighting.combine(torch.stack(rows), raw, here)[0])
    return found


def run(balancer: Balancer, net: Encoders, steps: range) -> list[Tensor]:
    found = []
    for step in steps:
        net.zero_grad()
        balancer.backward(labeled(net.losses(step), step))
        found.append(torch.cat([p.grad.reshape(-1) for p in net.shared if p.grad is not None]))
    return found


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", [Encoders, Joined])
@pytest.mark.parametrize("method", METHODS)
def test_entries_follow_their_parameters(
    method: str, kind: Callable[[], Encoders], named: bool
) -> None:
    net = kind()
    balancer = Balancer(method, tasks=4, shared=net.shared if named else None)
    found = run(balancer, net, range(len(ABSENT)))
    same(found, by_hand(method, net, range(len(ABSENT))))


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("way", ["state", "copy"])
@pytest.mark.parametrize("kind", [Encoders, Joined])
@pytest.mark.parametrize("method", METHODS)
def test_and_after_loading_where_only_shapes_are_known(
    method: str, kind: Callable[[], Encoders], way: str, at: int
) -> None:
    net = kind()
    expected = by_hand(method, net, range(len(ABSENT)))
    balancer = Balancer(method, tasks=4)
    run(balancer, net, range(at))
    other = kind()  # its parameters are other objects
    if way == "copy":
        resumed = copy.deepcopy(balancer)
    else:
        resumed = Balancer(method, tasks=4, shared=other.shared[::-1] if at == 2 else None)
        resumed.load_state_dict(balancer.state_dict())
    same(run(resumed, other, range(at, len(ABSENT))), expected[at:])
    again = copy.deepcopy(resumed.state_dict())
    balancer.load_state_dict(again)  # into a Balancer that knows the parameters of another network
    run(balancer, net, range(1))


@pytest.mark.parametrize("method", METHODS)
def test_other_shared_parameters_are_an_error(method: str) -> None:
    torch.manual_seed(0)
    encoders = [nn.Linear(5, 4).double() for _ in range(2)]
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3)).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    balancer = Balancer(method, tasks=3)

    def losses(step: int) -> list[Tensor | None]:
        z = encoders[step](x).tanh()
        return [None if i == 2 - 2 * step else (heads[i](z) - i).square().mean() for i in range(3)]

    balancer.backward(losses(0))
    before = balancer.state_dict()
    for p in [*encoders[1].parameters(), *heads.parameters()]:
        p.grad = None
    with pytest.raises(ValueError, match=rf"{method} follows .* same shared parameters in every"):
        balancer.backward(losses(1))
    assert all(p.grad is None for p in [*encoders[1].parameters(), *heads.parameters()])
    after = balancer.state_dict()
    for key in before:
        if key.startswith("weighting"):
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True)
    balancer.backward(losses(0))
    both = [p for encoder in encoders for p in encoder.parameters()]
    named = Balancer(method, tasks=3, shared=both)
    for step in (0, 1, 0):
        named.backward(losses(step))


@pytest.mark.parametrize("method", ["graddrop", "trimmed-mean"])
def test_methods_that_keep_no_entries_take_any(method: str) -> None:
    torch.manual_seed(0)
    encoders = [nn.Linear(5, 4 + i).double() for i in range(2)]
    heads = [nn.ModuleList(nn.Linear(4 + i, 1) for _ in range(2)).double() for i in range(2)]
    x = torch.randn(8, 5, dtype=torch.float64)
    balancer = Balancer(method)
    for step in (0, 1, 0):
        z = encoders[step](x).tanh()
        balancer.backward([(h(z) - i).square().mean() for i, h in enumerate(heads[step])])


@pytest.mark.parametrize("method", METHODS)
def test_plain_tensors_that_are_made_anew_in_each_step(method: str) -> None:
    # A functional network, as of meta-learning: its parameters are other tensors in each step.
    net = Encoders()
    expected = by_hand(method, net, range(len(ABSENT)))
    balancer, found = Balancer(method, tasks=4), []
    for step in range(len(ABSENT)):
        plain = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
        x, y = torch.randn(
            2, 8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        a = nn.functional.linear(x, plain["a.weight"], plain["a.bias"]).tanh()
        b = nn.functional.linear(y, plain["b.weight"], plain["b.bias"]).tanh()
        losses = []
        for i, pair in enumerate([[a, b], [b, a], [b, a], [a, b]]):
            weight, bias = plain[f"heads.{i}.weight"], plain[f"heads.{i}.bias"]
            losses.append((nn.functional.linear(torch.cat(pair, 1), weight, bias) - i).square())
        balancer.backward(labeled([loss.mean() for loss in losses], step))
        shared = [plain[f"{e}.{k}"] for e in "ab" for k in ("weight", "bias")]
        found.append(torch.cat([p.grad.reshape(-1) for p in shared if p.grad is not None]))
    same(found, expected)


def test_entries_of_features_without_an_order_of_their_own() -> None:
    net = Encoders()
    balancer = Balancer("excess-mtl", tasks=4, source="representation")
    balancer.backward(labeled(net.losses(0), 0))
    balancer.backward(labeled(net.losses(2), 2))
    with pytest.raises(ValueError, match=r"excess-mtl adds up .* pass features=z"):
        balancer.backward(labeled(net.losses(1), 1))
    trunk, heads = nn.Linear(5, 4).double(), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    heads.double()
    found = []
    for given in (False, True):  # one tensor, which features=z names as well
        balancer = Balancer("excess-mtl", tasks=3, source="representation")
        for absent in (None, 0, 2):
            z = trunk(torch.ones(8, 5, dtype=torch.float64)).tanh()
            losses = [
                None if i == absent else (h(z) - i).square().mean() for i, h in enumerate(heads)
            ]
            out = balancer.backward(losses, features=z if given else None)
        found.append(out.weights)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0.0)
