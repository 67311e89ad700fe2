"""Losses that are parts of one tensor: tasks that share operations, but no elements.

``per_task = (prediction - target).square().mean(0)`` makes k losses of one chain of operations. The
graph says that all tasks share it, its elements say otherwise. Such tails are looked through,
element by element where that can be told, down to the first operation that makes no losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntkmtl.graph import _ops
from ntkmtl.graph._walk import ACTIVATION, Edge, Walk, shape_of

__all__ = ["look_through"]

Part = tuple[int, int, int] | None
"""Dimension, first index and end of the part of a tensor that matters; None where not known."""


def look_through(found: Walk, borders: Sequence[tuple[int, Any, int, Edge]]) -> bool:
    """Note the routes of tasks through tails. See :attr:`Walk.routes`.

    Args:
        found: The walk; its routes are added to.
        borders: Task, node, position and edge of the border as it is known so far.

    Returns:
        Whether a route was added.
    """
    known: dict[int, bool] = {}

    def bare(task: int) -> bool:
        if task not in known:
            known[task] = _is_bare(found, task)
        return known[task]

    added = False
    for task, (node, nr) in enumerate(found.roots):
        if _ops.operation(node) in _ops.SPLITTING and task not in found.routes.get(node, {}):
            added = _trace(found, task, (node, nr), None, _ops.TAIL) or added
    for task, node, _, edge in borders:
        above = _ops.operation(node)
        if above not in _ops.TAIL and _ops.operation(edge[0]) not in _ops.SPLITTING:
            continue  # the last operation of a head
        part = _part_taken(node, edge)
        indexing = above in _ops.INDEXING or _ops.operation(edge[0]) in _ops.SPLITTING
        # A part of the network's own tensors is no loss: tasks that read parts of one and tasks
        # that read all of it are measured at one place.
        if bare(task) and (indexing or shape_of(edge)):
            added = _trace(found, task, edge, part, _ops.TAIL) or added
    return added


def _is_bare(found: Walk, task: int) -> bool:
    """Whether nothing but the making of a loss lies between a task's border and its loss."""
    stack = [found.roots[task][0]]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        mask = found.masks[node]
        if node in seen or (mask & (mask - 1) and node not in found.routes):
            continue
        seen.add(node)
        if node in found.leaves:
            if found.leaves[node].numel() > 1:
                return False
            continue  # a learned scale of the loss
        if _ops.operation(node) not in _ops.TAIL:
            return False
        stack += [child for child, _ in found.edges(node, task) if child is not None]
    return True


def _trace(found: Walk, task: int, edge: Edge, part: Part, through: frozenset[str]) -> bool:
    """Follow one task's elements down to what made them, through some operations."""
    added = False
    stack: list[tuple[Edge, Part]] = [(edge, part)]
    while stack:
        (node, nr), part = stack.pop()
        mask = found.masks[node]
        name = _ops.operation(node)
        if name == _ops.ASSIGNMENT or (name in _ops.JOINING and part is None):
            found.blurred = True
        if not mask & (mask - 1) or name not in through or not found.children[node]:
            continue
        below = tuple(e for e in found.children[node] if e[0] is not None)
        if any(found.kind(child) != ACTIVATION for child, _ in below):
            continue
        if name in _ops.JOINING and part is not None:
            below, part = _joined(node, below, part)
        else:
            part = _before(node, nr, name, part)
        known = found.routes.setdefault(node, {})
        taken = known.get(task, ())
        fresh = tuple(e for e in below if e not in taken)
        if fresh:
            known[task] = taken + fresh
            added = True
            stack += [(e, part) for e in fresh]
    return added


def _part_taken(node: Any, edge: Edge) -> Part:
    """Return what part of the tensor on an edge an indexing operation above it takes."""
    name = _ops.operation(node)
    shape = shape_of(edge)
    if name not in ("SelectBackward", "SliceBackward") or not shape:
        return None
    dim = _dimension(node, len(shape))
    if name == "SelectBackward":
        index = _signed(node._saved_index) % shape[dim]
        return (dim, index, index + 1)
    if node._saved_step != 1:
        return None
    window = slice(_signed(node._saved_start), _signed(node._saved_end))
    start, stop, _ = window.indices(shape[dim])
    return (dim, start, stop)


def _signed(index: int) -> int:
    """Saved indices are read as unsigned numbers."""
    return index - (1 << 64) if index >= 1 << 63 else index


def _dimension(node: Any, ndim: int) -> int:
    """Return the dimension that an operation saved, counted from the first."""
    return _signed(node._saved_dim) % ndim


def _before(node: Any, nr: int, name: str, part: Part) -> Part:
    """Return the part of an operation's inputs that a part of its output is made of."""
    if name in ("SelectBackward", "SliceBackward"):
        return _part_taken(node, node.next_functions[0])
    if name in _ops.SPLITTING:
        return _before_split(node, nr, name)
    if part is None:
        return None
    if name in ("MeanBackward", "SumBackward"):
        return _before_reduction(node, part)
    own = shape_of((node, 0))
    same = all(shape_of(e) == own for e in node.next_functions if e[0] is not None)
    return part if same and name in _ops.ELEMENTWISE else None


def _before_split(node: Any, nr: int, name: str) -> Part:
    whole = shape_of(node.next_functions[0])
    if not whole or not isinstance(getattr(node, "_saved_dim", None), int):
        return None
    dim = _dimension(node, len(whole))
    if name == "UnbindBackward":
        return (dim, nr, nr + 1)
    sizes = [shape_of((node, i)) for i in range(nr + 1)]
    lengths = [size[dim] for size in sizes if size is not None]
    if len(lengths) < len(sizes):
        return None
    return (dim, sum(lengths[:-1]), sum(lengths))


def _before_reduction(node: Any, part: tuple[int, int, int]) -> Part:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    dims = getattr(node, "_saved_dim", None)
    if sizes is None or dims is None:
        return None
    gone = {_signed(d) % len(sizes) for d in dims}
    if getattr(node, "_saved_keepdim", False):
        return None if part[0] in gone else part
    kept = [d for d in range(len(sizes)) if d not in gone]
    return (kept[part[0]], part[1], part[2]) if part[0] < len(kept) else None


def _joined(
    node: Any, below: tuple[Edge, ...], part: tuple[int, int, int]
) -> tuple[tuple[Edge, ...], Part]:
    """Return which of the tensors that were stacked or joined a part comes from."""
    dim, start, stop = part
    own = getattr(node, "_saved_dim", None)
    shape = shape_of((node, 0))
    inputs = node.next_functions
    if own is None or shape is None or _signed(own) % len(shape) != dim:
        return below, None
    if _ops.operation(node) == "StackBackward":
        return tuple(e for e in inputs[start:stop] if e[0] is not None), None
    position, chosen = 0, []
    for edge in inputs:
        size = shape_of(edge) if edge[0] is not None else None
        if size is None:
            return below, None
        if position < stop and position + size[dim] > start:
            chosen.append(edge)
        position += size[dim]
    return tuple(chosen), None
