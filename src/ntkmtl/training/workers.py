"""Running the jobs of a sweep in worker processes, or in this one."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ntkmtl.files import write_json
from ntkmtl.training.lookup import find_problem
from ntkmtl.training.runs import FAILURE, SCHEMA, canonical_json
from ntkmtl.training.signals import without_interrupts
from ntkmtl.training.trainer import RunInterrupted, train

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from ntkmtl.problems.base import Problem, Recipe
    from ntkmtl.training.reporters import Reporter

__all__ = ["Failure", "Job", "Outcome", "run_jobs"]

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """One run to be trained.

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
        identity: What determines the run, as :func:`ntkmtl.training.trainer.run_identity` says it.
        key: Key in the cache of baselines, ``""`` for other runs.
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

    @property
    def label(self) -> str:
        """The run in a few words."""
        task = "" if self.task is None else f" {self.task}"
        return f"{self.method}{task} seed {self.seed}"


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
class Outcome:
    """What became of the jobs.

    Attributes:
        finished: Those that are complete.
        failures: Those that failed.
        interrupted: True if a stop was requested before all had ended.
    """

    finished: tuple[Job, ...]
    failures: tuple[Failure, ...]
    interrupted: bool


Send = Callable[[tuple[Any, ...]], None]


def _run_job(
    job: Job, problems: dict[str, Problem], send: Send, should_stop: Callable[[], bool]
) -> None:
    """Train one run and send what happens: step, warning, then finished, stopped or failed."""
    started = time.monotonic()
    last_sent = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last_sent
        now = time.monotonic()
        if now - last_sent >= POLL_SECONDS / 2:
            last_sent = now
            send(("step", done))

    try:
        with _warnings_sent(send):
            key = canonical_json([job.problem, dict(job.problem_options)])
            if key not in problems:
                problems[key] = find_problem(job.problem, job.problem_options)
            train(
                problems[key],
                job.method,
                job.seed,
                job.folder,
                recipe=job.recipe,
                method_options=job.method_options,
                single_task=job.task,
                threads=job.threads,
                checkpoint_seconds=job.checkpoint_seconds,
                progress=progress,
                should_stop=should_stop,
            )
    except RunInterrupted:
        send(("stopped",))
    except Exception as error:  # noqa: BLE001  (one run's failure must not stop the others)
        send(("failed", type(error).__name__, str(error), traceback.format_exc()))
    else:
        send(("finished", time.monotonic() - started))


@contextmanager
def _warnings_sent(send: Send) -> Iterator[None]:
    """Send warnings to whoever draws the screen, instead of writing across it."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        send(("warning", f"{category.__name__}: {message}"))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


class _Book:
    """Takes what jobs send, tells the reporter, and keeps the outcome."""

    def __init__(self, reporter: Reporter, on_finished: Callable[[Job], None]) -> None:
        self.reporter = reporter
        self.on_finished = on_finished
        self.finished: list[Job] = []
        self.failures: list[Failure] = []

    def take(self, number: int, job: Job, message: tuple[Any, ...]) -> bool:
        """Take a message; return True if it was the job's last."""
        kind, *content = message
        if kind == "step":
            self.reporter.run_progress(number, content[0])
            return False
        if kind == "warning":
            self.reporter.message(f"{job.label}: {content[0]}")
            return False
        if kind == "finished":
            self.finished.append(job)
            self.on_finished(job)
            self.reporter.run_finished(number, content[0])
        elif kind == "stopped":
            self.reporter.run_stopped(number)
        else:
            self._fail(number, job, *content)
        return True

    def _fail(self, number: int, job: Job, error: str, message: str, trace: str) -> None:
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


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    reporter: Reporter,
    stop_requested: Callable[[], bool],
    on_finished: Callable[[Job], None],
) -> Outcome:
    """Train runs, so many at a time; the failure of one does not stop the others.

    Args:
        jobs: What to train, in this order.
        workers: Number of processes; 1 trains in this one.
        reporter: Told what happens.
        stop_requested: Asked often; True stops every run at a step boundary, with a checkpoint.
        on_finished: Called with every job whose run is complete.
    """
    book = _Book(reporter, on_finished)
    if workers == 1:
        interrupted = _run_here(jobs, book, stop_requested)
    else:
        interrupted = _run_in_processes(jobs, min(workers, len(jobs)), book, stop_requested)
    return Outcome(tuple(book.finished), tuple(book.failures), interrupted)


def _run_here(jobs: Sequence[Job], book: _Book, stop_requested: Callable[[], bool]) -> bool:
    problems: dict[str, Problem] = {}
    for number, job in enumerate(jobs):
        if stop_requested():
            return True
        book.reporter.run_started(number, job.label, job.steps)
        ended: list[str] = []

        def send(
            message: tuple[Any, ...], number: int = number, job: Job = job, ended: list[str] = ended
        ) -> None:
            if book.take(number, job, message):
                ended.append(message[0])

        _run_job(job, problems, send, stop_requested)
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
        if not isinstance(job, Job):
            return
        _run_job(job, problems, send, should_stop)


def _run_in_processes(
    jobs: Sequence[Job], count: int, book: _Book, stop_requested: Callable[[], bool]
) -> bool:
    pending = deque(enumerate(jobs))
    active: dict[_Worker, tuple[int, Job]] = {}
    stopping = False

    def give(worker: _Worker) -> None:
        number, job = active[worker] = pending.popleft()
        book.reporter.run_started(number, job.label, job.steps)
        worker.send(job)

    try:
        for worker in [_Worker() for _ in range(count)]:
            give(worker)
        while active:
            ready = wait([worker.connection for worker in active], timeout=POLL_SECONDS)
            if stop_requested() and not stopping:
                stopping = True
                for worker in active:
                    worker.send("stop")
            for worker in [w for w in active if w.connection in ready]:
                died = False
                message: tuple[Any, ...]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    died = True
                    message = ("failed", "WorkerDied", worker.epitaph(), "")
                    if stopping and worker.process.exitcode == -signal.SIGTERM:
                        # The system told the whole process group to end, not only the parent.
                        message = ("stopped",)
                number, job = active[worker]
                if not book.take(number, job, message):
                    continue
                if pending and not stopping and not died:
                    give(worker)
                    continue
                del active[worker]
                worker.end()
                if pending and not stopping:
                    give(_Worker())
    finally:
        # Only with active workers where something was raised: a second Ctrl-C for one.
        for worker in active:
            worker.process.terminate()
        for worker in active:
            worker.end()
    return stopping and len(book.finished) + len(book.failures) < len(jobs)
