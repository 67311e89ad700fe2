"""The cut: where the part of the network that tasks share ends, found from the losses alone.

A node is *shared* if two or more tasks reach it. The edges from private to shared nodes cut every
path from the shared parameters to every loss. The tensors on these edges are the representation z
of Eq. 16, whatever the network looks like. Where such an edge leads to a parameter, or to a
function of parameters alone, its tensor has no sample dimension: the task *bypasses* the
representation, and only the kernel of the parameters themselves exists for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from torch import Tensor

from ntkmtl.graph import _ops
from ntkmtl.graph._parts import are_apart
from ntkmtl.graph._tails import look_through
from ntkmtl.graph._walk import (
    ACTIVATION,
    NOTHING,
    PARAMETERS,
    Edge,
    Walk,
    bits,
    is_nested,
    shape_of,
    walk,
)

__all__ = ["Bypass", "Crossing", "Cut", "cut_nodes", "find_cut"]


@dataclass(frozen=True)
class Crossing:
    """An edge of the cut that one task uses.

    Attributes:
        node: The operation above the cut.
        position: Which of its inputs the edge is.
        target: Position of the edge's tensor in :attr:`Cut.targets`.
    """

    node: Any
    position: int
    target: int


@dataclass(frozen=True)
class Bypass:
    """Why some of a task's gradient does not pass through the representation.

    Attributes:
        reason: The rest of a sentence that starts with "the loss of task ...".
        parameter: The shared parameter that is reached around the representation, if any.
    """

    reason: str
    parameter: Tensor | None = None


@dataclass
class _Border:
    """An edge from a private node to a shared one."""

    task: int
    node: Any
    position: int
    edge: Edge


@dataclass(frozen=True)
class Cut:
    """The border between the shared part of a graph and the parts of single tasks.

    Attributes:
        walk: The walk over the graph.
        targets: The tensors of the representation, as edges.
        crossings: For each task its edges of the cut.
        bypasses: For each task its paths around the representation.
        apart: Whether tasks must be differentiated one by one, because some operations above the
            cut are used by several of them.
        opaque: Whether some operation may contain parameters of single tasks (a model compiled as
            a whole, a buffer that heads write into). Only gradients can then show which parameters
            are shared.
        skips: Whether inputs that require a gradient may enter a head around the representation.
            The gradients at the cut and in the heads then do not make up those of the inputs.
        borders: All edges from private to shared nodes.
    """

    walk: Walk
    targets: tuple[Edge, ...]
    crossings: tuple[tuple[Crossing, ...], ...]
    bypasses: tuple[tuple[Bypass, ...], ...]
    apart: bool
    opaque: bool
    skips: bool
    borders: Sequence[_Border] = field(repr=False)

    @property
    def tasks(self) -> int:
        """Number of losses k."""
        return len(self.crossings)

    @property
    def clean(self) -> bool:
        """Whether every task's whole gradient passes through the representation."""
        return not any(self.bypasses)

    @cached_property
    def connected(self) -> list[int]:
        """Positions of the tasks that share a tensor or parameter with another task."""
        return [i for i in range(self.tasks) if self.crossings[i] or self.bypasses[i]]

    @cached_property
    def separate(self) -> bool:
        """Whether tasks read different tensors, so that the blocks between tasks do not exist."""
        if len(self.targets) == 1:
            return not all(self.crossings[i] for i in self.connected)
        used = {frozenset(c.target for c in self.crossings[i]) for i in self.connected}
        return len(used) > 1

    @cached_property
    def shared(self) -> list[Tensor]:
        """Parameters that two or more tasks reach."""
        masks = self.walk.masks
        return [p for node, p in self.walk.leaves.items() if masks[node] & (masks[node] - 1)]

    @cached_property
    def heads(self) -> list[list[Tensor]]:
        """For each task, the parameters that no other task reaches."""
        return self._private(self.walk.leaves)

    @cached_property
    def own_leaves(self) -> list[list[Tensor]]:
        """For each task, all leaves that no other task reaches: its parameters and inputs."""
        if not self.walk.inputs:
            return self.heads
        return self._private({**self.walk.leaves, **self.walk.inputs})

    def _private(self, leaves: Mapping[Any, Tensor]) -> list[list[Tensor]]:
        masks = self.walk.masks
        own: list[list[Tensor]] = [[] for _ in self.crossings]
        for node, leaf in leaves.items():
            mask = masks[node]
            if not mask & (mask - 1):
                own[mask.bit_length() - 1].append(leaf)
        return own

    @property
    def shared_inputs(self) -> list[Tensor]:
        """Inputs that two or more tasks reach, where they share no parameter."""
        return list(self.walk.shared_inputs().values())

    @cached_property
    def joined(self) -> bool:
        """Whether parameters of single tasks may be below the cut, which only gradients can show.

        This may be so where a task reads a part of a tensor that joins others, as the outputs of
        all heads after one activation, or that was made with the stacked weights of all heads.
        """
        masks = self.walk.masks
        own = [masks[node] for node, p in self.walk.leaves.items() if p.numel() > 1]
        headed = {mask.bit_length() - 1 for mask in own if not mask & (mask - 1)}
        walk = self.walk
        if any(_merges(walk, n) and _ops.operation(n) not in _ops.JOINING for n in walk.routes):
            return True
        return any(
            (b.task not in headed or _reads_part(walk, b))
            and (_ops.operation(b.node) in _ops.JOINING or _joins(walk, b.edge[0]))
            for b in self.borders
        )

    @property
    def nested(self) -> bool:
        """Whether a tensor of the representation is nested, so that it has no single shape."""
        return any(map(is_nested, self.targets))

    @property
    def hides_parameters(self) -> bool:
        """Whether a reentrant checkpoint hides parameters from the graph."""
        return any(_ops.operation(node) == _ops.REENTRANT for node in self.walk.order)

    @property
    def custom(self) -> bool:
        """Whether custom functions may hold parameters that the graph does not show."""
        return any(map(_ops.is_opaque, self.walk.order))

    @property
    def signature(self) -> tuple[Any, ...]:
        """For each task the operations and shapes on the cut; equal as long as the network is."""
        tensors = [(_ops.operation(node), nr, shape_of((node, nr))) for node, nr in self.targets]
        return tuple(
            tuple(tensors[c.target] for c in own) + tuple(b.reason for b in around)
            for own, around in zip(self.crossings, self.bypasses, strict=True)
        )


def find_cut(losses: Sequence[Tensor], *, batch: int | None = None, parallel: bool = False) -> Cut:
    """Find the cut of k losses.

    Args:
        losses: k scalars that require a gradient.
        batch: Number of samples, if known. Tensors without a dimension of that size then count as
            tensors without samples.
        parallel: Whether the model may be wrapped in ``DistributedDataParallel``.

    Returns:
        The cut. It has no edges for a single loss, as nothing is shared then.

    Example:
        >>> import torch
        >>> trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> z = trunk(torch.randn(5, 3)).relu()
        >>> cut = find_cut([head(z).square().mean() for head in heads])
        >>> [node.name() for node, _ in cut.targets], cut.clean, len(cut.shared)
        (['ReluBackward0'], True, 2)
    """
    found = walk(losses, parallel=parallel)
    if plain := found.shared_inputs():
        # No parameter is shared: the trunk may be a functional one, whose parameters are no
        # nn.Parameter, or be frozen behind an input that requires a gradient. Inputs of networks
        # that have nothing else in common are combined with no data before these part.
        found.take_as_parameters(plain)
        cut = _cut_of(found, batch)
        if cut.targets:
            return cut
        found = walk(losses, parallel=parallel)
    return _cut_of(found, batch)


def _cut_of(found: Walk, batch: int | None) -> Cut:
    borders = _borders(found)
    for _ in found.roots:
        if not look_through(found, [(b.task, b.node, b.edge) for b in borders]):
            break
        found.push_masks()
        borders = _borders(found)
    while found.routes and (again := _met_again(found, borders)):
        for node in again:
            del found.routes[node]
        found.push_masks()
        borders = _borders(found)
    return _Sorting(found, borders, batch).cut()


def _met_again(found: Walk, borders: Sequence[_Border]) -> list[Any]:
    """Return nodes that were looked through, but that a task also reaches from below its border.

    A residual connection or a normalization does that: it mixes a tensor's elements and adds them
    to the tensor. What leaves such a node has in part passed the border before, and would count
    twice.
    """
    below = dict.fromkeys(found.order, 0)
    for border in borders:
        below[border.edge[0]] |= 1 << border.task
    for node in reversed(found.order):
        if mask := below[node]:
            for child, _ in found.children[node]:
                if child is not None:
                    below[child] |= mask
    above = _above(found)
    return [node for node in found.routes if above[node] & below[node]]


def _reads_part(found: Walk, border: _Border) -> bool:
    names = (_ops.operation(border.node), _ops.operation(border.edge[0]))
    return border.node in found.routes or not _ops.INDEXING.isdisjoint(names)


def _merges(found: Walk, node: Any) -> bool:
    """Whether an operation reads several activations."""
    below = {child for child, _ in found.children[node] if child is not None}
    return sum(found.kind(child) == ACTIVATION for child in below) > 1


def _joins(found: Walk, node: Any) -> bool:
    """Whether several activations, or weights, are joined from a node to the layers below it."""
    stack, seen = [node], {node}
    while stack:
        top = stack.pop()
        if _ops.is_opaque(top) or _merges(found, top):
            return True
        below = {child for child, _ in found.children[top] if child is not None}
        weights = [child for child in below if found.kind(child) == PARAMETERS]
        if any(_is_mixed(found, child) for child in weights):
            return True
        if not weights or _ops.operation(top) in _ops.SCALING:
            stack += [child for child in below - seen if found.kind(child) == ACTIVATION]
            seen |= below
    return False


def _is_mixed(found: Walk, node: Any) -> bool:
    """Whether a function of parameters is made of several, as the stacked weights of all heads."""
    while len(below := {child for child, _ in found.children[node] if child is not None}) == 1:
        (node,) = below
    return len(below) > 1


def _borders(found: Walk) -> list[_Border]:
    """Return the edges from nodes that are private or looked through to shared nodes."""
    if found.routes:
        return _borders_by_task(found)
    masks, children = found.masks, found.children
    borders = []
    for node in reversed(found.order):
        mask = masks[node]
        if not children[node] or mask & (mask - 1):
            continue
        task = mask.bit_length() - 1
        for j, edge in enumerate(children[node]):
            child = edge[0]
            if child is not None and masks[child] & (masks[child] - 1):
                borders.append(_Border(task, node, j, edge))
    return borders


def _borders_by_task(found: Walk) -> list[_Border]:
    """Do the same where a node may be above the cut for one task and below it for another."""
    above = _above(found)
    return [
        _Border(task, node, j, edge)
        for node in reversed(found.order)
        for task in bits(above[node])
        for j, edge in enumerate(found.children[node])
        if edge[0] is not None and edge in found.edges(node, task) and _ends(found, edge[0])
    ]


def _ends(found: Walk, node: Any) -> bool:
    """Whether a node is shared and not looked through."""
    return found.is_shared(node) and node not in found.routes


def _is_scaled_parameter(found: Walk, edge: Edge) -> bool:
    """Whether a tensor is a parameter that smaller tensors scale or shift.

    A spectral norm, say, divides the weight by a product with vectors that are kept between steps;
    in the graph these cannot be told from data.
    """
    while edge[0] not in found.leaves:
        if _ops.operation(edge[0]) not in _ops.SCALING:
            return False
        size = _size(edge)
        live = [e for e in found.children[edge[0]] if e[0] is not None]
        whole = [e for e in live if _size(e) == size]
        if size < 2 or len(whole) != 1 or any(_size(e) > size for e in live):
            return False
        (edge,) = whole
    return True


def _size(edge: Edge) -> int:
    """Return the number of a tensor's entries, 0 if it is not known."""
    shape = shape_of(edge)
    return 0 if shape is None else math.prod(shape)


def _above(found: Walk) -> dict[Any, int]:
    """Return for each node the tasks above whose border it is, as bits."""
    above = dict.fromkeys(found.order, 0)
    for task, (node, _) in enumerate(found.roots):
        if not _ends(found, node):
            above[node] |= 1 << task
    for node in reversed(found.order):
        for task in bits(above[node]):
            for child, _ in found.edges(node, task):
                if child is not None and not _ends(found, child):
                    above[child] |= 1 << task
    return above


class _Sorting:
    """Sorts edges from private to shared nodes into crossings and bypasses."""

    def __init__(self, found: Walk, borders: list[_Border], batch: int | None) -> None:
        self.walk = found
        self.batch = batch
        self.targets: dict[Edge, int] = {}
        k = len(found.roots)
        self.crossings: list[list[Crossing]] = [[] for _ in range(k)]
        self.bypasses: list[list[Bypass]] = [[] for _ in range(k)]
        self.opaque = self.skips = False
        self.losses = self._tensors_of_losses(borders)
        self.borders = borders
        self._sort(borders)

    def cut(self) -> Cut:
        return Cut(
            self.walk,
            tuple(self.targets),
            tuple(tuple(own) for own in self.crossings),
            tuple(tuple(own) for own in self.bypasses),
            apart=bool(self.walk.routes),
            opaque=self.opaque or self.walk.blurred,
            skips=self.skips,
            borders=self.borders,
        )

    def _sort(self, borders: list[_Border]) -> None:
        inside = set(self._roots_inside())
        by_task: list[list[_Border]] = [[] for _ in self.crossings]
        for border in borders:
            by_task[border.task].append(border)
        for task, own in enumerate(by_task):
            if task in inside:
                continue
            around = [b for b in own if self.walk.kind(b.edge[0]) == PARAMETERS]
            if around and (lower := self._own_representation(task)) is not None:
                own = lower
                # An input of this task alone may be below its representation and around it.
                self.skips = self.skips or bool(self.walk.inputs)
            for border in own:
                self._place(border)
        self._find_opaque()

    def _roots_inside(self) -> list[int]:
        """Add a bypass for each task whose loss is a part of another task's; return these tasks."""
        found = []
        for task, (node, _) in enumerate(self.walk.roots):
            if self.walk.is_shared(node) and node not in self.walk.routes:
                if _ops.is_opaque(node):
                    self.opaque = True
                    reason = f"comes out of {node.name()}, which may hold the whole network"
                else:
                    reason = "is itself a part of another task's loss"
                self.bypasses[task].append(Bypass(reason))
                found.append(task)
        return found

    def _tensors_of_losses(self, borders: list[_Border]) -> set[Edge]:
        """Return the tensors of the border of which each loss is a sum of entries of its own.

        Whatever is below them, gradients there are constants that say nothing about the tasks.
        """
        tasks: dict[Edge, set[int]] = {}
        for border in borders:
            tasks.setdefault(border.edge, set()).add(border.task)
        found = set()
        for edge, sums in self.walk.sums.items():
            if len(sums) > 1 and sums.keys() == tasks.get(edge):
                pairs = [(p, q) for a, b in combinations(sums.values(), 2) for p in a for q in b]
                if all(are_apart(p, q) for p, q in pairs):
                    found.add(edge)
        return found

    def _place(self, border: _Border) -> None:
        node, _ = border.edge
        kind = self.walk.kind(node)
        if kind == NOTHING and not _ops.is_opaque(node):
            self.skips = self.skips or bool(self.walk.inputs)
            return
        if kind == PARAMETERS or _is_scaled_parameter(self.walk, border.edge):
            parameter = self._parameter_below(node)
            self.bypasses[border.task].append(
                Bypass("reaches a shared parameter around the representation", parameter)
            )
        elif not self._has_samples(border):
            self.bypasses[border.task].append(
                Bypass(
                    f"shares a tensor without samples with another task, of shape "
                    f"{shape_of(border.edge)} (made by {node.name()})"
                )
            )
        elif border.edge in self.losses:
            self.bypasses[border.task].append(
                Bypass(
                    f"is a sum of entries of a tensor that holds losses, of shape "
                    f"{shape_of(border.edge)} (made by {node.name()})"
                )
            )
        else:
            target = self.targets.setdefault(border.edge, len(self.targets))
            crossing = Crossing(border.node, border.position, target)
            self.crossings[border.task].append(crossing)

    def _parameter_below(self, node: Any) -> Tensor | None:
        """Return one of the parameters that a node is computed from."""
        stack = [node]
        while stack:
            top = stack.pop()
            if top in self.walk.leaves:
                return self.walk.leaves[top]
            stack += [c for c, _ in self.walk.children[top] if c is not None]
        return None

    def _has_samples(self, border: _Border) -> bool:
        shape = shape_of(border.edge)
        if self._takes_one(border, shape):
            return False  # one number for each task: the tensor holds losses
        if border.edge in self.targets or shape is None:
            return True
        if all(size == 1 for size in shape) and self.batch != 1:
            return len(shape) > 1  # (1, 1) is a batch of one sample; () and (1,) are not
        # A multiple is fine: sequences may be concatenated.
        return self.batch is None or not all(size % self.batch for size in shape)

    def _takes_one(self, border: _Border, shape: tuple[int, ...] | None) -> bool:
        """Whether a task takes one number of a tensor that holds losses."""
        if (border.task, border.edge) in self.walk.numbers:
            return True
        taken = shape_of((border.node, 0))
        above = _ops.operation(border.node)
        one = above in _ops.INDEXING and taken is not None and math.prod(taken) == 1
        return one and shape is not None and len(shape) == 1

    def _find_opaque(self) -> None:
        """Find operations that may contain whole networks and have outputs for several tasks."""
        outputs: dict[Any, set[int]] = {}
        for node, nr in self.targets:
            outputs.setdefault(node, set()).add(nr)
        for edge, target in self.targets.items():
            node = edge[0]
            if len(outputs[node]) == 1 or not _ops.is_opaque(node):
                continue
            self.opaque = True
            for own, around in zip(self.crossings, self.bypasses, strict=True):
                if any(c.target == target for c in own):
                    reason = f"reads an output of {node.name()}, which may hold its head"
                    around.append(Bypass(reason))

    def _own_representation(self, task: int) -> list[_Border] | None:
        """Return the border of a task that runs the shared part by itself (on its own batch, say).

        Its representation is the last tensor computed from shared parameters and data alone. There
        is none if the task has no head above it: learned factors of the loss are not a head.
        """
        found, masks = self.walk, self.walk.masks
        own = 1 << task
        private: set[Any] = set()
        pure: set[Any] = set()
        for node in found.order:
            alone = masks[node] == own
            if not alone and not (node in found.routes and masks[node] & own):
                continue
            if (node in found.leaves and alone) or any(
                c in private for c, _ in found.edges(node, task)
            ):
                private.add(node)
            elif alone and found.kind(node) == ACTIVATION:
                pure.add(node)
        if not pure or found.roots[task][0] not in private:
            return None

        borders = []
        seen = {found.roots[task][0]}
        stack = list(seen)
        while stack:
            node = stack.pop()
            for j, edge in enumerate(found.edges(node, task)):
                child = edge[0]
                if child is None:
                    continue
                if child in pure or (found.is_shared(child) and child not in found.routes):
                    borders.append(_Border(task, node, j, edge))
                elif child not in seen:
                    seen.add(child)
                    stack.append(child)
        layers = (node for node in seen if _ops.operation(node) not in _ops.SCALING)
        head = any(
            found.kind(child) == PARAMETERS
            for node in layers
            if found.kind(node) == ACTIVATION
            for child, _ in found.edges(node, task)
            if child is not None
        )
        return borders if head else None


def cut_nodes(cut: Cut, node: Any) -> Iterator[Tensor]:
    """Yield the parameters below a node of the cut, nearest to the cut first."""
    seen = {node}
    level = [node]
    while level:
        below = []
        for top in level:
            for child, _ in cut.walk.children.get(top, ()):
                if child is not None and child not in seen:
                    seen.add(child)
                    below.append(child)
        yield from (cut.walk.leaves[n] for n in below if n in cut.walk.leaves)
        level = below
