"""What ``Balancer()`` costs, and how near its weights are to smoothed exact ones.

    python benchmarks/auto.py
    python benchmarks/auto.py --json docs/auto/measured.json --page docs/estimators.md
    python benchmarks/auto.py --render docs/auto/measured.json --page docs/estimators.md

Six networks, most of which have no trunk and heads. Cost: a plain network and a balanced one take
turns, step by step, on the same batches, one thread; what is compared is the mean processor time
of a step over all steps, so that rare exact kernels count in full. Accuracy: along one training
with the Balancer's weights the exact eigenvalues of every step are recorded; the truth is a
centered mean of their logarithms over 21 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from auto_study import errors, record
from auto_workloads import WORKLOADS
from sidebyside.tables import fill_page

import ntkmtl
from ntkmtl.files import write_json, write_text

SCALES = (1, 4)
"""Of the networks that are timed: steps of one or two milliseconds, and of 5 to 20."""


class Run:
    """One network in training, plain or balanced."""

    def __init__(self, name: str, scale: int, seed: int, *, balanced: bool) -> None:
        torch.manual_seed(seed)
        # Before the network, which may be compiled.
        self.balancer = ntkmtl.Balancer() if balanced else None
        self.workload = WORKLOADS[name][1](scale)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.workload.parameters, lr=self.workload.learning_rate)

    def step(self) -> float:
        """Train one step and return its seconds of processor time."""
        start = time.thread_time()
        self.optimizer.zero_grad()
        losses = self.workload.losses(self.generator)
        if self.balancer is None:
            torch.stack(losses).sum().backward()
        else:
            self.balancer.backward(losses)
        self.optimizer.step()
        return time.thread_time() - start

    @property
    def looks(self) -> int:
        """Number of kernels made so far: a change of the weights."""
        assert self.balancer is not None
        measured = self.balancer._core.memory.measured
        return -1 if measured is None else int(measured.max())


def cost(name: str, scale: int, steps: int, seed: int, warm: int = 10) -> dict[str, float]:
    """Return milliseconds of a plain and of a balanced step, means over ``steps`` steps.

    The first steps warm caches and compilers in networks of their own; the Balancer that is timed
    starts with its first step, exact kernels close to each other included. ``between`` is the mean
    over balanced steps that reused weights, ``look`` that of the others.
    """
    for balanced in (False, True):
        run = Run(name, scale, seed, balanced=balanced)
        for _ in range(warm):
            run.step()
    plain, balanced_run = (Run(name, scale, seed, balanced=b) for b in (False, True))
    times: dict[str, list[float]] = {"plain": [], "between": [], "look": []}
    for turn in range(steps):
        # Who goes first finds the caches of the other.
        for run in (plain, balanced_run) if turn % 2 else (balanced_run, plain):
            before = run.looks if run.balancer is not None else 0
            seconds = run.step()
            label = "plain"
            if run.balancer is not None:
                label = "between" if run.looks == before else "look"
            times[label].append(seconds)
    balanced_times = times["between"] + times["look"]
    means = {label: statistics.fmean(v) * 1e3 for label, v in times.items() if v}
    return {**means, "balanced": statistics.fmean(balanced_times) * 1e3}


def costs(name: str, scale: int, steps: int, repetitions: int) -> dict[str, float]:
    """Return the median of the cost over several repetitions, and its lowest and highest."""
    found = [cost(name, scale, steps, seed) for seed in range(repetitions)]
    ratios = sorted(f["balanced"] / f["plain"] for f in found)
    return {
        "scale": scale,
        "plain_ms": statistics.median(f["plain"] for f in found),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "between": statistics.median(f.get("between", f["balanced"]) / f["plain"] for f in found),
        "look": statistics.median(f["look"] / f["plain"] for f in found),
    }


def measure(name: str, steps: int, repetitions: int, seeds: int) -> dict[str, Any]:
    """Return cost and errors on one network."""
    # Not the seeds 0 and 1, along which the decay and the schedule were chosen.
    studies = [errors(record(name, steps, seed)) for seed in range(3, 3 + seeds)]
    labels = studies[0]["errors"]
    return {
        "title": WORKLOADS[name][0],
        "tasks": studies[0]["tasks"],
        "period": studies[0]["period"],
        "costs": [costs(name, scale, steps, repetitions) for scale in SCALES],
        "errors": {label: [study["errors"][label] for study in studies] for label in labels},
    }


def table(report: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    facts, cases = report["facts"], report["cases"].values()
    lines = [
        f"Measured on {facts['date']}, {facts['machine']}, one thread of a machine of "
        f"{facts['cores']} cores that other jobs shared, torch {facts['torch']}. Cost: median of "
        f"{facts['repetitions']} repetitions (lowest to highest), each the mean over "
        f"{facts['steps']} steps. Errors: means over {facts['seeds']} seeds.",
        "",
        "| network | k | plain step (ms) | `Balancer()` / plain | between looks | a look |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        for c in case["costs"]:
            title = case["title"] + ("" if c["scale"] == 1 else ", larger")
            lines.append(
                f"| {title} | {case['tasks']} | {c['plain_ms']:.2f} | {c['ratio']:.3f} "
                f"({c['low']:.3f} to {c['high']:.3f}) | {c['between']:.2f} | {c['look']:.2f} |"
            )
    labels = list(next(iter(cases))["errors"])
    lines += [
        "",
        f"| network | {' | '.join(labels)} |",
        f"| --- |{' ---: |' * len(labels)}",
    ]
    for case in cases:
        cells = []
        for label in labels:
            values = [v for v in case["errors"][label] if v is not None]
            cells.append(f"{statistics.mean(values):.3f}" if values else "none")
        lines.append(f"| {case['title']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost and accuracy of Balancer().")
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--steps", type=int, default=400)
    add("--repetitions", type=int, default=5, help="of the timing")
    add("--seeds", type=int, default=2, help="of the trainings whose weights are compared")
    add("--json", type=Path, help="where the numbers go")
    add("--page", type=Path, help="the page whose marked part is filled")
    add("--render", type=Path, help="numbers of an earlier run: measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.render is not None:
        report = json.loads(arguments.render.read_text("utf-8"))
    else:
        torch.set_num_threads(1)
        report = {
            "facts": {
                "date": datetime.now(timezone.utc).date().isoformat(),
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "steps": arguments.steps,
                "repetitions": arguments.repetitions,
                "seeds": arguments.seeds,
            },
            "cases": {
                name: measure(name, arguments.steps, arguments.repetitions, arguments.seeds)
                for name in arguments.workloads
            },
        }
    if arguments.json is not None:
        write_json(arguments.json, report)
    text = table(report)
    if arguments.page is None:
        print(text)
    else:
        write_text(arguments.page, fill_page(arguments.page.read_text("utf-8"), text))


if __name__ == "__main__":
    main()
