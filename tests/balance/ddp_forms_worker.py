"""Worker process of the DDP tests: every way to wrap, feed and read a model."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl import Balancer

TASKS, WIDTH, STEPS, RATE = 3, 6, 3, 1e-3
EVEN, UNEVEN = ((0, 4), (4, 8)), ((0, 5), (5, 8))


@dataclass(frozen=True)
class Form:
    """One way to train.

    Attributes:
        method: Of the Balancer.
        options: Of the Balancer.
        ddp: Options of ``DistributedDataParallel``.
        named: Which features the Balancer is given: ``"none"``, ``"inner"`` (what the heads read),
            ``"returned"`` (what the wrapped model returned) or ``"shared"`` (parameters instead).
        model: ``"whole"``, ``"losses"`` (they are computed inside), ``"trunk"`` (trunk and heads
            are wrapped one by one), ``"decay"`` (a loss reaches parameters around the model).
        rows: Rows of the batch of each process.
        missing: The task that the second process has no label for.
        micro: Micro-batches per step, all but the last under ``no_sync``.
        samples: Whether losses of single samples are passed.
        error: What the Balancer says, where it refuses.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    ddp: dict[str, Any] = field(default_factory=dict)
    named: str = "none"
    model: str = "whole"
    rows: tuple[tuple[int, int], ...] = EVEN
    missing: int | None = None
    micro: int = 1
    samples: bool = False
    error: str = ""

    def __str__(self) -> str:
        parts = [self.method, *self.ddp, self.named, self.model]
        parts += ["uneven"] if self.rows is UNEVEN else []
        parts += ["missing"] if self.missing is not None else []
        parts += [f"micro{self.micro}"] if self.micro > 1 else []
        parts += ["samples"] if self.samples else []
        return "-".join(parts)


WRAPS: list[dict[str, Any]] = [
    {},
    {"static_graph": True},
    {"find_unused_parameters": True},
    {"gradient_as_bucket_view": True},
]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ls", {}),
    ("ntkmtl-auto", {"minibatches": 1}),
    ("ntkmtl-sr", {"minibatches": 1}),
    ("ntkmtl", {"minibatches": 1, "weight_heads": True}),
    ("fairgrad", {"source": "representation", "weight_heads": True}),
    ("nash-mtl", {"source": "exact", "weight_heads": True}),
]
SR, EXACT = METHODS[2], METHODS[3]
STATIC, UNUSED = WRAPS[1], WRAPS[2]
NO_LABEL = "has no label for some task"
FORMS = [
    *(Form(*m, ddp, named) for m in METHODS for ddp in WRAPS for named in ("none", "returned")),
    *(Form(*m, ddp, "inner") for m in (SR, EXACT) for ddp in WRAPS),
    *(Form(*m, STATIC, named, "losses") for m in METHODS for named in ("none", "inner")),
    *(
        Form(*m, ddp, n, "trunk")
        for m in METHODS
        for ddp in WRAPS[:3]
        for n in ("none", "returned")
    ),
    *(Form(*m, {}, rows=UNEVEN, samples=True) for m in METHODS),
    *(Form(*m, UNUSED, "inner", rows=UNEVEN) for m in METHODS),
    *(Form(*m, UNUSED, "inner", missing=1) for m in METHODS),
    Form("ntkmtl", EXACT[1], UNUSED, "shared", missing=1),
    Form("ntkmtl-auto", {}, UNUSED, "shared", missing=1),
    Form(*SR, UNUSED, missing=1, error=NO_LABEL),
    Form(*SR, UNUSED, "shared", missing=1, error=NO_LABEL),
    Form("ntkmtl-auto", {}, UNUSED, missing=1, error=NO_LABEL),
    *(Form(*m, ddp, micro=2) for m in METHODS for ddp in (WRAPS[0], WRAPS[3])),
    Form(*EXACT, UNUSED, model="decay"),
    Form(*EXACT, STATIC, model="decay", error="both through the outputs of a model"),
    *(
        Form("ntkmtl", {}, ddp, model="decay", error="two backward passes")
        for ddp in ({}, WRAPS[3])
    ),
]


class Trunk(nn.Sequential):
    """A trunk that returns its features and something that is not a tensor."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[str, Tensor]:
        return "features", super().forward(x)


class Net(nn.Module):
    """A trunk with three heads, in float64."""

    def __init__(self, wrapped: Any, model: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk().double()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1).double() for _ in range(TASKS))
        self.model = model
        self.inner = torch.empty(0)
        self.__dict__["outer"] = self  # not a child of itself
        if model == "trunk":
            self.trunk = wrapped(self.trunk)
            self.heads = nn.ModuleList(wrapped(head) for head in self.heads)
        else:
            self.__dict__["outer"] = wrapped(self)

    def forward(self, x: Tensor, y: Tensor) -> tuple[int, Tensor, list[Tensor]]:
        _, z = self.trunk(x)
        self.inner = z
        outputs = [head(z) for head in self.heads]
        if self.model == "losses":
            outputs = self.errors(outputs, y)
        return len(x), z, outputs

    def errors(self, outputs: list[Tensor], y: Tensor, samples: bool = False) -> list[Tensor]:
        found = [(o - t).square().flatten() for o, t in zip(outputs, y, strict=True)]
        if self.model == "decay":
            found[0] = found[0] + next(self.trunk.parameters()).square().sum()
        return found if samples else [f.mean() for f in found]

    def losses(self, x: Tensor, y: Tensor, samples: bool) -> tuple[Tensor, list[Tensor]]:
        """Run the wrapped model; return the features as it returned them, and the losses."""
        _, z, outputs = self.__dict__["outer"](x, y)
        return z, outputs if self.model == "losses" else self.errors(outputs, y, samples)

    def no_sync(self) -> Any:
        outer = self.__dict__["outer"]
        return contextlib.nullcontext() if outer is self else outer.no_sync()


def data() -> tuple[Tensor, Tensor]:
    """Inputs (B, 5) and targets (k, B, 1), with tasks of very different scales."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(TASKS, 8, 1, generator=generator, dtype=torch.float64)
    return x, y * torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)[:, None, None]


def batch(form: Form, rank: int, part: int) -> tuple[Tensor, Tensor]:
    """Return the rows of one process's micro-batch."""
    x, y = data()
    start, stop = form.rows[rank]
    at = torch.arange(start, stop).chunk(form.micro)[part]
    return x[at], y[:, at]


def train(form: Form, rank: int) -> dict[str, Any]:
    def wrapped(module: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(module, **form.ddp)

    net = Net(wrapped, form.model)
    options = dict(form.options)
    if form.named == "shared":
        options["shared"] = list(net.trunk.parameters())
    balancer = Balancer(form.method, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    weights = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in range(form.micro):
            last = part == form.micro - 1
            with contextlib.nullcontext() if last else net.no_sync():
                z, found = net.losses(*batch(form, rank, part), form.samples)
                losses: list[Tensor | None] = list(found)
                if form.missing is not None and rank == 1:
                    losses[form.missing] = None
                features = {"inner": net.inner, "returned": z}.get(form.named)
                weights.append(balancer.backward(losses, features=features).weights)
        optimizer.step()
    return {
        "weights": torch.stack(weights),
        "parameters": [p.detach().clone() for p in net.parameters()],
    }


def main(rank: int, folder: str) -> None:
    """Run every form in one process group; results go to ``NUMBER-RANK.pt``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meet = (Path(folder) / "meet").as_uri()
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=wait)
    try:
        for number, form in enumerate(FORMS):
            try:
                result = train(form, rank)
            except ValueError as error:
                result = {"error": str(error)}
            torch.save(result, Path(folder) / f"{number}-{rank}.pt")
    finally:
        dist.destroy_process_group()
