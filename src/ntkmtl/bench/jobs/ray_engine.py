"""The Ray engine: each job is a Ray task, on this machine or on a cluster that shares a folder.

Tasks write the files that a process of this machine would have written. Where a worker or a node
dies, Ray begins its task again, and the run resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.environment import cores
from ntkmtl.bench.jobs.engine import POLL_SECONDS, EngineError, run_job, stop_requests
from ntkmtl.bench.jobs.ray_session import Surroundings, first_line, ray_session, shared_surroundings
from ntkmtl.bench.runs import RunBusyError
from ntkmtl.errors import missing_extra

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import JobLog, JobQueue, Message, RunnableJob, Runner

__all__ = ["RayEngine"]

_BEGUN: Message = ("begun",)
"""A task's first message."""


@dataclass(frozen=True)
class RayEngine:
    """Runs each job as a Ray task.

    Attributes:
        address: ``host:port`` of a cluster's head, or ``"auto"`` for the cluster that this machine
            is part of. Every node must see the folder of the runs under the same path. None starts
            a local Ray that binds to 127.0.0.1 only, and ends it with the comparison.
        cpus: Processors of a run, and the threads that it computes with unless told otherwise.
        gpus: GPUs of a run; two runs share one if it is 0.5.
        jobs: Runs at a time; as many as there is room for if None.
        retries: How often Ray begins a run again whose worker or node has died.

    Raises:
        EngineError: A number is out of range, or the address is one of Ray Client.
        MissingExtraError: Ray is not installed.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    jobs: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise missing_extra("the engine ray", "ray", ImportError("ray", name="ray"))
        if self.cpus < 1:
            raise EngineError(f"a run needs at least 1 processor, found {self.cpus}")
        if not (0 <= self.gpus <= 1 or self.gpus == self.gpus // 1 > 0):
            raise EngineError(
                f"GPUs of a run must be from 0 to 1 or a whole number, found {self.gpus}"
            )
        if self.jobs is not None and self.jobs < 1:
            raise EngineError(f"jobs must be at least 1, found {self.jobs}")
        if self.retries < 0:
            raise EngineError(f"retries must not be negative, found {self.retries}")
        if "://" in (self.address or ""):
            raise EngineError(
                "the address must be host:port of the cluster's head, or auto on one of its nodes; "
                f"Ray Client is not supported, found {self.address!r}"
            )

    @property
    def threads(self) -> int:
        """Threads that a run computes with, unless the user says otherwise."""
        return self.cpus

    @contextlib.contextmanager
    def start(self, out: Path, say: Callable[[str], None]) -> Iterator[Runner]:
        """See :meth:`ntkmtl.bench.jobs.engine.Engine.start`."""
        with contextlib.ExitStack() as stack:
            cpus = (self.jobs or max(1, cores() // self.cpus)) * self.cpus
            stack.enter_context(ray_session(self.address, cpus, say))
            if self.room() == 0:
                nodes = [
                    f"{n.get('CPU', 0):g} processors and {n.get('GPU', 0):g} GPUs" for n in _nodes()
                ]
                raise EngineError(
                    f"no node has {self.cpus} processors and {self.gpus:g} GPUs for a run, found "
                    f"{len(nodes)} nodes: {', '.join(nodes)}"
                )
            surroundings = stack.enter_context(shared_surroundings(out))
            # Ray prints its own warnings, of a worker that died for one, to standard output.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield _Tasks(self, surroundings).run

    def room(self) -> int:
        """Return how many runs the living nodes can hold at a time."""
        by_gpu = [n.get("GPU", 0) / self.gpus + 1e-9 if self.gpus else 1e9 for n in _nodes()]
        by_cpu = [n.get("CPU", 0) / self.cpus for n in _nodes()]
        return sum(map(int, map(min, by_cpu, by_gpu)))


def _nodes() -> list[dict[str, float]]:
    """Return the resources of the living nodes."""
    return [node["Resources"] for node in sys.modules["ray"].nodes() if node["Alive"]]


_shared: dict[str, Any] = {}
"""What this worker keeps from one job to the next, as problems and their data."""


def _task(job: RunnableJob, surroundings: Surroundings, queue: Any, number: int) -> Message:
    """Run one job on a node; return its last message, which so overtakes none in the queue."""

    def send(message: Message) -> None:
        queue.put_nowait((number, message))

    # Ray cancels a task by an interrupt in its main thread, as Ctrl-C does.
    with stop_requests() as requested:
        send(_BEGUN)
        surroundings.adopt()
        last: Message = ("stopped",)
        if not requested():
            last = run_job(job, _shared, send, requested)
    if last[:2] == ("failed", RunBusyError.__name__):
        # A worker that Ray has given up may still hold the run: Ray begins this task again.
        raise RunBusyError(last[2])
    return last


class _Tasks:
    """Gives the jobs of a queue to Ray, and the messages of its tasks to the log."""

    def __init__(self, engine: RayEngine, surroundings: Surroundings) -> None:
        ray = self.ray = importlib.import_module("ray")
        near = importlib.import_module("ray.util.scheduling_strategies")
        here = near.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.engine, self.surroundings = engine, surroundings
        self.messages = importlib.import_module("ray.util.queue").Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": here}
        )
        self.task = ray.remote(_task).options(
            num_cpus=engine.cpus,
            num_gpus=engine.gpus,
            max_retries=engine.retries,
            retry_exceptions=[RunBusyError],
            scheduling_strategy="SPREAD",
        )
        self.active: dict[Any, tuple[int, Any]] = {}
        self.begun: set[int] = set()

    def run(
        self, queue: JobQueue[Any], log: JobLog[Any], stop_requested: Callable[[], bool], /
    ) -> bool:
        """See :class:`ntkmtl.bench.jobs.engine.Runner`."""
        stopping = False
        try:
            self._submit(queue)
            while self.active:
                done = self.ray.wait(list(self.active), timeout=POLL_SECONDS)[0]
                if stop_requested() and not stopping:
                    stopping = True
                    # Those that wait first, or they begin on the nodes that others leave.
                    for reference in reversed(self.active):
                        self.ray.cancel(reference)
                self._listen(log)
                for reference in done:
                    log.take(*self.active[reference], self._result(reference, stopping))
                    del self.active[reference]
                if not stopping:
                    self._submit(queue)
        finally:
            # Tasks are left here only where something was raised, as by a second Ctrl-C.
            for reference in self.active:
                self.ray.cancel(reference, force=True)
            self.messages.shutdown(force=True)
        return stopping and bool(log.open)

    def _submit(self, queue: JobQueue[Any]) -> None:
        # At least one, which Ray keeps until a node has room for it.
        while len(self.active) < (self.engine.jobs or max(1, self.engine.room())):
            if (found := queue.next()) is None:
                break
            number, job = found
            # Nodes have working directories of their own.
            sent = replace(job, folder=job.folder.resolve())
            reference = self.task.remote(sent, self.surroundings, self.messages, number)
            self.active[reference] = found

    def _listen(self, log: JobLog[Any]) -> None:
        jobs = dict(self.active.values())
        for number, message in self.messages.get_nowait_batch(self.messages.qsize()):
            if message != _BEGUN:
                log.take(number, jobs[number], message)
            elif number in self.begun:
                log.reporter.message(
                    f"{jobs[number].label}: its worker died; it resumes from its last checkpoint"
                )
            self.begun.add(number)

    def _result(self, reference: Any, stopping: bool) -> Message:
        errors = self.ray.exceptions
        try:
            return tuple(self.ray.get(reference))
        except errors.TaskCancelledError:
            return ("stopped",)
        except errors.RayTaskError as error:
            # What the job raises comes as a message: this is from around it.
            cause = error.cause if isinstance(error.cause, Exception) else error
            return ("failed", type(cause).__name__, str(cause), str(error), 0.0)
        except errors.RayError as error:
            if stopping:
                return ("stopped",)
            why = f"its worker died, {self.engine.retries} retries included: {first_line(error)}"
            return ("failed", "WorkerDied", why, str(error), 0.0)
