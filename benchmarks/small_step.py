"""What balancing adds to a step, and where it goes.

    python benchmarks/small_step.py
    python benchmarks/small_step.py --network transformer --tasks 40 --turns 200

Two linear layers with k linear heads, where a step takes a millisecond, or a network of
``benchmarks/peers.py``; one thread. Plain training and NTKMTL-SR take turns; times are processor
time of the calling thread, the fifth percentile of all turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sidebyside.workloads import WORKLOADS
from torch import Tensor, nn
from torch.nn import functional

import ntkmtl
from ntkmtl.balance import _balancer, _fill, _kernel_step

SMALL = "linear"
WIDTH, BATCH = 64, 60

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("cut at the features", _kernel_step, "cut_graph"),
    ("gradients of features and heads", _kernel_step, "feature_gradients"),
    ("are the heads' gradients finite", _fill.HeadGradients, "require_finite"),
    ("kernel", _kernel_step, "representation_kernel"),
    ("eigenvalues and weights", _balancer.Balancer, "_observe"),
    ("heads' gradients, weighted, to .grad", _fill.HeadGradients, "add"),
    ("the trunk's backward pass", _kernel_step.KernelStep, "_trunk"),
    ("all of backward()", _balancer.Balancer, "backward"),
)
"""Name, where a function is, and its name there."""

Forward = Callable[[], tuple[Any, list[Tensor]]]
"""From nothing to the features and the k losses of a batch."""


def _linear(tasks: int) -> tuple[list[nn.Parameter], Forward]:
    trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))
    x = torch.randn(BATCH, WIDTH)
    targets = torch.randn(tasks, BATCH, 1)

    def forward() -> tuple[Any, list[Tensor]]:
        z = trunk(x)
        pairs = zip(heads, targets, strict=True)
        return z, [functional.mse_loss(head(z), y) for head, y in pairs]

    return [*trunk.parameters(), *heads.parameters()], forward


def _workload(network: str, tasks: int) -> tuple[list[nn.Parameter], Forward]:
    kind = WORKLOADS[network]
    workload = kind.make(tasks, kind.batch, 1.0, "cpu")

    def forward() -> tuple[Any, list[Tensor]]:
        z = workload.represent()
        return z, workload.losses(workload.predict(z))

    return list(workload.model.parameters()), forward


class Step:
    """A network, and one step's forward and backward pass."""

    def __init__(self, tasks: int, network: str = SMALL) -> None:
        torch.manual_seed(0)
        self.parameters, self.forward = (
            _linear(tasks) if network == SMALL else _workload(network, tasks)
        )
        self.balancer = ntkmtl.Balancer("ntkmtl-sr", minibatches=4)

    def _forward(self) -> tuple[Any, list[Tensor]]:
        for p in self.parameters:
            p.grad = None
        return self.forward()

    def plain(self) -> None:
        """Plain training."""
        _, losses = self._forward()
        torch.stack(losses).sum().backward()

    def balanced(self) -> None:
        """NTKMTL-SR, n = 4."""
        z, losses = self._forward()
        self.balancer.backward(losses, features=z)


def _low(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 20] * 1e6


def overhead(tasks: int, turns: int, network: str = SMALL) -> tuple[float, float]:
    """Return microseconds of a plain and of a balanced step."""
    step = Step(tasks, network)
    times: dict[str, list[float]] = {"plain": [], "balanced": []}
    for turn in range(turns + 5):
        for name, run in (("plain", step.plain), ("balanced", step.balanced)):
            start = time.thread_time()
            run()
            if turn >= 5:
                times[name].append(time.thread_time() - start)
    return _low(times["plain"]), _low(times["balanced"])


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    def wrap(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[name] += time.thread_time() - start

        return outer

    inners = [getattr(place, function) for _, place, function in PARTS]
    for (name, place, function), inner in zip(PARTS, inners, strict=True):
        setattr(place, function, wrap(name, inner))
    try:
        yield
    finally:
        for (_, place, function), inner in zip(PARTS, inners, strict=True):
            setattr(place, function, inner)


def profile(tasks: int, turns: int, network: str = SMALL) -> dict[str, float]:
    """Return microseconds that each part of a balanced step takes."""
    step = Step(tasks, network)
    found: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    with _timed(spent):
        for _ in range(turns):
            spent.clear()
            step.balanced()
            for name, seconds in spent.items():
                found[name].append(seconds)
    return {name: _low(found[name]) for name, _, _ in PARTS}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What balancing adds to a step.")
    parser.add_argument("--network", choices=[SMALL, *WORKLOADS], default=SMALL)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 3, 11, 40])
    parser.add_argument("--turns", type=int, default=1000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| k | plain step (us) | ntkmtl-sr n=4 (us) | on top, per task (us) |")
    print("| ---: | ---: | ---: | ---: |")
    for tasks in arguments.tasks:
        plain, balanced = overhead(tasks, arguments.turns, arguments.network)
        added = (balanced - plain) / tasks
        print(f"| {tasks} | {plain:.0f} | {balanced:.0f} | {added:.0f} |")
    columns = [profile(tasks, arguments.turns, arguments.network) for tasks in arguments.tasks]
    print("\n| part of a step (us) | " + " | ".join(f"k = {k}" for k in arguments.tasks) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, _, _ in PARTS:
        print(f"| {name} | " + " | ".join(f"{column[name]:.0f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
