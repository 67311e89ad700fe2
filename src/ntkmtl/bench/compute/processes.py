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
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.balance import Balancer
from ntkmtl.bench.compute.accelerate_ import accelerator, check_launch
from ntkmtl.kernel import ExtendedNTK

__all__ = [
    "JoiningBalancer",
    "ProcessGroup",
    "announced",
    "follow",
    "is_raised_on_all_ranks",
    "join_minibatches",
    "launched",
    "leading",
    "processes",
    "raised_on_all_ranks",
    "rank",
]

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
        told: list[Any] = [None]
        raised: BaseException | None = None
        if self.first:
            try:
                told = [(decide(), None)]
            except Exception as error:  # noqa: BLE001  (raised again on every process)
                raised = error
                told = [(None, _portable(error))]
        dist.broadcast_object_list(told, src=0)
        value, elsewhere = told[0]
        if raised is not None:
            raise raised_on_all_ranks(raised)
        if elsewhere is not None:
            raise raised_on_all_ranks(elsewhere)
        return value  # type: ignore[no-any-return]

    def everyone(self, check: Callable[[], _T]) -> _T:
        value, raised = None, None
        try:
            value = check()
        except Exception as error:  # noqa: BLE001  (raised again on every process)
            raised = error
        errors = self.gather(None if raised is None else _portable(raised))
        if raised is not None:
            raise raised_on_all_ranks(raised)
        for elsewhere in errors:
            if elsewhere is not None:
                raise raised_on_all_ranks(elsewhere)
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
    with accelerator(device) as accelerate:
        try:
            if count == 1:
                yield ProcessGroup(device)
            else:
                yield _Distributed(accelerate.device, accelerate)
        finally:
            if not met and dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------
# Mini-batches that are split over several processes


def join_minibatches(kernel: ExtendedNTK, n: int) -> ExtendedNTK:
    r"""Return the kernel of n mini-batches, each made of several neighbors.

    The gradient of a union is the mean of its parts' gradients by their shares s of the task's
    samples, so its kernel is :math:`\sum_{uv} s_{iu} s_{jv} K_{iu,jv}` over the parts u and v.

    Args:
        kernel: Of N mini-batches, a multiple of n.
        n: Number of mini-batches.

    Example:
        >>> kernel = ExtendedNTK(blocks=torch.tensor([[[4.0, 2.0], [2.0, 0.0]]]))
        >>> join_minibatches(kernel, 1).blocks
        tensor([[[2.]]])
    """
    shares = kernel.shares.view(kernel.tasks, n, -1)
    whole = shares.sum(dim=2, keepdim=True)
    means = torch.where(whole > 0, shares / whole, 1.0 / shares.shape[2])
    # Row a of task i's matrix averages over the parts of mini-batch a.
    matrix = torch.stack([torch.block_diag(*task[:, None]) for task in means])
    matrix = matrix.to(kernel.blocks)
    joint = whole[:, :, 0]
    if kernel.has_all_blocks:
        values = torch.einsum("iau,iujv,jbv->iajb", matrix, kernel.values, matrix)
        return ExtendedNTK(values, shares=joint)
    return ExtendedNTK(blocks=matrix @ kernel.blocks @ matrix.mT, shares=joint)


class JoiningBalancer(Balancer):
    """A Balancer whose mini-batches are each spread over several processes.

    Args:
        method: As for :class:`ntkmtl.Balancer`.
        joined: Number of mini-batches of all processes together.
        **options: As for :class:`ntkmtl.Balancer`.
    """

    def __init__(self, method: str, joined: int, **options: Any) -> None:
        super().__init__(method, **options)
        self.joined = joined

    def prepare_kernel(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Join the parts of each mini-batch."""
        return join_minibatches(kernel, self.joined)


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
