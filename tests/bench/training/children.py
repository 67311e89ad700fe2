"""Trainings in processes of their own, to be killed and interrupted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from toy_problem import Toy

from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.training import Comparison, RunInterrupted, compare, train


def start(target: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """Start ``target(connection, *args)`` in a process that has torch already."""
    context = multiprocessing.get_context("forkserver")
    # torch imports the second when the first optimizer is made.
    context.set_forkserver_preload(["ntkmtl.bench.training.sweep", "torch._dynamo"])
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args))
    process.start()
    theirs.close()
    return process, ours


def wait_for_step(connection: Connection, step: int) -> int:
    """Return the first step that the process told of, once it has come to another."""
    first = done = connection.recv()
    while done < step:
        done = connection.recv()
    return int(first)


def last_word(process: BaseProcess, connection: Connection) -> Any:
    """Wait for a process to end in peace, and return what it sent last."""
    word = None
    with contextlib.suppress(EOFError):
        while True:
            word = connection.recv()
    process.join(20)
    assert process.exitcode == 0
    return word


def train_one(connection: Connection, folder: Path) -> None:
    try:
        train(
            Toy(pause=0.1),
            "ntkmtl-sr",
            0,
            folder,
            method_options={"minibatches": 2},
            threads=1,
            checkpoint_seconds=0.0,
            progress=lambda done, total: connection.send(done),
        )
    except RunInterrupted as error:
        connection.send(str(error))


class _Steps(Reporter):
    """Sends how far the run is that is furthest behind, once so many are under way."""

    def __init__(self, connection: Connection, runs: int) -> None:
        self.connection = connection
        self.runs = runs
        self.done: dict[int, int] = {}

    def run_progress(self, run: int, done: int) -> None:
        self.done[run] = done
        if len(self.done) == self.runs:
            self.connection.send(min(self.done.values()))


def compare_two(connection: Connection, out: Path, jobs: int) -> None:
    """Compare two seeds, in a process group of its own as a terminal makes one."""
    os.setsid()
    sweep = compare(
        Comparison(
            problem="toy_problem:Toy",
            methods=["ls"],
            seeds=[0, 1],
            out=out,
            jobs=jobs,
            # Slow enough for the second worker to start before the first run ends.
            problem_options={"pause": 0.25},
            single_task_baselines=False,
        ),
        reporter=_Steps(connection, jobs),
    )
    connection.send((sweep.interrupted, sweep.unfinished))
