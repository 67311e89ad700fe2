"""Jobs: what one is, how it runs and is stopped, those that wait, and the protocol of an engine.

What an engine leaves in the folders of the runs is the same for all engines, bit for bit, as long
as a run computes with the same number of threads.
"""

from __future__ import annotations

import functools
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ntkmtl.bench.compute.processes import announced, follow, is_raised_on_all_ranks, launched
from ntkmtl.bench.runs import FAILURE, SCHEMA, RunBusyError
from ntkmtl.files import write_json

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from ntkmtl.bench.jobs.reporters import Reporter

__all__ = [
    "DIVERGENCE",
    "POLL_SECONDS",
    "DependencyError",
    "Engine",
    "EngineError",
    "Failure",
    "JobLog",
    "JobProgress",
    "JobQueue",
    "JobT",
    "Message",
    "Outcome",
    "RunnableJob",
    "Runner",
    "SweepError",
    "follow_jobs",
    "handlers_kept",
    "run_here",
    "run_job",
    "run_jobs",
    "stop_requests",
]

Message = tuple[Any, ...]
"""What a job sends: its kind, then its content.

``("step", done)``, ``("note", words)``, ``("warning", text)``, and as the last one
``("finished", seconds)``, ``("stopped",)`` or ``("failed", error, message, traceback, seconds)``.
"""


class RunnableJob(Protocol):
    """One run: what a queue, an engine and a reporter need to know of it."""

    @property
    def label(self) -> str:
        """The run in a few words."""

    @property
    def folder(self) -> Path:
        """The run's folder."""

    @property
    def steps(self) -> int:
        """Number of its steps."""

    @property
    def after(self) -> tuple[Path, ...]:
        """Folders of the runs that must be complete before this one can begin."""

    @property
    def may_diverge(self) -> bool:
        """Whether a loss that becomes NaN or infinite is a result of this job, not a failure."""

    def run(
        self,
        shared: dict[str, Any],
        progress: JobProgress,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Run to the end, or until a stop is requested.

        Args:
            shared: What this process keeps from one job to the next, as problems and their data.
            progress: Is told the number of steps done, and a few words for the user.
            should_stop: Asked often; True stops the run, with a checkpoint.

        Returns:
            Whether the run is complete; False if it was stopped.
        """


JobT = TypeVar("JobT", bound=RunnableJob)


class DependencyError(ValueError):
    """A job cannot begin, as one that it needs has failed."""


@dataclass(frozen=True)
class Failure:
    """A job that failed.

    Attributes:
        label: The job in a few words.
        folder: Its folder, where ``failure.json`` says more.
        error: Name of the error's class.
        message: Message of the error.
    """

    label: str
    folder: Path
    error: str
    message: str


@dataclass(frozen=True)
class Outcome(Generic[JobT]):
    """The outcome of several jobs.

    Attributes:
        finished: Those that are complete, and those that diverged where that is a result.
        failures: Those that failed.
        interrupted: True if a stop was requested before all had ended.
    """

    finished: tuple[JobT, ...]
    failures: tuple[Failure, ...]
    interrupted: bool


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


POLL_SECONDS = 0.2
"""Time between two looks at the messages of jobs, in seconds."""


class JobProgress:
    """How far a job is; it is sent now and then.

    Args:
        send: Called with each message.
    """

    def __init__(self, send: Callable[[Message], object]) -> None:
        self._send = send
        self._done = 0
        self._words = self._words_sent = ""
        self._last_sent = 0.0

    def step(self, done: int, total: int = 0) -> None:
        """Tell the number of steps done, of which a reporter knows the total."""
        self._done = done
        self._send_both()

    def note(self, words: str) -> None:
        """Tell a few words for the user."""
        self._words = words
        self._send_both()

    def _send_both(self) -> None:
        now = time.monotonic()
        if now - self._last_sent >= POLL_SECONDS / 2:
            self._last_sent = now
            self.send_words()
            self._send(("step", self._done))

    def send_words(self) -> None:
        """Send the last words, unless they were sent."""
        if self._words != self._words_sent:
            self._words_sent = self._words
            self._send(("note", self._words))


def run_job(
    job: RunnableJob,
    shared: dict[str, Any],
    send: Callable[[Message], object],
    should_stop: Callable[[], bool],
) -> Message:
    """Run one job, send its progress, and return its last message: finished, stopped or failed.

    Args:
        job: The job.
        shared: See :meth:`RunnableJob.run`.
        send: Called with each message but the last.
        should_stop: See :meth:`RunnableJob.run`.
    """
    started = time.monotonic()
    progress = JobProgress(send)
    try:
        with _warnings_sent(send), announced(job):
            complete = job.run(shared, progress, should_stop)
    except (Exception, SystemExit) as error:  # sys.exit() in a user's own code
        if launched() > 1 and not is_raised_on_all_ranks(error):
            # The other processes know nothing of it and would wait forever.
            raise
        # The failure of one job must not stop the others.
        seconds = time.monotonic() - started
        return ("failed", type(error).__name__, str(error), traceback.format_exc(), seconds)
    progress.send_words()
    return ("finished", time.monotonic() - started) if complete else ("stopped",)


def follow_jobs(device: torch.device) -> None:
    """In a process launched beside the first one, run with it each job that it runs.

    Args:
        device: Where the jobs compute.
    """
    shared: dict[str, Any] = {}
    with stop_requests() as requested:
        follow(device, lambda job: job.run(shared, JobProgress(lambda message: None), requested))


@contextmanager
def _warnings_sent(send: Callable[[Message], object]) -> Iterator[None]:
    """Send warnings as messages instead of printing them across the progress bars."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        send(("warning", f"{category.__name__}: {message}"))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


class SweepError(ValueError):
    """A comparison cannot be done as asked for; nothing was trained or changed."""


class EngineError(SweepError):
    """An engine cannot be started, or has no room for a run."""


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


def run_here(queue: JobQueue[Any], log: JobLog[Any], stop_requested: Callable[[], bool], /) -> bool:
    """Run the jobs of a queue in this process, one after another; see :class:`Runner`."""
    shared: dict[str, Any] = {}
    while queue.pending:
        if stop_requested():
            return True
        found = queue.next()
        if found is None:
            return False
        take = functools.partial(log.take, *found)
        last = run_job(found[1], shared, take, stop_requested)
        take(last)
        if last[0] == "stopped":
            return True
    return False


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
        jobs: In the order in which they begin, except those that wait for others.
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


# ------------------------------------------------------------------------------------------------
# Stopping at a step boundary when the user or the system asks for it

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ACTIVE: list[list[int]] = []
"""The signals seen so far, a list for each active block."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop.

    The first signal is recorded, and the caller acts on it at the next safe point. A second Ctrl-C
    raises ``KeyboardInterrupt`` at once. An enclosing block sees the signal as well, so that a job
    of several parts stops even if the signal comes when a part is about to end. Outside the main
    thread, where Python handles no signals, nothing is changed and the list stays empty.

    Yields:
        A function that says whether a stop was requested.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        for seen in _ACTIVE:
            seen.append(number)

    _ACTIVE.append(requests)
    try:
        with handlers_kept():
            for number in _SIGNALS:
                signal.signal(number, note)
            yield lambda: bool(requests)
    finally:
        _ACTIVE.pop()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM afterwards, if others are set in between."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                # None means a handler that was not installed from Python; it cannot be restored.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
