"""A comparison on a Ray of its own, in a process of its own, to be interrupted."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from ntkmtl.bench.jobs.ray_engine import RayEngine
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.training import Comparison, compare


def listening() -> set[str]:
    """Return the addresses at which this process and those below it listen."""
    own = psutil.Process()
    return {
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def names() -> set[str]:
    """Return the names of the processes below this one."""
    return {" ".join(p.cmdline()) or p.name() for p in psutil.Process().children(recursive=True)}


class _Steps(Reporter):
    """Sends the third step, with what listens then: looking at all processes takes time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sent = False

    def run_progress(self, run: int, done: int) -> None:
        if done >= 3 and not self.sent:
            self.sent = True
            self.connection.send(("step", done, listening(), names()))


def compare_on_ray(connection: Connection, out: Path) -> None:
    """Train one run, in a process group of its own as a terminal makes one."""
    os.setsid()
    before = set(Path("/tmp").glob("ntkmtl-ray-*"))
    sweep = compare(
        Comparison(
            problem="toy_problem:Toy",
            methods=["ntkmtl-sr", "uw"],
            seeds=[0, 1],
            out=out,
            problem_options={"pause": 1.0},
            single_task_baselines=False,
        ),
        reporter=_Steps(connection),
        engine=RayEngine(jobs=1),
    )
    left = sorted(set(Path("/tmp").glob("ntkmtl-ray-*")) - before)
    connection.send(("end", sweep.interrupted, sweep.unfinished, names(), left))
