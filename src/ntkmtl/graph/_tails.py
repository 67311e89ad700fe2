"""Losses that are elements of one tensor: tasks share operations, but no elements.

``per_task = (prediction - target).square().mean(0)`` computes k losses by one chain of operations.
In the graph all tasks share this chain (a *tail*), although each uses its own elements. Tails are
followed down, by element where possible, to the last operation of the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ntkmtl.graph import _ops
from ntkmtl.graph._parts import ALL, Part, before, joined, part_taken
from ntkmtl.graph._reductions import lost_samples
from ntkmtl.graph._walk import ACTIVATION, Edge, Walk, shape_of

__all__ = ["look_through"]


def look_through(found: Walk, borders: Sequence[tuple[int, Any, int, Edge]]) -> bool:
    """Find the tasks' paths through tails and add them to :attr:`Walk.routes`.

    Args:
        found: The walk, which is changed.
        borders: The border found so far, as tuples of task, node, position and edge.

    Returns:
        Whether a route was added.
    """
    known: dict[int, bool] = {}

    def bare(task: int) -> bool:
        if task not in known:
            known[task] = _consists_of(found, task, lambda node: _ops.operation(node) in _ops.TAIL)
        return known[task]

    added = False
    for task, (node, nr) in enumerate(found.roots):
        if _ops.operation(node) in _ops.SPLITTING and task not in found.routes.get(node, {}):
            added = _trace(found, task, (node, nr), ALL, linear=True) or added
    for task, node, _, edge in borders:
        above = _ops.operation(node)
        if above not in _ops.TAIL and _ops.operation(edge[0]) not in _ops.SPLITTING:
            continue  # the last operation of a head
        part = part_taken(node, edge)
        indexing = above in _ops.INDEXING or _ops.operation(edge[0]) in _ops.SPLITTING
        # Parts of a hidden tensor of the network are not losses: that tensor stays the border for
        # all tasks, whether they read a part of it or all of it.
        if bare(task) and (indexing or shape_of(edge)):
            linear = _consists_of(found, task, lambda node: _is_linear(found, node))
            one = _takes_one(node)
            added = _trace(found, task, edge, part, linear=linear, one=one) or added
    return added


def _consists_of(found: Walk, task: int, allowed: Callable[[Any], bool]) -> bool:
    """Whether all operations between a task's border and its loss are allowed ones."""
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
            continue  # a learned scale of the loss, which is no head
        if not allowed(node):
            return False
        stack += [child for child, _ in found.edges(node, task) if child is not None]
    return True


def _is_linear(found: Walk, node: Any) -> bool:
    """Whether an operation of a tail only moves, adds or scales entries of one tensor."""
    live = [child for child, _ in found.children[node] if child is not None]
    name = _ops.operation(node)
    return name in _ops.ARRANGING or (name in _ops.LINEAR and len(live) == 1)


def _takes_one(node: Any, one: bool = False) -> bool:
    """Whether an operation reads one number of its input, if ``one`` of its output is used."""
    name, shape = _ops.operation(node), shape_of((node, 0))
    if name in _ops.INDEXING and shape is not None and math.prod(shape) == 1:
        return True
    return one and (name in _ops.ARRANGING or name in _ops.ELEMENTWISE)


def _trace(
    found: Walk, task: int, edge: Edge, part: Part, *, linear: bool, one: bool = False
) -> bool:
    """Follow the elements that one task uses down through a tail.

    Args:
        found: The walk, which is changed.
        task: The task.
        edge: Where to start.
        part: The elements that are used there.
        linear: Whether the loss is linear in them.
        one: Whether they are a single number, wherever it stands.

    Returns:
        Whether a route was added.
    """
    added = False
    stack: list[tuple[Edge, Part, bool, bool]] = [(edge, part, linear, one)]
    seen: set[tuple[Edge, tuple[Any, ...]]] = set()
    while stack:
        (node, nr), part, linear, one = stack.pop()
        key = ((node, nr), tuple(sorted(part.items())))
        mask = found.masks[node]
        if key in seen or not mask & (mask - 1):
            continue
        seen.add(key)
        name = _ops.operation(node)
        children = found.children[node]
        found.blurred = found.blurred or name == _ops.ASSIGNMENT
        live = [c for c, _ in children if c is not None]
        if name not in _ops.TAIL or not live or any(found.kind(c) != ACTIVATION for c in live):
            _note_number(found, task, (node, nr), part, linear=linear, one=one)
            continue
        if name in _ops.JOINING:
            below = joined(found, node, name, part)
        else:
            below = [(e, before(node, nr, name, part, e)) for e in children if e[0] is not None]
        known = found.routes.setdefault(node, {})
        taken = known.get(task, ())
        known[task] = tuple(dict.fromkeys((*taken, *(e for e, _ in below))))
        added = added or len(known[task]) > len(taken)
        linear = linear and _is_linear(found, node)
        one = _takes_one(node, one)
        stack += [(e, inner, linear, one) for e, inner in below]
    return added


def _note_number(
    found: Walk, task: int, edge: Edge, part: Part, *, linear: bool, one: bool
) -> None:
    """Note where a task's way ends at a tensor that holds losses instead of outputs for samples.

    A vector of several numbers of which a task uses one holds losses. In more dimensions the number
    may also be an output for a batch of one sample; a loss is not linear in that. Where this leaves
    a doubt, and where a task uses a whole vector (losses that a matrix mixes, say), the operations
    below tell.
    """
    shape = shape_of(edge)
    if not shape or math.prod(shape) == 1 < len(shape):
        return
    windows = [part.get(dim, (0, size)) for dim, size in enumerate(shape)]
    narrow = all(end - start == 1 for start, end in windows) and (0 in part or len(shape) > 1)
    one = one or narrow
    sure = one and (linear or len(shape) == 1)
    doubtful = one or math.prod(shape) == max(shape)
    if sure or (doubtful and lost_samples(found, edge)):
        found.numbers.add((task, edge))
