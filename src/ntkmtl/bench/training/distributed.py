"""Several processes that train one network together, and one process that trains alone.

Each process of ``torchrun`` or ``accelerate launch`` calls :func:`ntkmtl.bench.training.train`
with the same arguments. The first one reads and writes files and decides; the others are told.
From the command line the first process plans and the others follow it, one run after another: see
:func:`leading` and :func:`follow`.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.balance import Balancer
from ntkmtl.bench.training.accelerating import accelerator
from ntkmtl.kernel import ExtendedNTK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager


__all__ = [
    "JoiningBalancer",
    "Team",
    "announced",
    "follow",
    "gathered",
    "is_known_to_all",
    "join_minibatches",
    "known_to_all",
    "launched",
    "leading",
    "local",
    "processes",
    "rank",
    "sharded",
    "spread_like",
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


class Team:
    """The processes that train together. This one trains alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Where this process computes.
        shards: Whether the parameters are spread over the processes between steps.
    """

    rank = 0
    size = 1
    shards = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def from_first(self, decide: Callable[[], _T]) -> _T:
        """Return on every process what a function returns, or raise what it raises, on the first.

        Args:
            decide: Called on the first process only.
        """
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

    def whole(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return within what the parameters of a prepared module are there in whole.

        Every process enters it.
        """
        return contextlib.nullcontext()

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return what a backward pass runs within that is not the last one before a step."""
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


class _Processes(Team):
    """The processes that train together, two or more.

    Args:
        device: Where this process computes.
        accelerate: An ``accelerate.Accelerator``.
        shards: Whether to spread the parameters over them, by FSDP2.
    """

    def __init__(self, device: torch.device, accelerate: Any, shards: bool = False) -> None:
        super().__init__(device)
        self.shards = shards
        self.accelerate = accelerate
        self.rank = int(accelerate.process_index)
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
            raise known_to_all(raised)
        if elsewhere is not None:
            raise known_to_all(elsewhere)
        return value  # type: ignore[no-any-return]

    def everyone(self, check: Callable[[], _T]) -> _T:
        value, raised = None, None
        try:
            value = check()
        except Exception as error:  # noqa: BLE001  (raised again on every process)
            raised = error
        errors = self.gather(None if raised is None else _portable(raised))
        if raised is not None:
            raise known_to_all(raised)
        for elsewhere in errors:
            if elsewhere is not None:
                raise known_to_all(elsewhere)
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
        if self.shards:
            return sharded(module, self.device, self.size)
        prepared: nn.Module = self.accelerate.prepare_model(module)
        return prepared

    @contextlib.contextmanager
    def _whole(self, module: Any) -> Iterator[None]:
        module.unshard()
        try:
            yield
        finally:
            module.reshard()

    def whole(self, module: nn.Module) -> AbstractContextManager[Any]:
        return self._whole(module) if self.shards else contextlib.nullcontext()

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        if self.shards:
            # Nothing is exchanged before the module is told so.
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self.accelerate.no_sync(module)
        return context


_KNOWN = "_ntkmtl_known_to_all"


def known_to_all(error: _E) -> _E:
    """Mark an error that every process raises at the same place, and return it."""
    setattr(error, _KNOWN, True)
    return error


def is_known_to_all(error: BaseException) -> bool:
    """Return whether an error is one that every process raises at the same place."""
    return getattr(error, _KNOWN, False) is True


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to another process."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (of our own making)
    except Exception:  # noqa: BLE001  (whatever keeps it from being sent)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# ------------------------------------------------------------------------------------------------
# Parameters that are spread over the processes


def sharded(module: nn.Module, device: torch.device, size: int) -> nn.Module:
    """Spread the parameters of a module over the processes, in place, by FSDP2.

    They are one group: whole from the module's forward pass until a backward pass from its output,
    which averages what is in ``.grad`` and lets go of all but this process's part.

    Args:
        module: Whose parameters are the same on every process.
        device: Where it is.
        size: Number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=init_device_mesh(device.type, (size,)), reshard_after_forward=False)
    return module


def gathered(state: Any) -> Any:
    """Return a state with every spread tensor in whole; every process calls it.

    Args:
        state: Tensors within dicts, lists and tuples.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def spread_like(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return an optimiser's state with what belongs to a spread parameter spread like it.

    Args:
        state: Of an optimiser of the whole parameters.
        parameters: Those of all groups in their order, spread.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    def like(parameter: Tensor, value: Any) -> Any:
        if not (isinstance(value, Tensor) and isinstance(parameter, DTensor)):
            return value
        if value.shape != parameter.shape:
            return value
        # Every process has the whole: nothing is sent.
        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )

    return {
        **state,
        "state": {
            number: {key: like(parameters[number], value) for key, value in own.items()}
            for number, own in state["state"].items()
        },
    }


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, all of one that is not spread."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def processes(
    device: torch.device, *, accelerated: bool = False, shards: bool = False
) -> Iterator[Team]:
    """Meet the other processes, if there are any.

    Args:
        device: ``cpu`` or ``cuda``, the same on all.
        accelerated: Whether accelerate is needed in a single process too, for a tracker.
        shards: Whether to spread the parameters over the processes.

    Raises:
        MissingExtraError: accelerate is needed and not installed.
        ValueError: There is no other process to spread parameters over.
    """
    count = launched()
    if shards and count == 1:
        raise ValueError(
            "parameters are spread over two or more processes, and this one was launched alone; "
            "launch several with torchrun or accelerate launch, or leave FSDP out"
        )
    if count == 1 and not accelerated:
        yield Team(device)
        return
    met = dist.is_available() and dist.is_initialized()
    with accelerator(device) as accelerate:
        try:
            if count == 1:
                yield Team(device)
            else:
                yield _Processes(accelerate.device, accelerate, shards)
        finally:
            if not met and dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------
# Mini-batches that several processes share


def join_minibatches(kernel: ExtendedNTK, n: int) -> ExtendedNTK:
    r"""Return the kernel of n mini-batches, each made of several neighbours.

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
# One process leads, the others follow

_leader: Team | None = None
_broken = False


@contextlib.contextmanager
def leading(device: torch.device) -> Iterator[None]:
    """Lead the other processes, if there are any: :func:`announced` tells them what to train.

    Args:
        device: Where the runs are trained.
    """
    global _leader, _broken
    if launched() == 1:
        yield
        return
    with processes(device) as team:
        _leader, _broken = team, False
        try:
            yield
        finally:
            _leader = None
            if not _broken:
                dist.broadcast_object_list([None], src=0)


@contextlib.contextmanager
def announced(work: object) -> Iterator[None]:
    """Tell the processes that follow what is trained within; without any, do nothing.

    Args:
        work: Something that can be pickled.
    """
    global _broken
    if _leader is None:
        yield
        return
    dist.broadcast_object_list([work], src=0)
    try:
        yield
    except BaseException as error:
        # The others may be waiting within a step, where they hear nothing more.
        _broken = not is_known_to_all(error)
        raise


def follow(device: torch.device, train: Callable[[Any], None]) -> None:
    """Train what the first process announces, until it is done.

    Args:
        device: Where the runs are trained.
        train: Called with what was announced. An error that all processes meet is the first
            one's to report; another one ends this process, so that the launcher ends the rest.
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
                if not is_known_to_all(error):
                    traceback.print_exc()
                    raise
