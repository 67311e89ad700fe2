"""The local engine: jobs in processes of this machine, or in this process one after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.environment import default_threads
from ntkmtl.bench.jobs.engine import POLL_SECONDS, run_here, run_job

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from ntkmtl.bench.jobs.engine import JobLog, JobQueue, Message, Runner

__all__ = ["LocalEngine"]

STOP = "stop"
"""Sent to a worker process to end its job, and itself."""


@dataclass(frozen=True)
class LocalEngine:
    """Runs jobs on this machine.

    With more than one job at a time each runs in a process that imports the main module again, so a
    script that uses it does so under ``if __name__ == "__main__":``.

    Attributes:
        jobs: Jobs at a time; 1 runs them in this process.
    """

    jobs: int = 1

    @property
    def threads(self) -> int:
        """Threads of a run: see :func:`ntkmtl.bench.compute.environment.default_threads`."""
        return default_threads(self.jobs)

    @contextlib.contextmanager
    def start(self, out: Path, say: Callable[[str], None]) -> Iterator[Runner]:
        """See :meth:`ntkmtl.bench.jobs.engine.Engine.start`."""
        yield run_here if self.jobs == 1 else _ProcessPool(self.jobs).run


# ------------------------------------------------------------------------------------------------
# Worker processes


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C while processes are started, so that they ignore it from the start.

    A terminal sends Ctrl-C to every process of the group, but workers are stopped by their parent,
    and not in the middle of importing torch. The signal mask is inherited.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _PipeChannel:
    """Connects a job in a worker process to its parent."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.gone = False

    def send(self, message: Message) -> None:
        try:
            self.connection.send(message)
        except OSError:
            self.gone = True

    def should_stop(self) -> bool:
        # Whatever arrives during a job, a message or the end of the pipe, means stop.
        self.gone = self.gone or self.connection.poll()
        return self.gone


def serve(connection: Connection) -> None:
    """Run jobs until the parent says stop or is gone: a worker process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output is for results; a user's own code may print.
    sys.stdout = sys.stderr
    shared: dict[str, Any] = {}
    channel = _PipeChannel(connection)
    while not channel.gone:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job == STOP:
            return
        channel.send(run_job(job, shared, channel.send, channel.should_stop))


class _Worker:
    """A process that runs one job after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=serve, args=(theirs,), daemon=True)
        with _without_interrupts():
            self.process.start()
        # Without this copy, the pipe ends when the process does.
        theirs.close()

    def send(self, message: object) -> None:
        # If the process has died, reading from the pipe says so, and is dealt with there.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self, stopping: bool) -> tuple[Message, bool]:
        """Return the next message, and whether the process has died."""
        try:
            return self.connection.recv(), False
        except (EOFError, OSError):
            reason = self.exit_reason()
            if stopping and self.process.exitcode == -signal.SIGTERM:
                # The system told the whole process group to end, not only the parent.
                return ("stopped",), True
            return ("failed", "WorkerDied", reason, "", 0.0), True

    def exit_reason(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"the worker process was ended by signal {signal.Signals(-code).name}"
        return f"the worker process ended with exit code {code}"

    def end(self) -> None:
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


class _ProcessPool:
    """Hands the jobs of a queue to worker processes, each of which runs one at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.active: dict[_Worker, tuple[int, Any]] = {}
        self.idle: list[_Worker] = []

    def run(
        self, queue: JobQueue[Any], log: JobLog[Any], stop_requested: Callable[[], bool], /
    ) -> bool:
        stopping = False
        try:
            self._hand_out(queue)
            while self.active:
                ready = wait([worker.connection for worker in self.active], timeout=POLL_SECONDS)
                if stop_requested() and not stopping:
                    stopping = True
                    for worker in self.active:
                        worker.send(STOP)
                for worker in [w for w in self.active if w.connection in ready]:
                    message, died = worker.receive(stopping)
                    if not log.take(*self.active[worker], message):
                        continue
                    del self.active[worker]
                    if died:
                        worker.end()
                    else:
                        self.idle.append(worker)
                    if stopping:
                        self._end_idle()
                    else:
                        self._hand_out(queue)
        finally:
            # Workers are left here only where something was raised, as by a second Ctrl-C.
            for worker in (*self.active, *self.idle):
                worker.process.terminate()
            for worker in (*self.active, *self.idle):
                worker.end()
        return stopping and bool(log.open)

    def _hand_out(self, queue: JobQueue[Any]) -> None:
        while len(self.active) < self.count:
            found = queue.next()
            if found is None:
                break
            worker = self.idle.pop() if self.idle else _Worker()
            self.active[worker] = found
            worker.send(found[1])
        if not queue.pending:
            self._end_idle()

    def _end_idle(self) -> None:
        while self.idle:
            self.idle.pop().end()
