"""The process group of a run: several processes that train one network, or a single one.

Each process of ``torchrun`` or ``accelerate launch`` calls :func:`ntkmtl.bench.training.train`
with the same arguments. The first one reads and writes files and decides; the others follow.
From the command line the first process plans and the others follow it, run by run: see
:func:`leading` and :func:`follow`.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.bench.problems.base import Precision
from ntkmtl.errors import missing_extra

__all__ = [
    "ProcessGroup",
    "announced",
    "check_launch",
    "follow",
    "is_raised_on_all_ranks",
    "launched",
    "leading",
    "processes",
    "raised_on_all_ranks",
    "rank",
]

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: one evaluates while the others wait."""

_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)


def launched() -> int:
    """Return the number of processes that were launched to train together, 1 for none."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if "RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process among those launched together, 0 for the first."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0


class ProcessGroup:
    """The processes that train one network together; this class is the group of one process.

    Attributes:
        rank: Number of this process, from 0.
        first: Whether this process writes the files: the one of rank 0.
        size: Number of processes.
        device: Device of this process.
    """

    rank = 0
    first = True
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def from_first(self, decide: Callable[[], _T]) -> _T:
        """Call a function on the first process; return or raise its outcome on every process."""
        return decide()

    def everyone(self, check: Callable[[], _T]) -> _T:
        """Call a function on every process, and raise on all if it raises on one.

        Args:
            check: Called here; it waits for no other process.
        """
        return check()

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, in their order."""
        return [value]

    def flags(self, *values: bool) -> list[bool]:
        """Return for each flag whether it is set on any process."""
        return list(values)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        return list(values)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are averaged over the processes."""
        return module

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return the context of a backward pass that exchanges no gradients: not a step's last."""
        return contextlib.nullcontext()

    def share(self, indices: Tensor, part: int, parts: int) -> Tensor:
        """Return this process's samples of a part of a step.

        The samples of a step are cut into parts, each of which is cut into one slice per process.

        Args:
            indices: Those of the step, shape (B,).
            part: Number of the part, from 0.
            parts: Number of parts.
        """
        pieces = parts * self.size
        if pieces == 1:
            return indices
        length = len(indices) // pieces
        start = (part * self.size + self.rank) * length
        return indices[start : start + length]


class _Distributed(ProcessGroup):
    """Two or more processes that train one network together."""

    def __init__(self, device: torch.device, accelerate: Any) -> None:
        super().__init__(device)
        self.accelerate = accelerate
        self.rank = int(accelerate.process_index)
        self.first = self.rank == 0
        self.size = int(accelerate.num_processes)

    def from_first(self, decide: Callable[[], _T]) -> _T:
        value, raised = _attempt(decide) if self.first else (None, None)
        told = [(value, None if raised is None else _portable(raised))]
        dist.broadcast_object_list(told, src=0)
        if not self.first:
            value, raised = told[0]
        if raised is not None:
            raise raised_on_all_ranks(raised)
        return value  # type: ignore[return-value]

    def everyone(self, check: Callable[[], _T]) -> _T:
        value, raised = _attempt(check)
        errors = self.gather(None if raised is None else _portable(raised))
        for error in (raised, *errors):
            if error is not None:
                raise raised_on_all_ranks(error)
        return value  # type: ignore[return-value]

    def gather(self, value: _T) -> list[_T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def flags(self, *values: bool) -> list[bool]:
        table = torch.tensor(values, dtype=torch.int32, device=self.device)
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
        return [bool(value) for value in table.tolist()]

    def sums(self, values: Sequence[float]) -> list[float]:
        # In float64 and in the order of the processes, so that it does not depend on the network.
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def prepare(self, module: nn.Module) -> nn.Module:
        prepared: nn.Module = self.accelerate.prepare_model(module)
        return prepared

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.accelerate.no_sync(module)
        return context


def _attempt(do: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
    """Return what a function returns, and what it raises."""
    try:
        return do(), None
    except Exception as error:  # noqa: BLE001  (raised again on every process)
        return None, error


_ON_ALL = "_ntkmtl_raised_on_all_ranks"


def raised_on_all_ranks(error: _E) -> _E:
    """Mark an error as one that every process raises at the same place, and return it."""
    setattr(error, _ON_ALL, True)
    return error


def is_raised_on_all_ranks(error: BaseException) -> bool:
    """Return whether an error is one that every process raises at the same place."""
    return getattr(error, _ON_ALL, False) is True


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to another process."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (of our own making)
    except Exception:  # noqa: BLE001  (any reason that it cannot be sent)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _is_true(key: str) -> bool:
    return os.environ.get(key, "false").lower() in ("true", "1")


def check_launch(precision: str | None = None) -> None:
    """Refuse settings of ``accelerate launch`` that the trainer does not follow.

    Args:
        precision: The recipe's; not looked at if None.

    Raises:
        ValueError: FSDP, DeepSpeed, Megatron-LM, a compiler, or another precision are asked for.
    """
    for key, what in (
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ):
        if _is_true(key):
            raise ValueError(
                f"accelerate was told to use {what}, which ntkmtl's trainer does not: it trains "
                "with DDP. Launch without it; in your own training loop, Balancer works with any "
                "wrapper whose hooks fire"
            )
    # accelerate would compile the network as a whole, and the run would not say so.
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ValueError(
            f"accelerate was told to compile with {backend}; launch with --dynamo_backend no, and "
            "give --compile to ntkmtl, which compiles trunk and heads"
        )
    if precision is None:
        return
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    mine = "no" if precision == "fp32" else precision
    known = get_args(Precision)
    if launched not in ("no", *known):
        raise ValueError(
            f"accelerate launch was told to use {launched}, which ntkmtl's trainer does not: "
            f"launch with --mixed_precision no, and give --precision {'|'.join(known)} to ntkmtl"
        )
    if launched not in ("no", mine):
        raise ValueError(
            f"accelerate launch was told to use {launched}, and the recipe says {precision}; "
            f"give --precision {launched} to ntkmtl as well, or leave it to ntkmtl alone"
        )


@contextlib.contextmanager
def _accelerator(device: torch.device) -> Iterator[Any]:
    """Make an ``Accelerator``, and restore accelerate's global state afterwards.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise missing_extra("training in several processes", "bench", error) from error
    # Its state is global to the process: a second device would be refused.
    kept = [(kind, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState)]
    kept.append((PartialState, dict(PartialState._shared_state)))
    for kind, _ in kept:
        kind._shared_state.clear()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            # The trainer does precision and accumulation itself: the Balancer takes part in both.
            mixed_precision="no",
            gradient_accumulation_steps=1,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    finally:
        for kind, state in kept:
            kind._shared_state.clear()
            kind._shared_state.update(state)


@contextlib.contextmanager
def processes(device: torch.device, *, accelerated: bool = False) -> Iterator[ProcessGroup]:
    """Join the other processes, if there are any.

    Args:
        device: ``cpu`` or ``cuda``, the same on all.
        accelerated: Whether accelerate is needed in a single process too, for a tracker.

    Raises:
        MissingExtraError: accelerate is needed and not installed.
        ValueError: ``accelerate launch`` was told to use what the trainer does not.
    """
    count = launched()
    if count > 1:
        check_launch()
    if count == 1 and not accelerated:
        yield ProcessGroup(device)
        return
    met = dist.is_available() and dist.is_initialized()
    with _accelerator(device) as accelerate:
        try:
            if count == 1:
                yield ProcessGroup(device)
            else:
                yield _Distributed(accelerate.device, accelerate)
        finally:
            if not met and dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------
# The first process announces runs, the others follow

_leader: ProcessGroup | None = None
_broken = False


@contextlib.contextmanager
def leading(device: torch.device) -> Iterator[None]:
    """Lead the other processes, if any: :func:`announced` sends them the runs to train."""
    global _leader, _broken
    if launched() == 1:
        yield
        return
    with processes(device) as group:
        _leader, _broken = group, False
        try:
            yield
        finally:
            _leader = None
            if not _broken:
                dist.broadcast_object_list([None], src=0)


@contextlib.contextmanager
def announced(job: object) -> Iterator[None]:
    """Send the job that is run in this context to the following processes, if there are any."""
    global _broken
    if _leader is None:
        yield
        return
    dist.broadcast_object_list([job], src=0)
    try:
        yield
    except BaseException as error:
        # The others may be waiting inside a step, where they receive nothing more.
        _broken = not is_raised_on_all_ranks(error)
        raise


def follow(device: torch.device, train: Callable[[Any], None]) -> None:
    """Train what the first process announces, until it is done.

    Args:
        device: Where the runs are trained.
        train: Called with what was announced. An error that all processes raise is reported by the
            first; any other ends this process, and the launcher then ends the rest.
    """
    with processes(device):
        while True:
            told: list[Any] = [None]
            dist.broadcast_object_list(told, src=0)
            if told[0] is None:
                return
            try:
                train(told[0])
            except BaseException as error:
                if not is_raised_on_all_ranks(error):
                    traceback.print_exc()
                    raise
