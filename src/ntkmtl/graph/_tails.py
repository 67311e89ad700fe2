"""Losses that are elements of one tensor: tasks share operations, but no elements.

``per_task = (prediction - target).square().mean(0)`` computes k losses by one chain of operations.
In the graph all tasks share this chain (a *tail*), although each uses its own elements. Tails are
followed down, by element where possible, to the last operation of the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ntkmtl.graph import _ops
from ntkmtl.graph._walk import ACTIVATION, Edge, Walk, shape_of

__all__ = ["look_through"]

Part = Mapping[int, tuple[int, int]]
"""A part of a tensor: first index and end by dimension. Dimensions left out are taken whole."""

_ALL: Part = {}


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
            added = _trace(found, task, (node, nr), _ALL, linear=True) or added
    for task, node, _, edge in borders:
        above = _ops.operation(node)
        if above not in _ops.TAIL and _ops.operation(edge[0]) not in _ops.SPLITTING:
            continue  # the last operation of a head
        part = _part_taken(node, edge)
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
            below = _joined(found, node, name, part)
        else:
            below = [(e, _before(node, nr, name, part, e)) for e in children if e[0] is not None]
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
    """Note where a task's way ends at a single number of a tensor that holds losses.

    A vector of several numbers of which a task uses one holds losses. In more dimensions the number
    may also be an output for a batch of one sample; a loss is not linear in that.
    """
    shape = shape_of(edge)
    if not shape or not (linear or len(shape) == 1) or math.prod(shape) == 1 < len(shape):
        return
    windows = [part.get(dim, (0, size)) for dim, size in enumerate(shape)]
    narrow = all(end - start == 1 for start, end in windows) and (0 in part or len(shape) > 1)
    if one or narrow:
        found.numbers.add((task, edge))


def _part_taken(node: Any, edge: Edge, part: Part = _ALL) -> Part:
    """Return the part of its input that an indexing operation reads.

    Args:
        node: The operation.
        edge: Its input.
        part: The part of its output that is used.
    """
    name, shape = _ops.operation(node), shape_of(edge)
    if name not in ("SelectBackward", "SliceBackward") or not shape:
        return _ALL
    dim = _dimension(node, len(shape))
    if name == "SelectBackward":
        index = _signed(node._saved_index) % shape[dim]
        return {**_shifted(part, dim, 1), dim: (index, index + 1)}
    others = {d: window for d, window in part.items() if d != dim}
    if node._saved_step != 1:
        return others
    window = slice(_signed(node._saved_start), _signed(node._saved_end))
    start, stop, _ = window.indices(shape[dim])
    first, last = part.get(dim, (0, stop - start))
    return {**others, dim: (start + first, start + last)}


def _shifted(part: Part, dim: int, by: int) -> Part:
    """Shift the dimensions from ``dim`` on, where a dimension is inserted or removed there."""
    return {d + by if d >= dim else d: window for d, window in part.items()}


def _signed(index: int) -> int:
    """Return a saved index as a signed number; torch shows it as an unsigned one."""
    return index - (1 << 64) if index >= 1 << 63 else index


def _dimension(node: Any, ndim: int) -> int:
    """Return the dimension that an operation saved, counted from the first."""
    return _signed(node._saved_dim) % ndim


def _before(node: Any, nr: int, name: str, part: Part, edge: Edge) -> Part:
    """Return the part of an operation's input that a part of its output is computed from."""
    if name in ("SelectBackward", "SliceBackward"):
        return _part_taken(node, edge, part)
    if name in _ops.SPLITTING:
        return _before_split(node, nr, name, part, edge)
    if not part:
        return _ALL
    if name in ("MeanBackward", "SumBackward"):
        return _before_reduction(node, part)
    own, below = shape_of((node, 0)), shape_of(edge)
    if own is None or below is None:
        return _ALL
    if name in _ops.ELEMENTWISE:
        return part if own == below else _ALL
    return _before_view(node, name, part, own, below) if name in _ops.VIEWS else _ALL


def _before_split(node: Any, nr: int, name: str, part: Part, edge: Edge) -> Part:
    whole = shape_of(edge)
    if not whole or not isinstance(getattr(node, "_saved_dim", None), int):
        return _ALL
    dim = _dimension(node, len(whole))
    if name == "UnbindBackward":
        return {**_shifted(part, dim, 1), dim: (nr, nr + 1)}
    sizes = [shape_of((node, i)) for i in range(nr + 1)]
    lengths = [size[dim] for size in sizes if size is not None]
    if len(lengths) < len(sizes):
        return _ALL
    start = sum(lengths[:-1])
    first, last = part.get(dim, (0, lengths[-1]))
    return {**part, dim: (start + first, start + last)}


def _before_reduction(node: Any, part: Part) -> Part:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    dims = getattr(node, "_saved_dim", None)
    if sizes is None or dims is None:
        return _ALL
    gone = {_signed(d) % len(sizes) for d in dims}
    if getattr(node, "_saved_keepdim", False):
        return {d: window for d, window in part.items() if d not in gone}
    kept = [d for d in range(len(sizes)) if d not in gone]
    return {kept[d]: window for d, window in part.items() if d < len(kept)}


def _before_view(
    node: Any, name: str, part: Part, own: tuple[int, ...], below: tuple[int, ...]
) -> Part:
    """Map dimensions through a view. Dimensions of size 1 are ignored where the shape changes."""
    if name == "ExpandBackward":
        return _ALL
    if name in ("TBackward", "TransposeBackward", "PermuteBackward"):
        order = list(range(len(own)))
        if name == "PermuteBackward":
            order = [_signed(d) % len(own) for d in node._saved_dims]
        elif name == "TBackward":
            order.reverse()
        else:
            a, b = (_signed(d) % len(own) for d in (node._saved_dim0, node._saved_dim1))
            order[a], order[b] = b, a
        return {order[d]: window for d, window in part.items()}
    mine = [d for d, size in enumerate(own) if size != 1]
    theirs = [d for d, size in enumerate(below) if size != 1]
    if [own[d] for d in mine] != [below[d] for d in theirs]:
        return _ALL
    place = dict(zip(mine, theirs, strict=True))
    return {place[d]: window for d, window in part.items() if d in place}


def _joined(found: Walk, node: Any, name: str, part: Part) -> list[tuple[Edge, Part]]:
    """Return the inputs of a stack or cat that a part of its output comes from."""
    children, shape = found.children[node], shape_of((node, 0))
    live = [(e, _ALL) for e in children if e[0] is not None]
    dim = _dimension(node, len(shape)) if shape else -1
    if dim not in part or shape is None:
        found.blurred = found.blurred or len(live) > 1
        return live
    start, stop = part[dim]
    if name == "StackBackward":
        rest = {d: window for d, window in part.items() if d != dim}
        rest = dict(_shifted(rest, dim, -1))
        return [(e, rest) for e in children[start:stop] if e[0] is not None]
    lengths = _lengths(children, shape, dim)
    if lengths is None:
        found.blurred = True
        return live
    chosen: list[tuple[Edge, Part]] = []
    position = 0
    for edge, length in zip(children, lengths, strict=True):
        first, last = max(start - position, 0), min(stop - position, length)
        if first < last and edge[0] is not None:
            chosen.append((edge, {**part, dim: (first, last)}))
        position += length
    return chosen


def _lengths(children: Sequence[Edge], shape: tuple[int, ...], dim: int) -> list[int] | None:
    """Return the sizes of concatenated tensors; None if two or more of them have no graph."""
    sizes = [None if e[0] is None else shape_of(e) for e in children]
    # A tensor of shape (0,) may be joined with any other.
    known = [None if s is None else s[dim] if len(s) == len(shape) else 0 for s in sizes]
    if known.count(None) > 1:
        return None
    rest = shape[dim] - sum(length for length in known if length is not None)
    return [rest if length is None else length for length in known]
