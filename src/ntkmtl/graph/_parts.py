"""Parts of tensors, and the parts of their inputs that they are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Any

from ntkmtl.graph import _ops
from ntkmtl.graph._walk import Edge, Part, shape_of

__all__ = ["ALL", "are_apart", "before", "joined", "signed"]

ALL: Part = {}

_ALONG = {"MeanBackward", "SumBackward", "IndexSelectBackward", "GatherBackward"}


def are_apart(one: Part, other: Part) -> bool:
    """Whether two parts have no entry in common.

    Example:
        >>> are_apart({1: (0, 2)}, {1: (2, 3)}), are_apart({0: (0, 1)}, {1: (2, 3)})
        (True, False)
    """
    both = one.keys() & other.keys()
    return any(one[d][1] <= other[d][0] or other[d][1] <= one[d][0] for d in both)


def _part_taken(node: Any, edge: Edge, part: Part) -> Part:
    """Return the part of its input that an indexing operation reads.

    Args:
        node: The operation.
        edge: Its input.
        part: The part of its output that is used.
    """
    name, shape = _ops.operation(node), shape_of(edge)
    if name not in ("SelectBackward", "SliceBackward") or not shape:
        return ALL
    dim = _dimension(node, len(shape))
    if name == "SelectBackward":
        index = signed(node._saved_index) % shape[dim]
        return {**_shifted(part, dim, 1), dim: (index, index + 1)}
    others = {d: window for d, window in part.items() if d != dim}
    if node._saved_step != 1:
        return others
    window = slice(signed(node._saved_start), signed(node._saved_end))
    start, stop, _ = window.indices(shape[dim])
    first, last = part.get(dim, (0, stop - start))
    return {**others, dim: (start + first, start + last)}


def _shifted(part: Part, dim: int, by: int) -> Part:
    """Shift the dimensions from ``dim`` on, where a dimension is inserted or removed there."""
    return {d + by if d >= dim else d: window for d, window in part.items()}


def signed(index: int) -> int:
    """Return a saved index as a signed number; torch shows it as an unsigned one."""
    return index - (1 << 64) if index >= 1 << 63 else index


def _dimension(node: Any, ndim: int) -> int:
    """Return the dimension that an operation saved, counted from the first."""
    return signed(node._saved_dim) % ndim


def before(node: Any, nr: int, name: str, part: Part, edge: Edge) -> Part:
    """Return the part of an operation's input that a part of its output is computed from."""
    if name in ("SelectBackward", "SliceBackward"):
        return _part_taken(node, edge, part)
    if name in _ops.SPLITTING:
        return _before_split(node, nr, name, part, edge)
    if not part:
        return ALL
    own, below = shape_of((node, nr)), shape_of(edge)
    if own is None or below is None:
        return ALL
    if name in _ops.SUMMARIES or name in _ALONG:
        return _before_reduction(node, part, own, below)
    if name in _ops.ELEMENTWISE:
        return part if own == below else ALL
    if name in _ops.MOVING:
        return _before_moving(node, name, part, own)
    return _before_view(node, name, part, own, below) if name in _ops.VIEWS else ALL


def _before_split(node: Any, nr: int, name: str, part: Part, edge: Edge) -> Part:
    whole = shape_of(edge)
    if not whole or not isinstance(getattr(node, "_saved_dim", None), int):
        return ALL
    dim = _dimension(node, len(whole))
    if name == "UnbindBackward":
        return {**_shifted(part, dim, 1), dim: (nr, nr + 1)}
    sizes = [shape_of((node, i)) for i in range(nr + 1)]
    lengths = [size[dim] for size in sizes if size is not None]
    if len(lengths) < len(sizes):
        return ALL
    start = sum(lengths[:-1])
    first, last = part.get(dim, (0, lengths[-1]))
    return {**part, dim: (start + first, start + last)}


def _before_reduction(node: Any, part: Part, own: tuple[int, ...], below: tuple[int, ...]) -> Part:
    """Map dimensions through an operation along the dimensions that it saved."""
    dims = getattr(node, "_saved_dim", None)
    if dims is None:
        return part if own == below else ALL
    along = {signed(d) % len(below) for d in ([dims] if isinstance(dims, int) else dims)}
    if len(own) == len(below):
        return {d: window for d, window in part.items() if d not in along}
    kept = [d for d in range(len(below)) if d not in along]
    return {kept[d]: window for d, window in part.items() if d < len(kept)}


def _before_moving(node: Any, name: str, part: Part, own: tuple[int, ...]) -> Part:
    along = {signed(d) % len(own) for d in node._saved_dims}
    if name == "RollBackward":  # a window may be torn apart; no dimensions stand for all of them
        return {d: window for d, window in part.items() if along and d not in along}
    return {
        d: (own[d] - end, own[d] - start) if d in along else (start, end)
        for d, (start, end) in part.items()
    }


def _before_view(
    node: Any, name: str, part: Part, own: tuple[int, ...], below: tuple[int, ...]
) -> Part:
    """Map dimensions through a view. Dimensions of size 1 are ignored where the shape changes."""
    if name == "ExpandBackward":
        return ALL
    if name in ("TBackward", "TransposeBackward", "PermuteBackward"):
        order = list(range(len(own)))
        if name == "PermuteBackward":
            order = [signed(d) % len(own) for d in node._saved_dims]
        elif name == "TBackward":
            order.reverse()
        else:
            a, b = (signed(d) % len(own) for d in (node._saved_dim0, node._saved_dim1))
            order[a], order[b] = b, a
        return {order[d]: window for d, window in part.items()}
    mine = [d for d, size in enumerate(own) if size != 1]
    theirs = [d for d, size in enumerate(below) if size != 1]
    # Whatever a view does to the dimensions in the middle, equal ones at the start stay in place,
    # and so do equal ones at the end.
    equal = _equal(own, below, zip(mine, theirs, strict=False))
    rest = min(len(mine), len(theirs)) - len(equal)
    from_end = zip(reversed(mine), reversed(theirs), strict=False)
    equal |= _equal(own, below, islice(from_end, rest))
    return {equal[d]: window for d, window in part.items() if d in equal}


def _equal(
    own: tuple[int, ...], below: tuple[int, ...], pairs: Iterable[tuple[int, int]]
) -> dict[int, int]:
    """Return the pairs of dimensions up to the first one whose sizes differ."""
    return dict(takewhile(lambda pair: own[pair[0]] == below[pair[1]], pairs))


def joined(
    children: Sequence[Edge], node: Any, name: str, part: Part
) -> tuple[list[tuple[Edge, Part]], bool]:
    """Return the inputs of a stack or cat that a part of its output comes from.

    Returns:
        The inputs with their parts, and whether the part told which inputs these are.
    """
    shape = shape_of((node, 0))
    live = [(e, ALL) for e in children if e[0] is not None]
    dim = _dimension(node, len(shape)) if shape else -1
    if dim not in part or shape is None:
        return live, len(live) == 1
    start, stop = part[dim]
    if name == "StackBackward":
        rest = {d: window for d, window in part.items() if d != dim}
        rest = dict(_shifted(rest, dim, -1))
        return [(e, rest) for e in children[start:stop] if e[0] is not None], True
    lengths = _lengths(children, shape, dim)
    if lengths is None:
        return live, False
    chosen: list[tuple[Edge, Part]] = []
    position = 0
    for edge, length in zip(children, lengths, strict=True):
        first, last = max(start - position, 0), min(stop - position, length)
        if first < last and edge[0] is not None:
            chosen.append((edge, {**part, dim: (first, last)}))
        position += length
    return chosen, True


def _lengths(children: Sequence[Edge], shape: tuple[int, ...], dim: int) -> list[int] | None:
    """Return the sizes of concatenated tensors; None if two or more of them have no graph."""
    sizes = [None if e[0] is None else shape_of(e) for e in children]
    # A tensor of shape (0,) may be joined with any other.
    known = [None if s is None else s[dim] if len(s) == len(shape) else 0 for s in sizes]
    if known.count(None) > 1:
        return None
    rest = shape[dim] - sum(length for length in known if length is not None)
    return [rest if length is None else length for length in known]
