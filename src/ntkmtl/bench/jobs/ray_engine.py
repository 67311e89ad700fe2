"""The Ray engine: each job is a Ray task, on this machine or on a cluster that shares a folder.

Tasks write the files that a process of this machine would have written. Where a worker or a node
dies, Ray begins its task again, and the run resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ipaddress
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.environment import cores
from ntkmtl.bench.compute.stop_requests import stop_requests
from ntkmtl.bench.jobs.engine import POLL_SECONDS, EngineError, run_job
from ntkmtl.bench.jobs.surroundings import Surroundings
from ntkmtl.bench.runs import RunBusyError
from ntkmtl.errors import missing_extra
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import JobLog, JobQueue, Message, RunnableJob, Runner

__all__ = ["LOOPBACK", "RayEngine"]

# Without clusters, which Ray leaves out on Windows and macOS, it binds to 127.0.0.1 only. It reads
# the first variable when it is imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

_STARTS = 3
"""Attempts to start a local Ray: each component has 15 s, too little on a busy machine."""

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
        mark = out.resolve() / f".ntkmtl-ray-{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            # One that is in use already is used, and left alone.
            if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
                _join(self.address) if self.address else self._start_local(stack, say)
                stack.callback(sys.modules["ray"].shutdown)
            if self.room() == 0:
                nodes = [
                    f"{n.get('CPU', 0):g} processors and {n.get('GPU', 0):g} GPUs" for n in _nodes()
                ]
                raise EngineError(
                    f"no node has {self.cpus} processors and {self.gpus:g} GPUs for a run, found "
                    f"{len(nodes)} nodes: {', '.join(nodes)}"
                )
            write_text(mark, mark.name)
            stack.callback(mark.unlink, missing_ok=True)
            # Ray prints its own warnings, of a worker that died for one, to standard output.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield _Tasks(self, Surroundings.here(mark)).run

    def _start_local(self, stack: contextlib.ExitStack, say: Callable[[str], None]) -> None:
        # Not below TMPDIR: paths of sockets must be short.
        place = "/tmp" if os.name == "posix" else None
        folder = tempfile.TemporaryDirectory(None, "ntkmtl-ray-", place, ignore_cleanup_errors=True)
        # The token is in no file; Ray would write one into the user's home.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        variables = {**LOOPBACK, **token, "RAY_TMPDIR": stack.enter_context(folder)}
        settings = {
            "num_cpus": (self.jobs or max(1, cores() // self.cpus)) * self.cpus,
            # Just above the least that Ray allows: nothing large goes through it.
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
        }
        for left in reversed(range(_STARTS)):
            try:
                _initialize(variables, address="local", **settings)
                break
            # Ray raises a bare Exception if a node was not up in time.
            except Exception as error:
                if not left or isinstance(error, EngineError):
                    raise EngineError(f"Ray cannot be started: {error}") from error
                say(f"Ray did not start, trying again: {_first_line(error)}")

    def room(self) -> int:
        """Return how many runs the living nodes can hold at a time."""
        by_gpu = [n.get("GPU", 0) / self.gpus + 1e-9 if self.gpus else 1e9 for n in _nodes()]
        by_cpu = [n.get("CPU", 0) / self.cpus for n in _nodes()]
        return sum(map(int, map(min, by_cpu, by_gpu)))


def _nodes() -> list[dict[str, float]]:
    """Return the resources of the living nodes."""
    return [node["Resources"] for node in sys.modules["ray"].nodes() if node["Alive"]]


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            # Where nobody answers Ray would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        _initialize(LOOPBACK if _is_loopback(host) else {}, address=address)
    except Exception as error:
        raise EngineError(f"Ray cannot be joined at {address}: {error}") from error


def _initialize(environment: Mapping[str, str], **settings: Any) -> None:
    """Start or join Ray, with variables that are set meanwhile, and keep the signals' handlers.

    Raises:
        EngineError: A Ray that was imported earlier does not bind to 127.0.0.1 only.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        ray: Any = importlib.import_module("ray")
        ray.init(log_to_driver=False, logging_level="ERROR", **settings)
    finally:
        # Ray sets variables of its own where it finds a token.
        for name in (*environment, "RAY_AUTH_MODE"):
            os.environ.pop(name, None)
        os.environ.update(before)
        for number, handler in handlers.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    hosts = [node["NodeManagerAddress"] for node in ray.nodes()]
    if LOOPBACK.items() <= environment.items() and not all(map(_is_loopback, hosts)):
        ray.shutdown()
        raise EngineError(
            f"Ray was imported before and listens at {', '.join(hosts)}; set "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before Python starts, or do not import Ray first"
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def _first_line(error: Exception) -> str:
    """Return the name of an error and the first line of its message."""
    text = str(error).strip().partition("\n")[0].rstrip(".:")[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_shared: dict[str, Any] = {}
"""What this worker keeps from one job to the next, as problems and their data."""


@dataclass
class _QueueChannel:
    """Connects a task to the comparison by a queue of Ray's."""

    queue: Any
    number: int
    should_stop: Callable[[], bool]
    last: Message = ("stopped",)

    def send(self, message: Message) -> None:
        if message[0] in ("finished", "stopped", "failed"):
            # It goes back as the task's result, which no message overtakes.
            self.last = message
        else:
            self.queue.put_nowait((self.number, message))


def _task(job: RunnableJob, surroundings: Surroundings, queue: Any, number: int) -> Message:
    """Run one job on a node; return its last message."""
    # Ray cancels a task by an interrupt in its main thread, as Ctrl-C does.
    with stop_requests() as requested:
        channel = _QueueChannel(queue, number, requested)
        channel.send(_BEGUN)
        surroundings.adopt()
        if not requested():
            run_job(job, _shared, channel)
    if channel.last[:2] == ("failed", RunBusyError.__name__):
        # A worker that Ray has given up may still hold the run: Ray begins this task again.
        raise RunBusyError(channel.last[2])
    return channel.last


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
            why = f"its worker died, {self.engine.retries} retries included: {_first_line(error)}"
            return ("failed", "WorkerDied", why, str(error), 0.0)
