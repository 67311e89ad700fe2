"""Fail where a step has become dearer than it was.

    python benchmarks/guard.py
    python benchmarks/guard.py --write ratios.json
    python benchmarks/guard.py --against ratios.json

Plain training and ``ls``, ``ntkmtl-sr`` and ``ntkmtl-auto`` take turns on two networks, in blocks
of steps, so that the rare exact steps of ``ntkmtl-auto`` are in each block. Times are
processor time of the calling thread; a ratio is that of the fast blocks, the tenth percentile of
all turns, which others on the machine slow least. What is dearer than kept by more than the
tolerance is measured again, up to ``--retries`` times, and its smallest ratio counts.

Ratios depend on processor and versions. ``benchmarks/guard.json`` holds those of the machine named
in it; on another machine measure the earlier commit first, as .github/workflows/ci.yml does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from small_step import SMALL, _linear, _workload

import ntkmtl
from ntkmtl.bench.compute.environment import hardware, versions
from ntkmtl.files import parse_json, read_bytes, write_json

KEPT = Path(__file__).with_name("guard.json")
TOLERANCE = 0.10
BLOCK, WARM_UP = 28, 60
"""Steps of a block, and steps after which ``ntkmtl-auto`` looks at a steady pace."""

PLAIN = "plain"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ls": {},
    "ntkmtl-sr": {"minibatches": 4, "batch_dim": 0},
    "ntkmtl-auto": {"minibatches": 4, "batch_dim": 0},
}
NETWORKS: Mapping[str, tuple[str, int, int]] = {
    "linear, 3 tasks": (SMALL, 3, 80),
    "transformer, 3 tasks": ("transformer", 3, 7),
}
"""Kind of network, tasks and turns."""

Ratios = dict[str, dict[str, float]]
"""Time of a step over that of plain training, by network and method."""


def steps_of(network: str) -> dict[str, Callable[[], object]]:
    """Return one step of plain training and of each method on a network.

    Args:
        network: A key of :data:`NETWORKS`.
    """
    kind, tasks, _ = NETWORKS[network]

    def step(method: str) -> Callable[[], object]:
        torch.manual_seed(0)
        made = _linear(tasks) if kind == SMALL else _workload(kind, tasks)
        balancer = None if method == PLAIN else ntkmtl.Balancer(method, **METHODS[method])

        def run() -> None:
            for p in made.parameters:
                p.grad = None
            losses = made.losses(made.represent())
            if balancer is None:
                torch.stack(losses).sum().backward()
            else:
                balancer.backward(losses)

        return run

    return {method: step(method) for method in (PLAIN, *METHODS)}


def _seconds(step: Callable[[], object], count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        step()
    return time.thread_time() - start


def ratios_of(
    steps: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    block: int = BLOCK,
    warm_up: int = WARM_UP,
) -> dict[str, float]:
    """Return the time of each method's step over that of plain training.

    Args:
        steps: A step of each, :data:`PLAIN` among them.
        turns: Blocks of each.
        block: Steps of a block.
        warm_up: Steps of each that are not measured.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for step in steps.values():
        _seconds(step, warm_up)
    for turn in range(turns):
        # Who comes first in a turn may be slowed by what ran before it.
        for name in names if turn % 2 else reversed(names):
            times[name].append(_seconds(steps[name], block))
    low = {name: sorted(found)[len(found) // 10] for name, found in times.items()}
    return {name: low[name] / low[PLAIN] for name in names if name != PLAIN}


def measure(networks: Sequence[str] = tuple(NETWORKS)) -> Ratios:
    """Return the ratios of all methods on some networks."""
    return {network: ratios_of(steps_of(network), NETWORKS[network][2]) for network in networks}


def dearer(kept: Ratios, found: Ratios, tolerance: float) -> list[tuple[str, str]]:
    """Return the networks and methods whose step has become dearer.

    Args:
        kept: The ratios that were.
        found: The ratios that are.
        tolerance: Relative growth that is borne.

    Raises:
        SystemExit: A network or method that was measured has no kept ratio.
    """
    said = []
    for network, methods in found.items():
        for method, ratio in methods.items():
            before = kept.get(network, {}).get(method)
            if before is None:
                raise SystemExit(f"no ratio of {method} on {network} is kept; pass --write")
            if ratio > before * (1 + tolerance):
                said.append((network, method))
    return said


def settled(
    kept: Ratios,
    tolerance: float,
    retries: int,
    measured: Callable[[Sequence[str]], Ratios] = measure,
) -> Ratios:
    """Return ratios, measured again where they are dearer than kept; the smallest counts.

    Args:
        kept: The ratios that were.
        tolerance: Relative growth that is borne.
        retries: How often to measure again.
        measured: Measures some networks.
    """
    found = measured(tuple(NETWORKS))
    for _ in range(retries):
        again = list(dict.fromkeys(network for network, _ in dearer(kept, found, tolerance)))
        if not again:
            break
        found = _smaller(found, measured(again))
    return found


def _smaller(one: Ratios, other: Ratios) -> Ratios:
    """Return the smaller of two ratios, where both were measured."""
    return {
        network: {
            method: min(ratio, other.get(network, methods)[method])
            for method, ratio in methods.items()
        }
        for network, methods in one.items()
    }


def _print(kept: Ratios, found: Ratios, tolerance: float) -> None:
    worse = dearer(kept, found, tolerance)
    for network, methods in found.items():
        for method, ratio in methods.items():
            before = kept[network][method]
            said = "  DEARER" if (network, method) in worse else ""
            print(f"{network:24} {method:12} {before:5.2f} -> {ratio:5.2f}{said}")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare ratios with those that are kept; return 1 if a step has become dearer."""
    parser = argparse.ArgumentParser(description="Fail where a step has become dearer.")
    parser.add_argument("--against", type=Path, default=KEPT, help="ratios to compare with")
    parser.add_argument("--write", type=Path, help="measure, write the ratios here, and end")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--retries", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts = {**hardware(threads=1), **versions()}
    if arguments.write is not None:
        ratios = measure()
        # What a busy machine adds goes into neither of the two sides of a comparison.
        for _ in range(arguments.retries):
            ratios = _smaller(ratios, measure())
        write_json(arguments.write, {"measured_on": facts, "ratios": ratios})
        print(json.dumps(ratios, indent=2))
        return 0
    content = parse_json(read_bytes(arguments.against))
    if content["measured_on"] != facts:
        print(f"{arguments.against} was measured on another machine or with other versions")
    kept: Ratios = content["ratios"]
    found = settled(kept, arguments.tolerance, arguments.retries)
    _print(kept, found, arguments.tolerance)
    return 1 if dearer(kept, found, arguments.tolerance) else 0


if __name__ == "__main__":
    sys.exit(main())
