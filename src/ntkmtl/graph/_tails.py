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
from ntkmtl.graph._parts import ALL, before, joined
from ntkmtl.graph._reductions import lost_samples
from ntkmtl.graph._walk import ACTIVATION, Edge, Part, Walk, shape_of

__all__ = ["look_through"]

_ABOVE = _ops.TAIL | _ops.SUMMARIES
"""What a loss may be made of, apart from operations that tasks share, so that it has no head. Other
operations, as tanh, make a head without parameters of what they read, which stays the border."""


def look_through(found: Walk, borders: Sequence[tuple[int, Any, Edge]]) -> bool:
    """Find the tasks' paths through tails and add them to :attr:`Walk.routes`.

    Args:
        found: The walk, which is changed.
        borders: The border found so far, as tuples of task, node and edge. It shows at once which
            tasks have a head.

    Returns:
        Whether a route was added.
    """
    operation = _ops.operation
    tasks = {
        task
        for task, node, (below, _) in borders
        if operation(node) in _ABOVE or operation(below) in _ops.SPLITTING
    }
    for task, (node, _) in enumerate(found.roots):
        if operation(node) in _ops.SPLITTING and task not in found.routes.get(node, {}):
            tasks.add(task)
    added = False
    for task in sorted(tasks):
        if _consists_of(found, task, lambda node: operation(node) in _ABOVE):
            linear = _consists_of(found, task, lambda node: _is_linear(found, node))
            added = _trace(found, task, found.roots[task], linear=linear) or added
    return added


def _consists_of(found: Walk, task: int, allowed: Callable[[Any], bool]) -> bool:
    """Whether all operations between a task's border and its loss are allowed ones."""
    stack = [found.roots[task][0]]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if found.is_shared(node) and task not in found.routes.get(node, ()):
            continue
        seen.add(node)
        if node in found.leaves:
            if found.leaves[node].numel() > 1:
                return False
            continue  # a learned scale of the loss, which is not a head
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


def _trace(found: Walk, task: int, root: Edge, *, linear: bool) -> bool:
    """Follow the elements that one task uses, from its loss down through a tail.

    Args:
        found: The walk, which is changed.
        task: The task.
        root: Its loss.
        linear: Whether the loss is linear in the tensors of the border.

    Returns:
        Whether a route was added.
    """
    added = False
    stack: list[tuple[Edge, Part, bool, bool]] = [(root, ALL, linear, False)]
    seen: set[tuple[Edge, tuple[Any, ...]]] = set()
    while stack:
        (node, nr), part, linear, one = stack.pop()
        key = ((node, nr), tuple(sorted(part.items())))
        if key in seen:
            continue
        seen.add(key)
        shared = found.is_shared(node)
        name = _ops.operation(node)
        if shared and (name not in _ops.TAIL or not _reads_activations(found, node)):
            found.blurred = found.blurred or name == _ops.ASSIGNMENT
            _note_number(found, task, (node, nr), part, linear=linear, one=one)
            if linear:
                found.sums.setdefault((node, nr), {}).setdefault(task, []).append(part)
            continue
        below, known = _inputs(found, node, nr, name, part)
        if shared:
            found.blurred = found.blurred or not known
            added = _add_route(found, task, node, [e for e, _ in below]) or added
            linear = linear and _is_linear(found, node)
        one = _takes_one(node, one)
        for edge, inner in below:
            # Parts of a hidden tensor of the network are not losses: that tensor stays the border
            # for all tasks, whether they read a part of it or all of it.
            enters = not shared and found.is_shared(edge[0])
            indexing = name in _ops.INDEXING or _ops.operation(edge[0]) in _ops.SPLITTING
            if not enters or indexing or shape_of(edge):
                stack.append((edge, inner, linear, one))
    return added


def _reads_activations(found: Walk, node: Any) -> bool:
    """Whether a node has inputs, and all of them are activations."""
    live = [child for child, _ in found.children[node] if child is not None]
    return bool(live) and all(found.kind(child) == ACTIVATION for child in live)


def _inputs(
    found: Walk, node: Any, nr: int, name: str, part: Part
) -> tuple[list[tuple[Edge, Part]], bool]:
    """Return the inputs that a part of a node's output comes from, and whether these are all told.

    The second is False if tensors were joined and the part does not tell which of them it is.
    """
    children = found.children[node]
    if name in _ops.JOINING:
        return joined(children, node, name, part)
    return [(e, before(node, nr, name, part, e)) for e in children if e[0] is not None], True


def _add_route(found: Walk, task: int, node: Any, edges: Sequence[Edge]) -> bool:
    """Add the edges that a task takes from a node; return whether one of them is new."""
    known = found.routes.setdefault(node, {})
    taken = known.get(task, ())
    known[task] = tuple(dict.fromkeys((*taken, *edges)))
    return len(known[task]) > len(taken)


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
