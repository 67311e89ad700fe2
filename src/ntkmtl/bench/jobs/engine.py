"""The protocol of an engine, which runs the jobs of a queue, and how jobs are given to one.

What an engine leaves in the folders of the runs is the same for all engines, bit for bit, as long
as a run computes with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ntkmtl.bench.compute.stop_requests import stop_requests
from ntkmtl.bench.jobs.job import JobT, Outcome
from ntkmtl.bench.jobs.queue import JobLog, JobQueue

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ntkmtl.bench.jobs.reporters import Reporter

__all__ = ["Engine", "EngineError", "Runner", "run_jobs"]


class EngineError(ValueError):
    """An engine cannot be started, or has no room for a run; nothing was trained."""


class Runner(Protocol):
    """Runs the jobs of a queue; what a started engine offers."""

    def __call__(
        self, queue: JobQueue[Any], log: JobLog[Any], stop_requested: Callable[[], bool], /
    ) -> bool:
        """Run the jobs of a queue.

        Args:
            queue: Asked for the next job whenever there is room for one.
            log: Given every message of the jobs.
            stop_requested: Asked often; True stops every job at a step boundary, with a checkpoint.

        Returns:
            Whether it was stopped before all jobs had ended.
        """


class Engine(Protocol):
    """Runs jobs somewhere: in processes of this machine, or as tasks of a cluster."""

    @property
    def threads(self) -> int:
        """Threads that a run computes with, unless the user says otherwise."""

    def start(self, out: Path, say: Callable[[str], None]) -> AbstractContextManager[Runner]:
        """Return a context manager that starts the engine and ends it.

        Args:
            out: Folder of the comparison, which exists.
            say: Called with lines for the user.

        Raises:
            EngineError: It cannot be started.
        """


def run_jobs(
    jobs: Sequence[JobT],
    runner: Runner,
    reporter: Reporter,
    *,
    on_ended: Callable[[JobT, float, str], None] = lambda job, seconds, error: None,
    prepare: Callable[[JobT], JobT] = lambda job: job,
) -> Outcome[JobT]:
    """Run jobs and report their progress; the failure of one does not stop the others.

    Ctrl-C and SIGTERM stop every job at a step boundary.

    Args:
        jobs: In the order in which they are to begin, but for those that must wait for others.
        runner: A started engine.
        reporter: Receives the progress; closed at the end.
        on_ended: See :class:`JobLog`.
        prepare: See :class:`JobQueue`.
    """
    log = JobLog(jobs, reporter, on_ended)
    queue = JobQueue(jobs, log, prepare)
    try:
        with stop_requests() as requested:
            reporter.start(len(jobs), sum(job.steps for job in jobs))
            interrupted = runner(queue, log, requested)
    finally:
        reporter.close()
    return Outcome(tuple(log.finished), tuple(log.failures), interrupted)
