"""Worker process of the tests of distributed balancing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ntkmtl import Balancer

BATCH, TASKS, WIDTH = 8, 3, 6


class Net(nn.Module):
    """A small trunk with three heads, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, WIDTH), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(TASKS))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        z = self.trunk(x)
        self.features = z  # DDP may return copies
        return z, [head(z) for head in self.heads]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (B, 5) and targets (k, B, 1), with tasks of very different scales."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(TASKS, BATCH, 1, generator=generator, dtype=torch.float64)
    return x, y * torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)[:, None, None]


def network() -> Net:
    torch.manual_seed(0)
    return Net().double()


def run(
    net: nn.Module, balancer: Balancer, rows: slice, missing: int | None = None, steps: int = 2
) -> dict[str, Any]:
    """Take some steps on some rows of the data; return weights and the last gradients."""
    x, y = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    weights = []
    for _ in range(steps):
        optimizer.zero_grad()
        _, outputs = net(x[rows])
        z = getattr(net, "module", net).features
        losses: list[torch.Tensor | None] = [
            (o - t[rows]).square().mean() for o, t in zip(outputs, y, strict=True)
        ]
        if missing is not None:
            losses[missing] = None
        out = balancer.backward(losses, features=z)
        weights.append(out.weights)
        optimizer.step()
    return {
        "weights": torch.stack(weights),
        "eigenvalues": out.eigenvalues,
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    }


Case = tuple[str, dict[str, Any], int | None]


def main(rank: int, folder: str, cases: list[Case]) -> None:
    """Run every case in one process group, so that torch is imported once per process.

    Args:
        rank: 0 or 1.
        folder: Where results go, ``CASE-RANK.pt``, and where the processes meet.
        cases: Method, options, and the task that the second process has no labels for.
    """
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # They meet in a file: a port that was free a moment ago may be taken.
    meet = (Path(folder) / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    half = BATCH // 2
    rows = slice(rank * half, (rank + 1) * half)
    try:
        for number, (method, options, missing) in enumerate(cases):
            net = nn.parallel.DistributedDataParallel(
                network(), find_unused_parameters=missing is not None
            )
            # Different seeds: random methods must agree all the same.
            torch.manual_seed(100 + rank)
            balancer = Balancer(method, **options)
            try:
                result = run(net, balancer, rows, missing if rank == 1 else None)
            except ValueError as error:
                grads = [p.grad for p in net.parameters()]
                result = {"error": str(error), "grads": grads}
            torch.save(result, Path(folder) / f"{number}-{rank}.pt")
    finally:
        dist.destroy_process_group()
