"""Tasks with separate datasets and batches: the trunk runs once per task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.kernel import extended_ntk
from ntkmtl.kernel._partition import minibatch_sizes

EXACT = {"rtol": 1e-9, "atol": 1e-12}
BATCHES = (6, 9, 4)


class Case:
    def __init__(self) -> None:
        torch.manual_seed(5)
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
        self.heads = nn.ModuleList([nn.Linear(5, 1) for _ in BATCHES]).double()
        self.x = [torch.randn(b, 3).double() for b in BATCHES]
        self.y = [(i + 1.0) * torch.randn(b, 1).double() for i, b in enumerate(BATCHES)]

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        features = [self.trunk(x) for x in self.x]
        return features, [
            (head(z) - y).square().mean()
            for head, z, y in zip(self.heads, features, self.y, strict=True)
        ]

    def of_rows(self, task: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        z = self.trunk(self.x[task][start:stop])
        return z, (self.heads[task](z) - self.y[task][start:stop]).square().mean()

    def block(self, task: int, n: int, source: str) -> Tensor:
        """One task's block, mini-batch by mini-batch, each with a forward pass of its own."""
        rows = []
        start = 0
        for size in minibatch_sizes(BATCHES[task], n):
            z, loss = self.of_rows(task, start, start + size)
            start += size
            over = list(self.trunk.parameters()) if source == "exact" else [z]
            grads = torch.autograd.grad(loss, over)
            if source == "exact":
                rows.append(torch.cat([g.reshape(-1) for g in grads]))
            else:
                rows.append(grads[0].flatten())
        if source == "representation":  # blockwise: samples of two mini-batches share nothing
            return torch.diag(torch.stack([row.square().sum() for row in rows]))
        matrix = torch.stack(rows)
        return matrix @ matrix.T


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("source", ["representation", "exact"])
def test_blocks_are_those_of_each_tasks_own_minibatches(source: str, n: int) -> None:
    case = Case()
    features, losses = case.run()
    balancer = Balancer("ntkmtl-sr", source=source, minibatches=n)
    out = balancer.backward(losses, features=features)
    for i in range(3):
        torch.testing.assert_close(out.kernel.blocks[i], case.block(i, n, source), **EXACT)
    parameters = [*case.trunk.parameters(), *case.heads.parameters()]
    fresh = Case()
    total = sum(w * x for w, x in zip(out.weights, fresh.run()[1], strict=True))
    expected = torch.autograd.grad(total, [*fresh.trunk.parameters(), *fresh.heads.parameters()])
    for p, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)


def test_a_gramian_method_reads_the_exact_kernel() -> None:
    case = Case()
    features, losses = case.run()
    out = Balancer("nash-mtl").backward(losses, features=features)
    fresh = Case()
    _, losses = fresh.run()
    shared = list(fresh.trunk.parameters())
    torch.testing.assert_close(
        out.kernel.gramian(), extended_ntk(losses, parameters=shared).gramian(), **EXACT
    )


def test_a_task_without_a_batch_this_time() -> None:
    case, two = Case(), Case()
    features, losses = case.run()
    out = Balancer("ntkmtl-sr", minibatches=2).backward([*losses[:2], None], features=features)
    features, losses = two.run()
    pair = Balancer("ntkmtl-sr", minibatches=2).backward(losses[:2], features=features[:2])
    assert torch.equal(out.weights[:2], pair.weights)
    assert out.weights[2] == 0.0


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({"minibatches": 5}, {}, "found minibatches=5 for a batch of 4"),
        ({"minibatches": 2}, {"counts": torch.ones(3, 9)}, r"batches of \[4, 6, 9\] samples"),
        ({"preset": "published"}, {}, "do not all make the same number of mini-batches"),
    ],
)
def test_impossible_options(options: dict[str, Any], arguments: dict[str, Any], said: str) -> None:
    case = Case()
    features, losses = case.run()
    with pytest.raises(ValueError, match=said):
        Balancer("ntkmtl-sr", **options).backward(losses, features=features, **arguments)
    assert all(p.grad is None for p in case.trunk.parameters())


def test_features_that_all_tasks_read_must_agree() -> None:
    case = Case()
    features, losses = case.run()
    with pytest.raises(ValueError, match="must agree in the size of dimension 0"):
        Balancer("ntkmtl-sr").backward(losses, features=tuple(features))


def test_tasks_that_take_turns_are_balanced_by_the_moving_average() -> None:
    balancer = Balancer("ntkmtl-sr", minibatches=2, ema=0.7, tasks=3)
    case = Case()
    seen: dict[int, float] = {}
    for step in range(7):
        task = step % 3
        features, losses = case.run()
        # Other losses each time, so that what is kept differs from what is new.
        only = [(1 + step) * loss if i == task else None for i, loss in enumerate(losses)]
        out = balancer.backward(only, features=features)
        fresh = float(torch.linalg.eigvalsh(out.kernel.blocks[0])[-1])
        seen[task] = fresh if task not in seen else 0.7 * seen[task] + 0.3 * fresh
        mean = sum(seen.values()) / len(seen)
        expected = [0.0] * 3
        expected[task] = (mean / seen[task]) ** 0.5
        torch.testing.assert_close(
            out.weights, torch.tensor(expected, dtype=torch.float64), **EXACT
        )
    assert out.weights[0] != 1.0
