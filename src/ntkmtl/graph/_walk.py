"""One walk over the graph of k losses: which tasks reach a node, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ntkmtl.graph import _ops, _sinks

__all__ = [
    "ACTIVATION",
    "NOTHING",
    "PARAMETERS",
    "Edge",
    "Walk",
    "edge_of",
    "node_of",
    "shape_of",
    "walk",
]

Edge = tuple[Any, int]
"""A node of the graph and the number of its output: one tensor."""

NOTHING, PARAMETERS, ACTIVATION = 0, 1, 2
"""What a tensor is made of: no trainable parameter, parameters alone, or parameters and data."""


def node_of(tensor: Tensor) -> Any:
    """Return the node that makes a tensor; a leaf's is the one that accumulates its ``.grad``."""
    from torch.autograd.graph import get_gradient_edge

    return tensor.grad_fn or get_gradient_edge(tensor).node


def edge_of(tensor: Tensor) -> Edge:
    """Return node and output: one operation may make several tensors (chunk, unbind)."""
    return node_of(tensor), tensor.output_nr


def shape_of(edge: Edge) -> tuple[int, ...] | None:
    """Return the shape of the tensor on an edge, None where this torch does not tell."""
    known = getattr(edge[0], "_input_metadata", None)
    if not known or edge[1] >= len(known):
        return None
    try:
        return tuple(int(size) for size in known[edge[1]].shape)
    except (RuntimeError, TypeError):  # nested or symbolic shapes
        return None


@dataclass
class Walk:
    """What a walk from k losses down to the leaves found.

    Attributes:
        roots: Where each task starts.
        order: All nodes, each after everything below it.
        children: The edges that leave each node downwards.
        masks: Bit i of a node's mask says that task i reaches it.
        leaves: Leaf tensors that are parameters, by their nodes.
        inputs: Other leaf tensors that require a gradient.
        routes: For a node that several tasks reach by different elements: each task's own edges.
        blurred: Whether tensors of several tasks were joined in a way that does not tell which
            elements are whose: masks, lists of indices, assignments into a buffer.
        numbers: Tasks and the vectors that they take one number of, as they do of a vector of
            losses.
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
    _kinds: dict[Any, int] = field(default_factory=dict)

    def push_masks(self) -> None:
        """Give each node the set of tasks that reach it."""
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

    def edges(self, node: Any, task: int) -> tuple[Edge, ...]:
        """Return the edges that one task takes from a node."""
        if node in self.routes:
            return self.routes[node].get(task, self.children[node])
        return self.children[node]

    def kind(self, node: Any) -> int:
        """Return what the tensors of a node are made of. See :data:`ACTIVATION`."""
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
            # An activation below settles it: nothing else has to be looked at.
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
        """Whether data enter below a node by a product or a lookup, as nearly always."""
        children = self.children
        seen = {node}
        stack = [node]
        while stack:
            top = stack.pop()
            below = children[top]
            if not below:
                continue
            name = _ops.operation(top)
            if name in _ops.LOOKUPS:
                return True
            product = name in _ops.PRODUCTS
            for child, _ in below:
                if child is None:
                    if product:
                        return True
                elif child not in seen:
                    seen.add(child)
                    stack.append(child)
        return False

    def _kind(self, node: Any, below: Sequence[Any]) -> int:
        """Return what a node is made of, its children being no activations."""
        if node in self.leaves:
            return PARAMETERS
        name = _ops.operation(node)
        if name == _ops.REENTRANT:
            return ACTIVATION  # its parameters are in a graph that is not made yet
        kinds = {self._kinds[c] for c in below}
        if PARAMETERS not in kinds:
            return NOTHING
        if NOTHING in kinds:  # parameters meet an input that requires a gradient
            return ACTIVATION
        if name in _ops.LOOKUPS:
            return ACTIVATION
        if len(below) == len(self.children[node]):
            return PARAMETERS
        # Something that requires no gradient took part: data, or a constant such as a mask.
        if name in _ops.PRODUCTS:
            return ACTIVATION
        own = shape_of((node, 0))
        shapes = {shape_of(edge) for edge in self.children[node] if edge[0] is not None}
        return PARAMETERS if own in shapes else ACTIVATION


def bits(mask: int) -> list[int]:
    """Return the positions of the bits of a mask.

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
    """Walk the graph once: half a microsecond a node, however many the tasks.

    Args:
        losses: k losses.
        parallel: Look for the nodes that ``DistributedDataParallel`` puts behind a model's outputs,
            and through them.
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
        if (variable := getattr(node, "variable", None)) is not None:
            target = result.leaves if isinstance(variable, nn.Parameter) else result.inputs
            target[node] = variable
    if not result.leaves:
        # A functional model: its leaves are its parameters.
        result.leaves, result.inputs = result.inputs, {}
