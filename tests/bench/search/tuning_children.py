"""A tuning in a process of its own, to be killed."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.search import Search, tune
from ntkmtl.bench.training import Comparison


def tune_two(connection: Connection, out: Path) -> None:
    """Tune two methods, telling how many steps of all runs are done."""
    steps: dict[tuple[int, int], int] = {}
    parts = iter(range(9))

    class Count(Reporter):
        def __init__(self) -> None:
            self.part = next(parts)

        def run_progress(self, run: int, done: int) -> None:
            steps[self.part, run] = done
            connection.send(sum(steps.values()))

        def run_finished(self, run: int, seconds: float) -> None:
            steps[self.part, run] = 6

    tune(
        Search(
            Comparison(
                problem="toy_problem:Toy",
                methods=["ls", "dwa"],
                seeds=[0],
                out=out,
                epochs=1,
                problem_options={"pause": 0.1},
                checkpoint_seconds=0.0,
            ),
            trials=3,
        ),
        reporter=Count,
    )
