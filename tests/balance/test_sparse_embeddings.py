"""Embeddings with sparse gradients, in heads and trunk: the same results as with dense ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, NonFiniteError
from ntkmtl.weighting import accepted_options, create, names, spec

METHODS = [name for name in names() if name != "stl"]
TASKS, BATCH, WORDS, WIDTH = 3, 7, 9, 6


class Net(nn.Module):
    def __init__(self, below: bool, above: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH, sparse=below)
        self.bags = nn.EmbeddingBag(WORDS, WIDTH, sparse=below, mode="sum")
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(TASKS))
        self.biases = nn.ModuleList(nn.Embedding(WORDS, 1, sparse=above) for _ in range(TASKS))
        self.double()
        self.x = torch.randn(BATCH, 4, dtype=torch.float64)
        self.index = torch.randint(0, WORDS, (BATCH, 2))
        self.y = torch.randn(TASKS, BATCH, 1, dtype=torch.float64)

    def features(self) -> Tensor:
        found = self.linear(self.x) + self.words(self.index[:, 0]) + self.bags(self.index)
        return found.tanh()

    def losses(self, z: Tensor) -> list[Tensor]:
        outputs = [
            head(z) + bias(self.index[:, 0])
            for head, bias in zip(self.heads, self.biases, strict=True)
        ]
        return [10.0**i * (o - self.y[i]).square().mean() for i, o in enumerate(outputs)]


def train(net: Net, method: str, named: bool, options: dict[str, Any]) -> Any:
    seeded = {"seed": 0} if "seed" in accepted_options(method) else {}
    balancer = Balancer(method, **options, **seeded)
    torch.manual_seed(1)
    for step in range(3):
        if step < 2:  # the last one adds to what is there
            net.zero_grad()
        z = net.features()
        out = balancer.backward(net.losses(z), features=z if named else None)
    return out.weights, [p.grad for p in net.parameters()]


def cases() -> list[Any]:
    made = []
    for method in METHODS:
        if spec(method).requires == "losses":
            made.append((method, False, {}))
            continue
        for options in ({"batch_dim": 0}, {"batch_dim": 0, "hooked": True}):
            entries = spec(method).requires == "jacobian" or create(method).has_head_objective
            if entries and "hooked" in options:
                continue
            needs_names = method == "ntkmtl-tk" or create(method).has_head_objective
            made += [
                (method, named, options) for named in (False, True) if named or not needs_names
            ]
    return made


@pytest.mark.parametrize(("below", "above"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("method", "named", "options"), cases(), ids=str)
def test_sparse_is_dense(
    method: str, named: bool, options: dict[str, Any], below: bool, above: bool
) -> None:
    weights, grads = train(Net(below, above), method, named, options)
    expected, right = train(Net(False, False), method, named, options)
    torch.testing.assert_close(weights, expected, rtol=1e-8, atol=1e-12)
    for a, b in zip(grads, right, strict=True):
        torch.testing.assert_close(a.to_dense(), b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr", "ntkmtl-auto"])
def test_gradients_of_heads_stay_sparse(method: str) -> None:
    net = Net(True, True)
    options = {} if method == "ls" else {"minibatches": 1}
    Balancer(method, **options).backward(net.losses(net.features()))
    assert all(bias.weight.grad.is_sparse for bias in net.biases)


@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-sr", "fairgrad"])
def test_a_dense_gradient_may_follow_a_sparse_one(method: str) -> None:
    found = []
    for sparse in (True, False):
        net = Net(sparse, sparse)
        weights = [table.weight for table in net.biases]
        first, *others = net.losses(net.features())
        penalty = torch.stack([weight.square().sum() for weight in weights]).sum()
        options = {} if method == "ls" else {"minibatches": 1}
        # Weights above 1e15 are checked before they are added.
        balancer = Balancer(method, priorities=[1e18, *(1.0 for _ in others)], **options)
        balancer.backward([first * 1e-18, *others], extra=penalty)
        found.append([weight.grad.to_dense() for weight in weights])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr"])
def test_a_sparse_gradient_comes_back_after_an_error(method: str) -> None:
    net = Net(True, True)
    balancer = Balancer(method, minibatches=1)
    balancer.backward(net.losses(net.features()))
    before = [p.grad.to_dense().clone() for p in net.parameters()]
    weight = net.words.weight
    root = (weight - weight.detach()).sum().sqrt()  # its slope at 0 is infinite
    with pytest.raises(NonFiniteError):
        balancer.backward(net.losses(net.features()), extra=root)
    for p, kept in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad.to_dense(), kept)
