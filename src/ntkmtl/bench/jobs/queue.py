"""The jobs that wait to begin, and the log of those that have begun."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from ntkmtl.bench.jobs.job import DependencyError, Failure, JobT, Message
from ntkmtl.bench.runs import FAILURE, SCHEMA, RunBusyError
from ntkmtl.files import write_json

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.reporters import Reporter

__all__ = ["DIVERGENCE", "JobLog", "JobQueue"]

DIVERGENCE = ("NonFiniteError", "FloatingPointError")
"""Errors that the same settings always give; a result where settings are tried out."""


class JobLog(Generic[JobT]):
    """Receives the messages of jobs, passes them to the reporter, and keeps the outcome.

    Args:
        jobs: All jobs.
        reporter: Receives the progress.
        on_ended: Called with each job that is complete, its seconds and ``""``, and with each that
            diverged where that is a result, its seconds and the message of the error.
    """

    def __init__(
        self,
        jobs: Sequence[JobT],
        reporter: Reporter,
        on_ended: Callable[[JobT, float, str], None],
    ) -> None:
        self.reporter = reporter
        self.on_ended = on_ended
        self.finished: list[JobT] = []
        self.failures: list[Failure] = []
        self.open = {job.folder for job in jobs}
        self.failed: dict[Path, str] = {}

    def take(self, number: int, job: JobT, message: Message) -> bool:
        """Take a message; return True if it was the job's last."""
        kind, *content = message
        if kind == "step":
            self.reporter.run_progress(number, content[0])
            return False
        if kind == "note":
            self.reporter.run_note(number, content[0])
            return False
        if kind == "warning":
            self.reporter.message(f"{job.label}: {content[0]}")
            return False
        if kind == "finished":
            self.finished.append(job)
            self.on_ended(job, content[0], "")
            self.reporter.run_finished(number, content[0])
        elif kind == "stopped":
            self.reporter.run_stopped(number)
        else:
            self._fail(number, job, *content)
        if kind != "stopped":
            self.open.discard(job.folder)
        return True

    def _fail(
        self, number: int, job: JobT, error: str, message: str, trace: str, seconds: float
    ) -> None:
        if job.may_diverge and error in DIVERGENCE:
            self.finished.append(job)
            self.on_ended(job, seconds, message)
            self.reporter.run_failed(number, f"diverged: {message}")
            return
        self.failed[job.folder] = job.label
        # The folder of a busy run belongs to the process that trains it.
        if error != RunBusyError.__name__:
            message += _write_failure(job.folder, error, message, trace)
        self.failures.append(Failure(job.label, job.folder, error, message))
        self.reporter.run_failed(number, f"{error}: {message}")


def _write_failure(folder: Path, error: str, message: str, trace: str) -> str:
    """Write ``failure.json``; return what to add to the message if that is not possible."""
    content = {
        "schema": SCHEMA,
        "error": error,
        "message": message,
        "traceback": trace,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        write_json(folder / FAILURE, content)
    except OSError as unwritten:
        return f" (and {FAILURE} could not be written: {unwritten})"
    return ""


class JobQueue(Generic[JobT]):
    """The jobs that have not begun, some of which wait until others have ended.

    Args:
        jobs: All jobs, in the order in which they are to begin.
        log: The log of those that have begun.
        prepare: Called with each job just before it begins; returns the job to run. A
            ``ValueError`` or an ``OSError`` that it raises is the job's failure.
    """

    def __init__(
        self, jobs: Sequence[JobT], log: JobLog[JobT], prepare: Callable[[JobT], JobT]
    ) -> None:
        self.pending = list(enumerate(jobs))
        self.log = log
        self.prepare = prepare

    def next(self) -> tuple[int, JobT] | None:
        """Return the next job that waits for nothing, with its number; None if all of them wait.

        Jobs that cannot begin, as one that they need has failed, fail here.
        """
        place = 0
        while place < len(self.pending):
            number, job = self.pending[place]
            if not self.log.open.isdisjoint(job.after):
                place += 1
                continue
            del self.pending[place]
            self.log.reporter.run_started(number, job.label, job.steps)
            try:
                missing = [self.log.failed[f] for f in job.after if f in self.log.failed]
                if missing:
                    more = f" (and {len(missing) - 1} more like it)" if missing[1:] else ""
                    raise DependencyError(f"needs {missing[0]}, which failed{more}")
                return number, self.prepare(job)
            except (ValueError, OSError) as error:
                trace = traceback.format_exc()
                self.log.take(number, job, ("failed", type(error).__name__, str(error), trace, 0.0))
                # Jobs that waited for this one were passed over.
                place = 0
        return None
