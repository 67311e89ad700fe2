"""Schedules and decays of ``source="auto"``, tried on exact eigenvalues that were recorded before.

    python benchmarks/auto_schedules.py

Records exact eigenvalues of every step along trainings of the networks of ``benchmarks/auto.py``,
and computes what rare ones, averaged in logarithms, would have been.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence

import torch
from auto_study import log_weights, record, smoothed
from auto_workloads import WORKLOADS
from torch import Tensor

from ntkmtl.balance._memory import Averages

__all__ = ["averaged", "looks"]

DECAYS = (0.3, 0.5, 0.7, 0.8, 0.9)


def looks(steps: int, longest: int, growth: float) -> list[int]:
    """Return the steps that make an exact kernel.

    Example:
        >>> looks(40, 14, 1.5)
        [0, 1, 3, 6, 11, 19, 31]
    """
    found, step, gap = [], 0, 0
    while step < steps:
        found.append(step)
        gap = min(longest, max(1, math.ceil(growth * gap)))
        step += gap
    return found


def averaged(logs: Tensor, at: Sequence[int], decay: float) -> Tensor:
    """Return, for each step, the moving average of the looks so far; logarithms, (steps, k)."""
    steps, tasks = logs.shape
    averages, everyone, seen, found = Averages(tasks, decay), torch.arange(tasks), set(at), []
    for step in range(steps):
        if step in seen:
            averages.add(logs[step].exp(), everyone)
        found.append(averages.values().log())
    return torch.stack(found)


def _error(logs: Tensor, estimate: Tensor, steps: int) -> float:
    difference = log_weights(estimate) - log_weights(smoothed(logs))
    return float(difference[:steps].square().mean().sqrt())


def _row(label: str, values: Sequence[float]) -> str:
    return f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Schedules of source='auto', tried on records.")
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--steps", type=int, default=600)
    add("--counted", type=int, default=400, help="steps whose errors count")
    add("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    logs = {
        name: [record(name, arguments.steps, seed)["exact"] for seed in range(arguments.seeds)]
        for name in arguments.workloads
    }

    def errors(price: float | None, growth: float = 1.0, decay: float = 0.0) -> list[float]:
        found = []
        for records in logs.values():
            own = []
            for exact in records:
                estimate = exact
                if price is not None:
                    at = looks(len(exact), math.ceil(price * exact.shape[1]), growth)
                    estimate = averaged(exact, at, decay)
                own.append(_error(exact, estimate, arguments.counted))
            found.append(statistics.fmean(own))
        return found

    print("| | " + " | ".join(WORKLOADS[name][0] for name in logs) + " |")
    print("| --- |" + " ---: |" * len(logs))
    print(_row("one step's exact kernel", errors(None)))
    for price in (7.0, 10.0, 14.0):
        for growth in (1.5, 2.0):
            for decay in DECAYS:
                label = f"growth {growth:g}, decay {decay:g}, one in {price:g} k"
                print(_row(label, errors(price, growth, decay)))


if __name__ == "__main__":
    main()
