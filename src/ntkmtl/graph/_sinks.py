"""The nodes that ``DistributedDataParallel`` puts behind a model's outputs.

With ``find_unused_parameters=True``, and in the first step with ``static_graph=True``, one node
maps all outputs of the model to themselves. Walks look through it, as otherwise each output would
seem to depend on all others' parts of the model. Under ``static_graph`` it also schedules the
averaging of all gradients when a backward pass runs it, so passes that fill no ``.grad`` must not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

__all__ = ["below", "delaying_sinks", "may_exist", "passed_on", "reached", "through"]

Edge = tuple[Any, int]

_SINK = "_DDPSinkBackward"


def may_exist() -> bool:
    """Whether the model may be wrapped in ``DistributedDataParallel``."""
    return dist.is_available() and dist.is_initialized()


def through(edge: Edge) -> Edge:
    """Return the edge of the tensor that a sink passes on; any other edge as it is."""
    while edge[0] is not None and edge[0].name() == _SINK:
        edge = passed_on(edge)
    return edge


def passed_on(edge: Edge) -> Edge:
    """Return the edge of the tensor that one sink made an output of."""
    node, nr = edge
    # A model may return what is no tensor, which counts among outputs and not among edges.
    needs = node.needs_input_grad[1:]  # the first input is the wrapper
    if not needs[nr]:
        return None, 0
    kept = [inner for inner in node.next_functions if inner[0] is not None]
    inner: Edge = kept[sum(needs[:nr])]
    return inner


def below(node: Any) -> tuple[Edge, ...]:
    """Return a node's edges downwards, sinks looked through."""
    return tuple([through(edge) for edge in node.next_functions])


def _delays(edge: Edge) -> bool:
    """Whether a backward pass that runs this node schedules the averaging of gradients."""
    if edge[0].name() != _SINK:
        return False
    reference = getattr(edge[0], "ddp_weakref", None)
    model = None if reference is None else reference()
    return model is None or bool(model.static_graph)


def delaying_sinks(root: Edge) -> tuple[list[Edge], set[Any]]:
    """Return the edges into sinks that must not run, and the nodes that are reached before them."""
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
    """Return all nodes below some sinks."""
    stack = [node for node, _ in map(through, edges) if node is not None]
    seen = set(stack)
    while stack:
        for child, _ in below(stack.pop()):
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return seen
