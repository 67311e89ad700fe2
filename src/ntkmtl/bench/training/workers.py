"""Running the jobs of a sweep: in worker processes, in this one, or by another engine."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ntkmtl.bench.compute.processes import announced, follow, is_raised_on_all_ranks, launched
from ntkmtl.bench.compute.stop_requests import stop_requests, without_interrupts
from ntkmtl.bench.runs import FAILURE, SCHEMA, RunInterrupted, canonical_json
from ntkmtl.bench.training.lookup import find_problem
from ntkmtl.bench.training.trainer import train
from ntkmtl.files import write_json

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    import torch

    from ntkmtl.bench.compute.device import Device
    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.training.reporters import Reporter

__all__ = [
    "POLL_SECONDS",
    "Book",
    "Failure",
    "Job",
    "JobQueue",
    "Outcome",
    "Runner",
    "Work",
    "follow_jobs",
    "run_job",
    "run_jobs",
]

STOP = "stop"
"""What a worker process is sent to end its run, and itself."""

POLL_SECONDS = 0.2
"""How often one who waits for runs looks around, in seconds."""


class Work(Protocol):
    """One run to be trained: what a queue, an engine and a reporter need to know of it."""

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
    def trial(self) -> int | None:
        """Number of the trial of a tuning, None for any other run."""

    def train(self, problems: dict[str, Problem], show: Show, should_stop: Stop) -> None:
        """Train it.

        Args:
            problems: Those that this process has made already, for runs that train on one.
            show: Called with the steps that are done, and with a few words beside them.
            should_stop: Asked often; True stops the run, with a checkpoint.

        Raises:
            RunInterrupted: It was stopped.
        """


WorkT = TypeVar("WorkT", bound=Work)


@dataclass(frozen=True)
class Job:
    """One run of a problem.

    Attributes:
        problem: Name of the problem, or ``module:Class``.
        problem_options: Options given to the problem.
        method: Name of the method.
        method_options: Options given to the Balancer.
        seed: Seed.
        task: The task of a single-task baseline.
        recipe: How long it is trained.
        folder: The run's folder.
        threads: Threads that torch computes with.
        checkpoint_seconds: Least time between two checkpoints.
        steps: Number of optimiser steps.
        identity: What determines the run, as :func:`ntkmtl.bench.training.identity.run_identity`
            says it.
        key: Key in the cache of baselines, ``""`` for other runs.
        after: Folders of the runs that must be complete before this one can begin.
        scored: Whether the method is told scores, so that it needs ``baseline``.
        tuned: Whether ``method_options`` are to be completed by what a tuning found.
        trial: Number of the trial of a tuning, None for the runs of the comparison itself.
        baseline: What the single-task networks of the same seed came to on the validation split,
            known once those in ``after`` are complete.
        record: What to record of the kernel, None for nothing.
        device: Where it is trained.
        tracker: What logs it while it trains, None for nothing.
    """

    problem: str
    problem_options: Mapping[str, Any]
    method: str
    method_options: Mapping[str, Any]
    seed: int
    task: str | None
    recipe: Recipe
    folder: Path
    threads: int
    checkpoint_seconds: float
    steps: int
    identity: Mapping[str, Any]
    key: str = ""
    record: Mapping[str, Any] | None = None
    after: tuple[Path, ...] = ()
    scored: bool = False
    tuned: bool = False
    trial: int | None = None
    baseline: tuple[float, ...] | None = None
    device: Device = "cpu"
    tracker: str | None = None

    @property
    def label(self) -> str:
        """The run in a few words."""
        task = "" if self.task is None else f" {self.task}"
        trial = "" if self.trial is None else f" trial {self.trial}"
        return f"{self.method}{task}{trial} seed {self.seed}"

    def train(self, problems: dict[str, Problem], show: Show, should_stop: Stop) -> None:
        """See :meth:`Work.train`."""
        key = canonical_json([self.problem, dict(self.problem_options)])
        if key not in problems:
            problems[key] = find_problem(self.problem, self.problem_options)
        train(
            problems[key],
            self.method,
            self.seed,
            self.folder,
            recipe=self.recipe,
            method_options=self.method_options,
            single_task=self.task,
            baseline=self.baseline,
            threads=self.threads,
            checkpoint_seconds=self.checkpoint_seconds,
            progress=lambda done, total: show(done, ""),
            should_stop=should_stop,
            record=self.record,
            device=self.device,
            tracker=self.tracker,
        )


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
        label: The run in a few words.
        folder: Its folder, where ``failure.json`` says more.
        error: Name of the error's class.
        message: What it said.
    """

    label: str
    folder: Path
    error: str
    message: str


@dataclass(frozen=True)
class Outcome(Generic[WorkT]):
    """What became of the jobs.

    Attributes:
        finished: Those that are complete, and the trials of a tuning that diverged.
        failures: Those that failed.
        interrupted: True if a stop was requested before all had ended.
    """

    finished: tuple[WorkT, ...]
    failures: tuple[Failure, ...]
    interrupted: bool


Send = Callable[[tuple[Any, ...]], None]
Show = Callable[[int, str], None]
Stop = Callable[[], bool]

DIVERGENCE = ("NonFiniteError", "FloatingPointError")
"""Errors that are a result where settings are tried out: the same settings give the same again."""


class DependencyError(ValueError):
    """A run cannot begin, as one that it needs has failed."""


def run_job(job: Work, problems: dict[str, Problem], send: Send, should_stop: Stop) -> None:
    """Train one run and send what happens; its last word is finished, stopped or failed."""
    started = time.monotonic()
    last_sent = 0.0
    last_words = ""

    def show(done: int, words: str) -> None:
        nonlocal last_sent, last_words
        if words != last_words:
            last_words = words
            send(("note", words))
        now = time.monotonic()
        if now - last_sent >= POLL_SECONDS / 2:
            last_sent = now
            send(("step", done))

    try:
        with _warnings_sent(send), announced(job):
            job.train(problems, show, should_stop)
    except RunInterrupted:
        send(("stopped",))
    except Exception as error:
        if launched() > 1 and not is_raised_on_all_ranks(error):
            # The other processes know nothing of it and would wait for ever.
            raise
        # One run's failure must not stop the others.
        seconds = time.monotonic() - started
        send(("failed", type(error).__name__, str(error), traceback.format_exc(), seconds))
    else:
        send(("finished", time.monotonic() - started))


def follow_jobs(device: torch.device) -> None:
    """Train with the first process what it trains, in another one that was launched with it.

    Args:
        device: Where the runs are trained.
    """
    problems: dict[str, Problem] = {}
    with stop_requests() as requested:
        follow(device, lambda job: job.train(problems, lambda done, words: None, requested))


@contextmanager
def _warnings_sent(send: Send) -> Iterator[None]:
    """Send warnings to whoever draws the screen, instead of writing across it."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        send(("warning", f"{category.__name__}: {message}"))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


class Book(Generic[WorkT]):
    """Takes what jobs send, tells the reporter, and keeps the outcome."""

    def __init__(
        self,
        jobs: Sequence[WorkT],
        reporter: Reporter,
        on_ended: Callable[[WorkT, float, str], None],
    ) -> None:
        self.reporter = reporter
        self.on_ended = on_ended
        self.finished: list[WorkT] = []
        self.failures: list[Failure] = []
        self.open = {job.folder for job in jobs}
        self.failed: dict[Path, str] = {}

    def take(self, number: int, job: WorkT, message: tuple[Any, ...]) -> bool:
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
        self, number: int, job: WorkT, error: str, message: str, trace: str, seconds: float
    ) -> None:
        if job.trial is not None and error in DIVERGENCE:
            self.finished.append(job)
            self.on_ended(job, seconds, message)
            self.reporter.run_failed(number, f"diverged: {message}")
            return
        self.failed[job.folder] = job.label
        try:
            write_json(
                job.folder / FAILURE,
                {
                    "schema": SCHEMA,
                    "error": error,
                    "message": message,
                    "traceback": trace,
                    "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                },
            )
        except OSError as unwritten:
            message = f"{message} (and {FAILURE} could not be written: {unwritten})"
        self.failures.append(Failure(job.label, job.folder, error, message))
        self.reporter.run_failed(number, f"{error}: {message}")


class JobQueue(Generic[WorkT]):
    """The jobs that have not begun, some of which wait until others have ended."""

    def __init__(
        self, jobs: Sequence[WorkT], book: Book[WorkT], prepare: Callable[[WorkT], WorkT]
    ) -> None:
        self.pending = list(enumerate(jobs))
        self.book = book
        self.prepare = prepare

    def next(self) -> tuple[int, WorkT] | None:
        """Return the next job that waits for nothing, with its number; None if all of them wait.

        Those that cannot begin, as a run that they need has failed, fail here.
        """
        place = 0
        while place < len(self.pending):
            number, job = self.pending[place]
            if not self.book.open.isdisjoint(job.after):
                place += 1
                continue
            del self.pending[place]
            self.book.reporter.run_started(number, job.label, job.steps)
            try:
                missing = [self.book.failed[f] for f in job.after if f in self.book.failed]
                if missing:
                    more = f" (and {len(missing) - 1} more like it)" if missing[1:] else ""
                    raise DependencyError(f"needs {missing[0]}, which failed{more}")
                return number, self.prepare(job)
            except (ValueError, OSError) as error:
                trace = traceback.format_exc()
                self.book.take(number, job, ("failed", type(error).__name__, str(error), trace, 0))
                # Those that waited for it were passed by.
                place = 0
        return None


class Runner(Protocol):
    """What an engine that has been started offers."""

    def __call__(
        self, queue: JobQueue[Any], book: Book[Any], stop_requested: Callable[[], bool], /
    ) -> bool:
        """Train the jobs of a queue.

        Args:
            queue: Asked for the next job whenever there is room for one.
            book: Given everything that the jobs send.
            stop_requested: Asked often; True stops every run at a step boundary, with a checkpoint.

        Returns:
            Whether it was stopped before all jobs had ended.
        """


def run_jobs(
    jobs: Sequence[WorkT],
    workers: int,
    reporter: Reporter,
    stop_requested: Callable[[], bool],
    on_ended: Callable[[WorkT, float, str], None],
    prepare: Callable[[WorkT], WorkT] = lambda job: job,
    runner: Runner | None = None,
) -> Outcome[WorkT]:
    """Train runs, so many at a time; the failure of one does not stop the others.

    Args:
        jobs: What to train, in this order, but for those that must wait for others.
        workers: Number of processes; 1 trains in this one.
        reporter: Told what happens.
        stop_requested: Asked often; True stops every run at a step boundary, with a checkpoint.
        on_ended: Called with every job whose run is complete, the seconds that it took, and ``""``;
            and with every trial that diverged, and what was said.
        prepare: Called with every job just before it begins, when those that it waits for are
            complete; returns the job to train. What it raises of ``ValueError`` and ``OSError``
            is the job's failure.
        runner: Who trains the runs, an engine that has been started; processes on this machine if
            None, as many as ``workers``.
    """
    book = Book(jobs, reporter, on_ended)
    queue = JobQueue(jobs, book, prepare)
    if runner is not None:
        interrupted = runner(queue, book, stop_requested)
    elif workers == 1:
        interrupted = _run_here(queue, book, stop_requested)
    else:
        interrupted = _run_in_processes(queue, min(workers, len(jobs)), book, stop_requested)
    return Outcome(tuple(book.finished), tuple(book.failures), interrupted)


def _run_here(queue: JobQueue[WorkT], book: Book[WorkT], stop_requested: Stop) -> bool:
    problems: dict[str, Problem] = {}
    while queue.pending:
        if stop_requested():
            return True
        found = queue.next()
        if found is None:
            return False
        number, job = found
        ended: list[str] = []

        def send(
            message: tuple[Any, ...],
            number: int = number,
            job: WorkT = job,
            ended: list[str] = ended,
        ) -> None:
            if book.take(number, job, message):
                ended.append(message[0])

        run_job(job, problems, send, stop_requested)
        if ended == ["stopped"]:
            return True
    return False


# ------------------------------------------------------------------------------------------------
# Worker processes


class _Worker:
    """A process that trains one job after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with without_interrupts():
            self.process.start()
        # Without this copy, the pipe ends when the process does.
        theirs.close()

    def send(self, message: object) -> None:
        # Where the process has died, reading from the pipe says so, and it is dealt with there.
        with suppress(OSError):
            self.connection.send(message)

    def end(self) -> None:
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def epitaph(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"the worker process was ended by signal {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"


def _serve(connection: Connection) -> None:
    """Train jobs until the parent says stop or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    problems: dict[str, Problem] = {}
    gone = False

    def send(message: tuple[Any, ...]) -> None:
        nonlocal gone
        try:
            connection.send(message)
        except OSError:
            gone = True

    def should_stop() -> bool:
        nonlocal gone
        if not gone and connection.poll():
            # Whatever arrives while a run is on, a message or the end of the pipe, means stop.
            gone = True
        return gone

    while not gone:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job == STOP:
            return
        run_job(job, problems, send, should_stop)


def _run_in_processes(
    queue: JobQueue[WorkT], count: int, book: Book[WorkT], stop_requested: Stop
) -> bool:
    active: dict[_Worker, tuple[int, WorkT]] = {}
    idle: list[_Worker] = []
    stopping = False

    def hand_out() -> None:
        while len(active) < count and not stopping:
            found = queue.next()
            if found is None:
                break
            worker = idle.pop() if idle else _Worker()
            active[worker] = found
            worker.send(found[1])
        # The others may be needed again when what is waited for has ended.
        while idle and (stopping or not queue.pending):
            idle.pop().end()

    try:
        hand_out()
        while active:
            ready = wait([worker.connection for worker in active], timeout=POLL_SECONDS)
            if stop_requested() and not stopping:
                stopping = True
                for worker in active:
                    worker.send(STOP)
            for worker in [w for w in active if w.connection in ready]:
                died = False
                message: tuple[Any, ...]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    died = True
                    message = ("failed", "WorkerDied", worker.epitaph(), "", 0.0)
                    if stopping and worker.process.exitcode == -signal.SIGTERM:
                        # The system told the whole process group to end, not only the parent.
                        message = ("stopped",)
                number, job = active[worker]
                if not book.take(number, job, message):
                    continue
                del active[worker]
                if died:
                    worker.end()
                else:
                    idle.append(worker)
                hand_out()
    finally:
        # Only with workers where something was raised: a second Ctrl-C for one.
        for worker in (*active, *idle):
            worker.process.terminate()
        for worker in (*active, *idle):
            worker.end()
    return stopping and bool(book.open)
