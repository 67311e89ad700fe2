"""What balancing adds to a step, and where it goes.

    python benchmarks/small_step.py
    python benchmarks/small_step.py --network transformer --tasks 40 --turns 200

Two linear layers with k linear heads, where a step takes a millisecond, or a network of
``benchmarks/peers.py``; one thread. Plain training, NTKMTL-SR by hand with nothing but torch
(``benchmarks/sidebyside/minimal.py``), NTKMTL-SR with the cut found from the losses and with
features named, and ``ls`` take turns; times are processor time of the calling thread, the fifth
percentile of all turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sidebyside.minimal import Network, minimal_sr_step
from sidebyside.workloads import WORKLOADS
from torch import Tensor, nn
from torch.nn import functional

import ntkmtl
from ntkmtl.balance import _balancer, _fill, _found_view, _kernel_step, _named_view, _run

SMALL = "linear"
NETWORKS = [SMALL, *(name for name, kind in WORKLOADS.items() if not kind.separate)]
WIDTH, BATCH, MINIBATCHES = 64, 60, 4

PLAIN, HAND, FOUND, NAMED, LS = (
    "plain",
    "SR by hand",
    "SR, cut found",
    "SR, features named",
    "ls",
)
CONTENDERS = (PLAIN, HAND, FOUND, NAMED, LS)

Part = tuple[str, Any, str]
"""Name, where a function is, and its name there."""


def _parts(view: type, cut: Part) -> tuple[Part, ...]:
    return (
        ("reading the losses", _balancer, "read_step"),
        ("leaves, hooks, custom functions", _balancer, "look"),
        cut,
        ("gradients of representation and heads", view, "differentiate"),
        ("length of the heads' gradients", _fill.HeadGradients, "await_finite"),
        ("kernel", _kernel_step.KernelStep, "kernel"),
        ("eigenvalues and weights", _kernel_step, "observe"),
        ("heads' gradients, weighted", _fill.HeadGradients, "weighted"),
        ("heads' gradients to .grad", _kernel_step, "add"),
        ("the shared part's backward pass", _kernel_step, "push"),
        ("all of backward()", _balancer.Balancer, "backward"),
    )


PARTS: Mapping[str, tuple[Part, ...]] = {
    FOUND: _parts(_found_view.FoundView, ("finding the cut", _run, "find_cut")),
    NAMED: _parts(_named_view.NamedView, ("cut at the features", _run, "NamedView")),
}
"""The parts of a balanced step, by contender."""


def _linear(tasks: int) -> Network:
    trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))
    x = torch.randn(BATCH, WIDTH)
    targets = torch.randn(tasks, BATCH, 1)

    def losses(z: Tensor | list[Tensor]) -> list[Tensor]:
        own = [z] * tasks if isinstance(z, Tensor) else z
        return [
            functional.mse_loss(head(z), y) for head, z, y in zip(heads, own, targets, strict=True)
        ]

    return Network(
        parameters=[*trunk.parameters(), *heads.parameters()],
        heads=[list(head.parameters()) for head in heads],
        represent=lambda: trunk(x),
        losses=losses,
    )


def _workload(network: str, tasks: int) -> Network:
    kind = WORKLOADS[network]
    workload = kind.make(tasks, kind.batch, 1.0, "cpu")
    return Network(
        parameters=list(workload.model.parameters()),
        heads=[list(head.parameters()) for head in workload.model.heads],
        represent=lambda: workload.model.represent(workload.inputs),
        losses=lambda z: workload.losses(workload.predict(z)),
    )


class Steps:
    """A network, and the forward and backward pass of one step by each contender."""

    def __init__(self, tasks: int, network: str = SMALL) -> None:
        torch.manual_seed(0)
        self.network = _linear(tasks) if network == SMALL else _workload(network, tasks)
        balancer = ntkmtl.Balancer
        self.found = balancer("ntkmtl-sr", minibatches=MINIBATCHES, batch_dim=0)
        self.named = balancer("ntkmtl-sr", minibatches=MINIBATCHES)
        self.ls = balancer("ls")
        self.of: dict[str, Callable[[], object]] = {
            PLAIN: self._plain,
            HAND: lambda: minimal_sr_step(self.network, MINIBATCHES),
            FOUND: lambda: self._balanced(self.found),
            NAMED: lambda: self._balanced(self.named, named=True),
            LS: lambda: self._balanced(self.ls),
        }

    def run(self, contender: str) -> None:
        """Run one step."""
        for p in self.network.parameters:
            p.grad = None
        self.of[contender]()

    def _plain(self) -> None:
        z = self.network.represent()
        torch.stack(self.network.losses(z)).sum().backward()

    def _balanced(self, balancer: ntkmtl.Balancer, *, named: bool = False) -> None:
        z = self.network.represent()
        losses = self.network.losses(z)
        balancer.backward(losses, features=z if named else None)


def _low(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 20] * 1e6


def step_times(tasks: int, turns: int, network: str = SMALL) -> dict[str, float]:
    """Return microseconds of a step by each contender."""
    steps = Steps(tasks, network)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(turns + 5):
        for name in CONTENDERS:
            start = time.thread_time()
            steps.run(name)
            if turn >= 5:
                times[name].append(time.thread_time() - start)
    return {name: _low(found) for name, found in times.items()}


@contextmanager
def _timed(parts: Sequence[Part], spent: dict[str, float]) -> Iterator[None]:
    def wrap(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[name] += time.thread_time() - start

        return outer

    class Timed(_named_view.NamedView):
        """A class in whose place a function would not do: others ask what is an instance."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            start = time.thread_time()
            super().__init__(*args, **kwargs)
            spent["cut at the features"] += time.thread_time() - start

    inners = [getattr(place, function) for _, place, function in parts]
    for (name, place, function), inner in zip(parts, inners, strict=True):
        setattr(place, function, Timed if isinstance(inner, type) else wrap(name, inner))
    try:
        yield
    finally:
        for (_, place, function), inner in zip(parts, inners, strict=True):
            setattr(place, function, inner)


def profile(
    tasks: int, turns: int, network: str = SMALL, contender: str = FOUND
) -> dict[str, float]:
    """Return microseconds that each part of a balanced step takes."""
    steps, parts = Steps(tasks, network), PARTS[contender]
    found: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    with _timed(parts, spent):
        for _ in range(turns):
            spent.clear()
            steps.run(contender)
            for name, seconds in spent.items():
                found[name].append(seconds)
    return {name: _low(found[name]) for name, _, _ in parts}


def _print_times(tasks: Sequence[int], turns: int, network: str) -> None:
    others = CONTENDERS[1:]
    columns = " | ".join(f"{name} (us) | ratio" for name in others)
    print(f"| k | plain (us) | {columns} |")
    print("| ---: | ---: |" + " ---: | ---: |" * len(others))
    for k in tasks:
        times = step_times(k, turns, network)
        cells = [f"{times[name]:.0f} | {times[name] / times[PLAIN]:.2f}" for name in others]
        print(f"| {k} | {times[PLAIN]:.0f} | " + " | ".join(cells) + " |")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What balancing adds to a step.")
    parser.add_argument("--network", choices=NETWORKS, default=SMALL)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 3, 11, 40])
    parser.add_argument("--turns", type=int, default=1000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    _print_times(arguments.tasks, arguments.turns, arguments.network)
    for contender, parts in PARTS.items():
        columns = [
            profile(tasks, arguments.turns, arguments.network, contender)
            for tasks in arguments.tasks
        ]
        print(f"\n| part of a step, {contender} (us) | ", end="")
        print(" | ".join(f"k = {k}" for k in arguments.tasks) + " |")
        print("| --- |" + " ---: |" * len(columns))
        for name, _, _ in parts:
            print(f"| {name} | " + " | ".join(f"{column[name]:.0f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
