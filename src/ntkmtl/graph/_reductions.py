"""Whether a tensor still has rows for samples, or was reduced over them as losses are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ntkmtl.graph import _ops
from ntkmtl.graph._parts import before, signed
from ntkmtl.graph._walk import ACTIVATION, Edge, Walk, shape_of

__all__ = ["lost_samples"]

_SUMMED = {
    "MmBackward": (-1, -2),
    "BmmBackward": (-1, -2),
    "AddmmBackward": (None, -1, -2),
    "BaddbmmBackward": (None, -1, -2),
    "MvBackward": (-1, -1),
}
"""For each operand of a product the dimension over which the product sums."""


def lost_samples(found: Walk, edge: Edge) -> bool:
    """Whether a tensor was reduced over its first dimension, the samples, after the last layer.

    Args:
        found: The walk.
        edge: The tensor. Operations below it are followed down to those that have parameters.
    """
    stack, seen = [edge], {edge}
    while stack:
        node, nr = stack.pop()
        own = shape_of((node, nr))
        live = [(j, e) for j, e in enumerate(found.children[node]) if e[0] is not None]
        shapes = [shape_of(e) for _, e in live]
        if own is None or any(found.kind(child) != ACTIVATION for _, (child, _) in live):
            continue  # a layer of the network
        for (position, child), shape in zip(live, shapes, strict=True):
            if shape and any(
                _is_first(found, child, dim) for dim in _reduced(node, position, own, shape)
            ):
                return True
        # Smaller operands are broadcast: a mean over the batch in a normalization, say.
        sizes = [-1 if shape is None else math.prod(shape) for shape in shapes]
        for (_, child), size in zip(live, sizes, strict=True):
            if size == max(sizes) and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


def _reduced(
    node: Any, position: int, own: tuple[int, ...], below: tuple[int, ...]
) -> Sequence[int]:
    """Return the dimensions of one input, of shape ``below``, over which an operation reduces."""
    name = _ops.operation(node)
    if name in _SUMMED:
        dim = _SUMMED[name][position]
        # A square matrix mixes samples, as in a graph network, but keeps their number.
        return [] if dim is None or below[dim] in own else [dim % len(below)]
    # An index that was saved says to which rows others are added: those of atoms to molecules, say.
    if name in _ops.ARRANGING or hasattr(node, "_saved_index"):
        return []
    if not own:
        return range(len(below))
    saved = getattr(node, "_saved_dim", None)
    if saved is None:
        return []
    gone = {signed(d) % len(below) for d in ([saved] if isinstance(saved, int) else saved)}
    without = tuple(size for d, size in enumerate(below) if d not in gone)
    kept = tuple(1 if d in gone else size for d, size in enumerate(below))
    return sorted(gone) if own in (without, kept) else []


def _is_first(found: Walk, edge: Edge, dim: int) -> bool:
    """Whether a dimension, of several entries, is the first one below views and entrywise steps."""
    shape = shape_of(edge)
    assert shape is not None
    if shape[dim] == 1:
        return False
    while (name := _ops.operation(edge[0])) in _ops.VIEWS | _ops.ELEMENTWISE:
        for child in found.children[edge[0]]:
            if child[0] is not None and (part := before(*edge, name, {dim: (0, 1)}, child)):
                edge, (dim,) = child, part
                break
        else:
            break
    return dim == 0
