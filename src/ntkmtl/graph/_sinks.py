"""The node ``_DDPSink`` that ``DistributedDataParallel`` puts behind a model's outputs.

With ``find_unused_parameters=True``, and in the first step with ``static_graph=True``, DDP adds one
node that passes on all outputs of the model. Walks skip it: otherwise each output would seem to
depend on every part of the model. Under ``static_graph`` a backward pass through this node also
schedules the averaging of gradients, so only the pass that fills ``.grad`` may run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

__all__ = ["below", "delaying_sinks", "may_exist", "passed_on", "passes_one", "reached", "through"]

Edge = tuple[Any, int]

_SINK = "_DDPSinkBackward"


def may_exist() -> bool:
    """Whether the model may be wrapped in ``DistributedDataParallel``."""
    return dist.is_available() and dist.is_initialized()


def through(edge: Edge) -> Edge:
    """Return the edge below all sinks; an edge that is not a sink's as it is."""
    while edge[0] is not None and edge[0].name() == _SINK:
        edge = passed_on(edge)
    return edge


def passed_on(edge: Edge) -> Edge:
    """Return the input edge of a sink that belongs to one of its outputs."""
    node, nr = edge
    # A model may also return values that are not tensors: they count as outputs but have no edge.
    needs = node.needs_input_grad[1:]  # the first input is the wrapper
    if not needs[nr]:
        return None, 0
    kept = [inner for inner in node.next_functions if inner[0] is not None]
    inner: Edge = kept[sum(needs[:nr])]
    return inner


def below(node: Any) -> tuple[Edge, ...]:
    """Return a node's input edges, with sinks skipped."""
    return tuple([through(edge) for edge in node.next_functions])


def passes_one(roots: Iterable[Edge]) -> bool:
    """Whether a sink lies below some edges such that DDP allows several backward passes."""
    stack = [node for node, _ in roots]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == _SINK:
            return not _delays((node, 0))
        below = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= below
        stack += below
    return False


def _delays(edge: Edge) -> bool:
    """Whether a backward pass that runs this node schedules the averaging of gradients."""
    if edge[0].name() != _SINK:
        return False
    reference = getattr(edge[0], "ddp_weakref", None)
    model = None if reference is None else reference()
    return model is None or bool(model.static_graph)


def delaying_sinks(root: Edge) -> tuple[list[Edge], set[Any]]:
    """Return the edges into sinks that must not run, and all nodes above these."""
    if _delays(root):
        return [root], set()
    met: dict[Edge, None] = {}
    node = through(root)[0]
    seen = set() if node is None else {node}
    stack = list(seen)
    while stack:
        for edge in stack.pop().next_functions:
            if edge[0] is None:
                continue
            if _delays(edge):
                met[edge] = None
                continue
            child = through(edge)[0]
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return list(met), seen


def reached(edges: Iterable[Edge]) -> set[Any]:
    """Return all nodes below these sinks."""
    stack = [node for node, _ in map(through, edges) if node is not None]
    seen = set(stack)
    while stack:
        for child, _ in below(stack.pop()):
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return seen
