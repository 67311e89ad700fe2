"""One walk over the graph of k losses: which tasks reach each node, and what feeds into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl.graph import _ops, _sinks

__all__ = [
    "ACTIVATION",
    "NOTHING",
    "PARAMETERS",
    "Edge",
    "Part",
    "Walk",
    "edge_of",
    "is_nested",
    "node_of",
    "shape_of",
    "walk",
    "zeros_of",
]

Part = Mapping[int, tuple[int, int]]
"""A part of a tensor: first index and end by dimension. Dimensions left out are taken whole."""

Edge = tuple[Any, int]
"""A node of the graph and the number of one of its outputs. Together they stand for a tensor."""

NOTHING, PARAMETERS, ACTIVATION = 0, 1, 2
"""What a tensor is computed from: no parameters, parameters only, or parameters and data."""

_NEAR = 100
"""How many nodes are looked at below one node of the border before all nodes are, at once."""


def node_of(tensor: Tensor) -> Any:
    """Return a tensor's ``grad_fn``; for a leaf the node that accumulates its ``.grad``."""
    from torch.autograd.graph import get_gradient_edge

    return tensor.grad_fn or get_gradient_edge(tensor).node


def edge_of(tensor: Tensor) -> Edge:
    """Return a tensor's edge: its node, and which of the node's outputs it is."""
    return node_of(tensor), tensor.output_nr


def shape_of(edge: Edge) -> tuple[int, ...] | None:
    """Return the shape of the tensor on an edge; None if this version of torch does not say."""
    known = getattr(edge[0], "_input_metadata", None)
    if not known or edge[1] >= len(known):
        return None
    try:
        return tuple(int(size) for size in known[edge[1]].shape)
    except (AttributeError, RuntimeError, TypeError):  # nested or symbolic shapes
        return None


def is_nested(edge: Edge) -> bool:
    """Whether the tensor on an edge is a nested tensor, whose parts have shapes of their own."""
    known = getattr(edge[0], "_input_metadata", None)
    if not known or edge[1] >= len(known):
        return False
    return bool(getattr(known[edge[1]], "is_nested_tensor", False))


def zeros_of(edge: Edge) -> Tensor:
    """Return zeros like the tensor on an edge."""
    known = edge[0]._input_metadata[edge[1]]
    return torch.zeros(tuple(known.shape), dtype=known.dtype, device=known.device)


@dataclass
class Walk:
    """The result of a walk from k losses down to the leaves.

    Attributes:
        roots: The edge of each task's loss.
        order: All nodes, each after everything below it.
        children: The input edges of each node.
        masks: For each node an integer whose bit i is set if task i reaches the node.
        leaves: Leaf tensors that are parameters, by node.
        inputs: Other leaf tensors that require a gradient, by node: inputs, as adversarial training
            and derivatives need them, but also learned factors of a loss.
        routes: For nodes of which tasks use different elements: the edges that each task takes.
        blurred: Whether tensors of several tasks were combined such that elements cannot be
            assigned to tasks: by masks, index lists, or assignments into a buffer.
        numbers: Tasks and tensors of which they take a single number, as of a vector of losses.
        sums: For tensors of which a task's loss is a weighted sum of entries: the parts that each
            such task takes.
    """

    roots: list[Edge]
    order: list[Any] = field(default_factory=list)
    children: dict[Any, tuple[Edge, ...]] = field(default_factory=dict)
    masks: dict[Any, int] = field(default_factory=dict)
    leaves: dict[Any, Tensor] = field(default_factory=dict)
    inputs: dict[Any, Tensor] = field(default_factory=dict)
    routes: dict[Any, dict[int, tuple[Edge, ...]]] = field(default_factory=dict)
    blurred: bool = False
    numbers: set[tuple[int, Edge]] = field(default_factory=set)
    sums: dict[Edge, dict[int, list[Part]]] = field(default_factory=dict)
    _kinds: dict[Any, int] = field(default_factory=dict)

    def push_masks(self) -> None:
        """Compute :attr:`masks`: which tasks reach each node."""
        masks = dict.fromkeys(self.order, 0)
        for i, (node, _) in enumerate(self.roots):
            masks[node] |= 1 << i
        children, routes = self.children, self.routes
        for node in reversed(self.order):
            mask = masks[node]
            if routes and node in routes:
                own = routes[node]
                for task in bits(mask):
                    for child, _ in own.get(task, children[node]):
                        if child is not None:
                            masks[child] |= 1 << task
                continue
            for child, _ in children[node]:
                if child is not None:
                    masks[child] |= mask
        self.masks = masks

    def is_shared(self, node: Any) -> bool:
        """Whether two or more tasks reach a node."""
        mask = self.masks[node]
        return bool(mask & (mask - 1))

    def shared_inputs(self) -> dict[Any, Tensor]:
        """Return the inputs that two or more tasks reach, if they share no parameter."""
        if not self.inputs or any(map(self.is_shared, self.leaves)):
            return {}
        return {node: leaf for node, leaf in self.inputs.items() if self.is_shared(node)}

    def take_as_parameters(self, inputs: Mapping[Any, Tensor]) -> None:
        """Count inputs as parameters."""
        self.leaves.update(inputs)
        self.inputs = {node: t for node, t in self.inputs.items() if node not in inputs}

    def edges(self, node: Any, task: int) -> tuple[Edge, ...]:
        """Return the edges that one task takes from a node."""
        if node in self.routes:
            return self.routes[node].get(task, self.children[node])
        return self.children[node]

    def kind(self, node: Any) -> int:
        """Return what the tensors of a node are computed from. See :data:`ACTIVATION`."""
        kinds = self._kinds
        if node in kinds:
            return kinds[node]
        if self._reads_data(node):
            kinds[node] = ACTIVATION
            return ACTIVATION
        stack = [node]
        while stack:
            top = stack[-1]
            below = [c for c, _ in self.children[top] if c is not None]
            # One activation below is enough: the other children need no look.
            if any(kinds.get(c) == ACTIVATION for c in below):
                kinds[top] = ACTIVATION
                stack.pop()
                continue
            missing = next((c for c in below if c not in kinds), None)
            if missing is not None:
                stack.append(missing)
                continue
            kinds[top] = self._kind(top, below)
            stack.pop()
        return kinds[node]

    def _reads_data(self, node: Any) -> bool:
        """Whether data enter below a node by a product or a lookup, the most common case."""
        if "_above_data" in vars(self):
            return node in self._above_data
        seen = {node}
        stack = [node]
        while stack:
            if len(seen) > _NEAR:
                return node in self._above_data
            top = stack.pop()
            if self._takes_data(top):
                return True
            for child, _ in self.children[top]:
                if child is not None and child not in seen:
                    seen.add(child)
                    stack.append(child)
        return False

    def _takes_data(self, node: Any) -> bool:
        """Whether a node itself is a product with data, or a lookup."""
        below = self.children[node]
        if not below:
            return False
        name = _ops.operation(node)
        if name in _ops.PRODUCTS:
            return any(child is None for child, _ in below)
        return name in _ops.LOOKUPS

    @cached_property
    def _above_data(self) -> set[Any]:
        """All nodes below which data enter."""
        found: set[Any] = set()
        for node in self.order:
            if self._takes_data(node) or any(child in found for child, _ in self.children[node]):
                found.add(node)
        return found

    def _kind(self, node: Any, below: Sequence[Any]) -> int:
        """Return the kind of a node none of whose children is an activation."""
        if node in self.leaves:
            return PARAMETERS
        name = _ops.operation(node)
        if name == _ops.REENTRANT:
            return ACTIVATION  # the graph with its parameters is built in the backward pass
        kinds = {self._kinds[c] for c in below}
        if PARAMETERS not in kinds:
            return NOTHING
        if NOTHING in kinds:  # parameters meet an input that requires a gradient
            return ACTIVATION
        if name in _ops.LOOKUPS:
            return ACTIVATION
        if len(below) == len(self.children[node]):
            return PARAMETERS
        # One input requires no gradient: data, or a constant such as a mask.
        if name in _ops.PRODUCTS:
            return ACTIVATION
        own = shape_of((node, 0))
        shapes = {shape_of(edge) for edge in self.children[node] if edge[0] is not None}
        return PARAMETERS if own in shapes else ACTIVATION


def bits(mask: int) -> list[int]:
    """Return the positions of the bits that are set.

    Example:
        >>> bits(0b1010)
        [1, 3]
    """
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def walk(losses: Sequence[Tensor], *, parallel: bool = False) -> Walk:
    """Walk the graph once. Takes about half a microsecond per node, for any number of tasks.

    Args:
        losses: k losses.
        parallel: Skip the node that ``DistributedDataParallel`` may put behind a model's outputs.
    """
    result = Walk([edge_of(loss) for loss in losses])
    order, children = result.order, result.children
    seen: set[Any] = set()
    if parallel:
        result.roots = [_sinks.through(edge) for edge in result.roots]

    ends: list[Any] = []
    for root, _ in result.roots:
        if root in seen:
            continue
        seen.add(root)
        below = root.next_functions
        if parallel:
            below = tuple([_sinks.through(edge) for edge in below])
        children[root] = below
        stack = [(root, iter(below))]
        while stack:
            node, rest = stack[-1]
            for child, _ in rest:
                if child is not None and child not in seen:
                    seen.add(child)
                    below = child.next_functions
                    if not below:  # a leaf, most often
                        children[child] = below
                        order.append(child)
                        ends.append(child)
                        continue
                    if parallel:
                        below = tuple([_sinks.through(edge) for edge in below])
                    children[child] = below
                    stack.append((child, iter(below)))
                    break
            else:
                order.append(node)
                stack.pop()
    _find_leaves(result, ends)
    result.push_masks()
    return result


def _find_leaves(result: Walk, ends: Sequence[Any]) -> None:
    for node in (*ends, *(root for root, _ in result.roots if not result.children[root])):
        variable = getattr(node, "variable", None)
        # It may have been frozen after the forward pass; a backward pass then leaves it out.
        if variable is not None and variable.requires_grad:
            target = result.leaves if isinstance(variable, nn.Parameter) else result.inputs
            target[node] = variable
    if not result.leaves:
        # A functional model has no nn.Parameter: its parameters are plain leaf tensors.
        result.leaves, result.inputs = result.inputs, {}
