"""A network of two losses, and processes that frameworks take for those of a launcher."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import two_processes

TASKS = ("small", "large")


class Net(nn.Module):
    """Two heads on a trunk; their targets differ in scale."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {name: head(z) for name, head in self.heads.items()}


def mean_squares(outputs: dict[str, Tensor], labels: Any) -> dict[str, Tensor | None]:
    return {
        name: (outputs[name] - label).square().mean()
        for name, label in zip(TASKS, labels, strict=True)
    }


def data(samples: int = 32) -> list[Tensor]:
    """Return x and the labels of both tasks."""
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))
    return [x, x[:, :1].tanh(), 100 * x[:, 1:2] * x[:, 2:3]]


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return make()


def launch(work: Callable[..., None], *args: Any) -> None:
    """Call ``work(rank, *args)`` in two processes that look as if torchrun had started them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two_processes.run(_in_environment, work, port, args)


def _in_environment(rank: int, work: Callable[..., None], port: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    work(rank, *args)


def both(folder: Path) -> list[Any]:
    """Return what the two processes saved."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
