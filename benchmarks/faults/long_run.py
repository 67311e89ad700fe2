"""A long run: memory and time of a step at its end against its beginning."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import replace
from pathlib import Path

import psutil

from faults import Outcome
from faults.runs import OWN_PROBLEM
from ntkmtl.bench.training import find_problem, train

__all__ = ["long_run"]

MEMORY = 8.0
"""MiB by which the process may be larger at the end than after the first tenth."""

SLOWER = 1.25
"""Largest ratio of the median step of the last tenth to that of the second."""


def long_run(steps: int, work: Path, method: str = "ntkmtl-sr") -> Outcome:
    """Train a tiny network for so many steps, and look at memory and step time along the way."""
    problem = find_problem(f"{OWN_PROBLEM}:MyProblem", {})
    epochs = -(-steps // 16)
    process = psutil.Process()
    memory: list[float] = []
    seconds: list[float] = []
    window = max(1, steps // 200)
    last = time.thread_time()

    def look(done: int, total: int) -> None:
        nonlocal last
        if done % window == 0:
            # Of this thread alone: what else the machine does is not the run's.
            now = time.thread_time()
            seconds.append((now - last) / window)
            gc.collect()
            memory.append(process.memory_info().rss / 2**20)
            last = time.thread_time()

    recipe = replace(problem.recipe, epochs=epochs, batch_size=32)
    options = {"minibatches": 2} if method == "ntkmtl-sr" else {}
    run = train(
        problem, method, 0, work, recipe=recipe, method_options=options, threads=1, progress=look
    )
    tenth = len(memory) // 10
    begun, ended = statistics.median(memory[tenth : 2 * tenth]), statistics.median(memory[-tenth:])
    early = statistics.median(seconds[tenth : 2 * tenth])
    late = statistics.median(seconds[-tenth:])
    outcome = Outcome(tried=run.result.steps)
    outcome.expect(run.result.steps >= steps, f"{run.result.steps} steps")
    outcome.expect(ended - begun < MEMORY, f"memory grew from {begun:.1f} to {ended:.1f} MiB")
    outcome.expect(late < SLOWER * early, f"a step grew from {early:.2e} to {late:.2e} s")
    outcome.notes.append(
        f"memory {begun:.1f} to {ended:.1f} MiB, "
        f"step {1e3 * early:.2f} to {1e3 * late:.2f} ms of processor time"
    )
    return outcome
