"""A network's inputs, cut along the samples into chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkmtl.kernel._nested import leaves_of, map_leaves

__all__ = ["Batches", "Chunk", "as_arguments", "batch_size", "cut"]

_CONSTANTS = (type(None), bool, int, float, str, torch.Size)


class Batches(Sequence[Any]):
    """Data given as several batches, for batches that cannot be sliced along a dimension.

    A batch of a graph network, for example, joins the nodes of all its graphs in one tensor and the
    edges in another. Whoever builds such batches can build several smaller ones.

    Args:
        batches: The batches, at least one. A lazy sequence, which loads a batch when it is indexed,
            saves memory. Each batch is read several times and must be the same each time.

    Raises:
        ValueError: There is no batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ntkmtl.kernel import output_ntk
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> output_ntk(nn.Linear(1, 1, bias=False), Batches([x[:2], x[2:]])).matrix()
        tensor([[1., 2., 3.],
                [2., 4., 6.],
                [3., 6., 9.]])
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        if len(batches) == 0:
            raise ValueError("Batches needs at least one batch, found none")
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index]


@dataclass(frozen=True)
class Chunk:
    """A range of samples.

    Attributes:
        start: First sample.
        stop: Last sample + 1.
        load: Returns the network's positional arguments for these samples.
    """

    start: int
    stop: int
    load: Callable[[], tuple[Any, ...]]

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def window(self) -> slice:
        """The samples as a slice."""
        return slice(self.start, self.stop)

    def part(self, batch_dim: int, start: int, stop: int) -> Chunk:
        """Return a part of the chunk. ``start`` and ``stop`` count from the data's first sample."""

        def load() -> tuple[Any, ...]:
            return cut(self.load(), batch_dim, start - self.start, stop - self.start)

        return Chunk(start, stop, load)


def as_arguments(inputs: Any) -> tuple[Any, ...]:
    # A plain tuple holds positional arguments; a NamedTuple is one argument.
    return inputs if type(inputs) is tuple else (inputs,)


def batch_size(arguments: tuple[Any, ...], batch_dim: int | None) -> int | None:
    """Return the number of samples along ``batch_dim``, None if the inputs cannot be sliced there.

    They can if all tensors have that dimension in the same size, and everything else among the
    inputs is a plain constant.
    """
    if batch_dim is None:
        return None
    leaves = list(leaves_of(arguments))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(not isinstance(leaf, (Tensor, *_CONSTANTS)) for leaf in leaves):
        return None
    if any(not -t.ndim <= batch_dim < t.ndim for t in tensors):
        return None
    sizes = {t.shape[batch_dim] for t in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def cut(arguments: tuple[Any, ...], batch_dim: int, start: int, stop: int) -> tuple[Any, ...]:
    """Return the arguments for samples ``start`` to ``stop`` - 1. Tensors are views, not copies."""

    def part(leaf: Any) -> Any:
        return leaf.narrow(batch_dim, start, stop - start) if isinstance(leaf, Tensor) else leaf

    result: tuple[Any, ...] = map_leaves(part, arguments)
    return result
