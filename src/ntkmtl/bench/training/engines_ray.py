"""Runs as Ray tasks: on this machine, or on a cluster that shares a folder with it.

Each run is one task with its own processors. Tasks write the run's files where a process of this
machine would have, so a run whose worker or node dies goes on elsewhere from its last checkpoint.
Ray itself is never asked to repeat a task: who repeats, and how often, is said here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ipaddress
import math
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.environment import cores
from ntkmtl.bench.runs.locks import RunBusyError
from ntkmtl.bench.runs.provenance import versions
from ntkmtl.bench.training.engines import EngineError
from ntkmtl.bench.training.workers import POLL_SECONDS, Book, JobQueue, Work, run_job
from ntkmtl.errors import missing_extra
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from ntkmtl.bench.problems.base import Problem
    from ntkmtl.bench.training.workers import Runner

__all__ = ["RayEngine", "on_loopback"]

_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 80 * 2**20
"""Size of Ray's store of objects, just above its least: nothing large ever goes through it."""

_STARTS = 3
"""How often to start a Ray of our own: its parts have 15 seconds each, whoever else computes."""

_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}

_TOKEN = secrets.token_hex(32)
"""What the processes of a Ray of our own show each other; no file holds it."""


@dataclass(frozen=True)
class RayEngine:
    """Trains each run as a Ray task.

    Attributes:
        address: ``host:port`` of a cluster's head, or ``"auto"`` for the one that this machine is
            part of. Every node must see the folder of the runs under the same path. None starts a
            Ray of its own, which listens on 127.0.0.1 alone, has no dashboard, reports to nobody,
            and is ended with the comparison.
        cpus: Processors of a run, and threads that it computes with.
        gpus: GPUs of a run; two runs share one where it is 0.5.
        jobs: Runs at a time, as many as there is room for if None.
        retries: How often in a row a run may lose its worker without a step of progress before it
            counts as failed.

    Raises:
        EngineError: A number is out of range, or the address is of Ray Client.
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
            raise EngineError(f"a run needs at least 1 processor. Found {self.cpus}.")
        if not (math.isfinite(self.gpus) and self.gpus >= 0):
            raise EngineError(f"the GPUs of a run must not be negative. Found {self.gpus}.")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise EngineError(f"more than one GPU must be a whole number. Found {self.gpus}.")
        if self.jobs is not None and self.jobs < 1:
            raise EngineError(f"jobs must be at least 1. Found {self.jobs}.")
        if self.retries < 0:
            raise EngineError(f"retries must not be negative. Found {self.retries}.")
        if self.address is not None and "://" in self.address:
            raise EngineError(
                "the address of a cluster is host:port of its head, or auto on one of its nodes; "
                f"Ray Client is not supported. Found {self.address!r}."
            )

    @property
    def threads(self) -> int:
        """Threads that each run computes with."""
        return self.cpus

    @contextlib.contextmanager
    def start(self, out: Path, say: Callable[[str], None]) -> Iterator[Runner]:
        """Start or join Ray, and end or leave it when the block is left.

        Args:
            out: Folder of the comparison, which is there.
            say: Given lines for the user.

        Raises:
            EngineError: Ray cannot be started or joined, or no node has room for a run.
        """
        out = out.resolve()
        mark = out / f".ntkmtl-ray-{secrets.token_hex(8)}"
        with self._connected(say):
            if self._room() == 0:
                gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
                raise EngineError(
                    f"no node of the cluster has {self.cpus} processors{gpus}, which a run is to "
                    f"have. Found {_nodes_in_words()}."
                )
            write_text(mark, mark.name)
            try:
                yield _Runs(self, _Surroundings.here(mark), say).run
            finally:
                mark.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _connected(self, say: Callable[[str], None]) -> Iterator[None]:
        import ray

        if ray.is_initialized():
            # Who has started it will end it.
            yield
            return
        with contextlib.ExitStack() as stack:
            if self.address is None:
                # Paths of sockets must be short: not where TMPDIR may be.
                base = "/tmp" if os.name == "posix" else None
                folder = tempfile.mkdtemp(prefix="ntkmtl-ray-", dir=base)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                self._start(folder, say)
            else:
                self._join(self.address)
            stack.callback(ray.shutdown)
            stack.enter_context(_silent())
            yield

    def _start(self, folder: str, say: Callable[[str], None]) -> None:
        for left in reversed(range(_STARTS)):
            error = self._started(folder)
            if error is None:
                return
            if not left:
                raise EngineError(f"Ray cannot be started: {error}") from error
            say(f"Ray did not start, trying again: {_first_line(error)}")

    def _started(self, folder: str) -> Exception | None:
        """Start a Ray; return why it did not start."""
        import ray

        try:
            with _ended_on_error(), _signals_kept(), on_loopback(_TOKEN):
                ray.init(
                    address="local",
                    num_cpus=(self.jobs or max(1, cores() // self.cpus)) * self.cpus,
                    object_store_memory=_STORE_BYTES,
                    include_dashboard=False,
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=folder,
                    **_QUIET,
                )
        # Ray says by a bare Exception that a node was not up in time.
        except Exception as error:  # noqa: BLE001
            return error
        return None

    def _join(self, address: str) -> None:
        import ray

        if address != "auto":
            _knock(address)
        near = on_loopback() if _is_loopback(address) else contextlib.nullcontext()
        try:
            with _ended_on_error(), _signals_kept(), near:
                ray.init(address=address, **_QUIET)
        except Exception as error:
            raise EngineError(f"Ray cannot be joined at {address}: {error}") from error

    def _room(self) -> int:
        """Return how many runs the nodes that are alive can have at a time."""
        room = 0
        for node in _nodes():
            fit = int(node["Resources"].get("CPU", 0) // self.cpus)
            if self.gpus:
                fit = min(fit, int(node["Resources"].get("GPU", 0) / self.gpus + 1e-9))
            room += fit
        return room


@contextlib.contextmanager
def on_loopback(token: str | None = None) -> Iterator[None]:
    """Let a Ray that is started or joined in this block speak on 127.0.0.1 alone.

    Ray takes 127.0.0.1 for another word for this machine's address in its network and listens
    there, but for systems on which that opens a dialogue of the firewall: it is told that this is
    one. It also starts the server of its dashboard where that is switched off, which asks addresses
    outside of this machine in which cloud it is, whatever was said of usage reports. It is not
    started here.

    Args:
        token: What its processes are to show each other, for a Ray that is started. Ray would write
            one into the user's home.
    """
    from ray._private import node, ray_constants

    kind: Any = node.Node
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if token is not None:
        wanted["RAY_AUTH_TOKEN"] = token
    # Ray sets the mode itself when it starts.
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}
    # Both raise AttributeError in a version of Ray that has them no more, rather than be of no use.
    server, far = kind.start_api_server, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    kind.start_api_server = lambda *arguments, **more: None
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        kind.start_api_server, ray_constants.ENABLE_RAY_CLUSTER = server, far
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from printing the last lines of a dead node's log, to standard output at that."""
    from ray._private import worker

    before = worker._worker_logs_enabled
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


@contextlib.contextmanager
def _ended_on_error() -> Iterator[None]:
    """Where Ray cannot be started or joined, end the processes that it has started so far."""
    import psutil
    import ray

    own = psutil.Process()
    before = set(own.children())
    try:
        yield
    except BaseException:
        ray.shutdown()
        for process in set(own.children()) - before:
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)
        raise


def _knock(address: str) -> None:
    """Refuse an address at which nobody answers; Ray would try for minutes.

    Raises:
        EngineError: Nobody does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise EngineError(f"Ray cannot be joined at {address}: {error}") from error


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handlers of signals that Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive."""
    ray: Any = importlib.import_module("ray")
    return [node for node in ray.nodes() if node["Alive"]]


def _nodes_in_words() -> str:
    found = []
    for node in _nodes():
        resources = node["Resources"]
        gpus = f" and {resources['GPU']:g} GPUs" if resources.get("GPU") else ""
        found.append(f"{resources.get('CPU', 0):g} processors{gpus}")
    return f"{len(found)} nodes: {', '.join(found)}" if found else "no node"


# ------------------------------------------------------------------------------------------------
# On the nodes


@dataclass(frozen=True)
class _Surroundings:
    """What a task needs to know of where the comparison was started.

    Attributes:
        mark: A file in the folder of the runs, by which a node sees that it is the same folder.
        folder: The working directory.
        path: ``sys.path``.
        environment: Variables of this library.
        versions: Of the packages that decide the numbers.
    """

    mark: Path
    folder: Path
    path: tuple[str, ...]
    environment: Mapping[str, str]
    versions: Mapping[str, str]

    @classmethod
    def here(cls, mark: Path) -> _Surroundings:
        return cls(
            mark,
            Path.cwd(),
            tuple(sys.path),
            {name: value for name, value in os.environ.items() if name.startswith("NTKMTL_")},
            versions(),
        )

    def adopt(self) -> None:
        """Make the process of a task like that of the comparison.

        Raises:
            EngineError: This node is of no use to the comparison.
        """
        if not self.mark.exists():
            raise EngineError(
                f"the node {platform.node()} does not see {self.mark.parent}: put the folder "
                "of the runs where every node finds it under the same path"
            )
        if versions() != self.versions:
            raise EngineError(
                f"the node {platform.node()} has {versions()}, where the comparison was "
                f"started there is {dict(self.versions)}: install the same on every node"
            )
        if self.folder.is_dir():
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        os.environ.update(self.environment)


class _Line:
    """A task's line to the comparison: what it tells, and whether it is asked to stop."""

    def __init__(self, post: Any, number: int, attempt: int) -> None:
        self.post, self.number, self.attempt = post, number, attempt
        self.last: tuple[Any, ...] = ("stopped",)
        self.reply: Any = None
        self.stopping = False
        self.looked = time.monotonic()

    def send(self, message: tuple[Any, ...]) -> None:
        if message[0] in ("finished", "stopped", "failed"):
            # It goes back as the task's result, which no message overtakes.
            self.last = message
            return
        self.reply = self.post.tell.remote(self.number, self.attempt, message)

    def should_stop(self) -> bool:
        import ray

        now = time.monotonic()
        if self.reply is None or now - self.looked < POLL_SECONDS / 2:
            return self.stopping
        self.looked = now
        if ray.wait([self.reply], timeout=0)[0]:
            self._hear()
        return self.stopping

    def close(self) -> tuple[Any, ...]:
        if self.reply is not None:
            self._hear()
        return self.last

    def _hear(self) -> None:
        import ray

        try:
            self.stopping |= ray.get(self.reply)
        except ray.exceptions.RayError:
            # Nobody listens any more: as good as a request to stop.
            self.stopping = True
        self.reply = None


_problems: dict[str, Problem] = {}
"""The problems that this worker has made: their data are read once."""


def _task(
    job: Work, surroundings: _Surroundings, post: Any, number: int, attempt: int
) -> tuple[Any, ...]:
    """Train one run; return its last message."""
    line = _Line(post, number, attempt)
    line.send(("begun",))
    try:
        surroundings.adopt()
    except EngineError as error:
        return ("failed", "EngineError", str(error), "", 0.0)
    line.looked = -math.inf
    if not line.should_stop():
        run_job(job, _problems, line.send, line.should_stop)
    return line.close()


def _post_class() -> type:
    """Return the class of the actor between the comparison and its tasks.

    A class made in a function travels to the actor's process as code, so that the process need not
    import this library, and torch with it.
    """

    class Post:
        def __init__(self) -> None:
            self.messages: list[tuple[int, int, tuple[Any, ...]]] = []
            self.stopping = False

        def tell(self, number: int, attempt: int, message: tuple[Any, ...]) -> bool:
            self.messages.append((number, attempt, message))
            return self.stopping

        def take(self) -> list[tuple[int, int, tuple[Any, ...]]]:
            messages, self.messages = self.messages, []
            return messages

        def stop(self) -> None:
            self.stopping = True

    return Post


# ------------------------------------------------------------------------------------------------
# In the comparison


@dataclass
class _Attempt:
    """A run that has been given to Ray."""

    number: int
    job: Any
    count: int = 0
    begun: bool = False
    steps: int = 0
    deaths: int = 0


class _Runs:
    """Hands jobs to Ray and takes what comes back."""

    def __init__(
        self, engine: RayEngine, surroundings: _Surroundings, say: Callable[[str], None]
    ) -> None:
        self.engine = engine
        self.surroundings = surroundings
        self.say = say
        self.active: dict[Any, _Attempt] = {}
        self.waits = False
        self.post: Any = None
        self.task: Any = None

    def run(
        self, queue: JobQueue[Any], book: Book[Any], stop_requested: Callable[[], bool], /
    ) -> bool:
        """See :class:`ntkmtl.bench.training.workers.Runner`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_post_class())
        self.post = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        self.task = ray.remote(_task).options(
            num_cpus=self.engine.cpus,
            num_gpus=self.engine.gpus,
            # Ray would begin it again without a word, and count the attempts its own way.
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        stopping = False
        try:
            self._fill(queue)
            while self.active or (self.waits and queue.pending and not stopping):
                done = self._wait()
                if stop_requested() and not stopping:
                    stopping = True
                    ray.get(self.post.stop.remote())
                self._listen(book)
                if stopping:
                    for reference, attempt in self.active.items():
                        # It waits for room that there may never be.
                        if not attempt.begun:
                            ray.cancel(reference)
                for reference in done:
                    self._end(reference, book, stopping)
                if not stopping:
                    self._fill(queue)
        finally:
            # Only with tasks where something was raised: a second Ctrl-C for one.
            for reference in self.active:
                ray.cancel(reference, force=True)
            ray.kill(self.post)
        return stopping and bool(book.open)

    def _wait(self) -> list[Any]:
        """Wait until a run ends, though not for long; return those that have ended."""
        import ray

        if not self.active:
            # There is no room for any: a node may come.
            time.sleep(POLL_SECONDS)
            return []
        done: list[Any] = ray.wait(list(self.active), timeout=POLL_SECONDS)[0]
        return done

    def _fill(self, queue: JobQueue[Any]) -> None:
        room = self.engine._room() if self.engine.jobs is None else self.engine.jobs
        if room == 0 and not self.waits:
            self.say(f"No node has room for a run any more ({_nodes_in_words()}): waiting for one")
        self.waits = room == 0
        while len(self.active) < room:
            found = queue.next()
            if found is None:
                break
            self._submit(_Attempt(*found))

    def _submit(self, attempt: _Attempt) -> None:
        # Nodes have working directories of their own.
        job = replace(attempt.job, folder=attempt.job.folder.resolve())
        reference = self.task.remote(
            job, self.surroundings, self.post, attempt.number, attempt.count
        )
        self.active[reference] = attempt

    def _listen(self, book: Book[Any]) -> None:
        import ray

        attempts = {(a.number, a.count): a for a in self.active.values()}
        for number, count, message in ray.get(self.post.take.remote()):
            attempt = attempts.get((number, count))
            if attempt is None:
                # From a worker that was given up before it knew.
                continue
            if message[0] == "begun":
                attempt.begun = True
                continue
            if message[0] == "step" and message[1] > attempt.steps:
                attempt.steps, attempt.deaths = message[1], 0
            book.take(number, attempt.job, message)

    def _end(self, reference: Any, book: Book[Any], stopping: bool) -> None:
        import ray

        attempt = self.active.pop(reference)
        message: tuple[Any, ...]
        try:
            message = ray.get(reference)
            if attempt.count and message[:2] == ("failed", RunBusyError.__name__):
                # The worker that was given up is still in the run's folder.
                raise ray.exceptions.WorkerCrashedError
        except ray.exceptions.RayTaskError as error:
            # What the training raises comes as a message: this is from around it.
            cause = error.cause if isinstance(error.cause, Exception) else error
            message = ("failed", type(cause).__name__, str(cause), str(error), 0.0)
        except ray.exceptions.TaskCancelledError:
            message = ("stopped",)
        except ray.exceptions.RuntimeEnvSetupError as error:
            message = ("failed", type(error).__name__, str(error), "", 0.0)
        except ray.exceptions.RayError as error:
            if stopping:
                message = ("stopped",)
            else:
                why = _first_line(error)
                attempt.deaths += 1
                if attempt.deaths <= self.engine.retries:
                    book.reporter.message(
                        f"{attempt.job.label}: its worker died ({why}); going on from the last "
                        "checkpoint"
                    )
                    attempt.count, attempt.begun = attempt.count + 1, False
                    self._submit(attempt)
                    return
                message = (
                    "failed",
                    "WorkerDied",
                    f"its worker died {attempt.deaths} times in a row without progress: {why}",
                    str(error),
                    0.0,
                )
        book.take(attempt.number, attempt.job, message)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".:")
    name = type(error).__name__
    return f"{name}: {text[:200]}" if text else name
