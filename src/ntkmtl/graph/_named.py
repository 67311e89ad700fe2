"""Gradients at features that the user names, in place of a cut that is found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkmtl.graph import _sinks
from ntkmtl.graph._crossing import Start
from ntkmtl.graph._engine import differentiate, leaves
from ntkmtl.graph._features import Features
from ntkmtl.graph._gradients import TaskGradients
from ntkmtl.graph._walk import edge_of, node_of

__all__ = ["HeadGraph", "feature_gradients", "head_graph", "path_around", "require_cut"]


@dataclass(frozen=True)
class HeadGraph:
    """The part of the graph between the features and the losses.

    Attributes:
        parameters: For each task the leaves that its loss reaches without passing the features.
        overlapping: Whether the graphs of two tasks share a node, so that buffers must be kept from
            one task's pass for the other's.
        borders: For each task the nodes that read a feature. Hooks there see the gradient with
            respect to the features.
        crosses: Pairs (i, j): task i reaches the representation of another task j.
        depends: Whether any loss reaches the features.
        ends: The graph nodes of all leaves in ``parameters``.
    """

    parameters: list[list[Tensor]]
    overlapping: bool
    borders: list[list[Any]]
    crosses: list[tuple[int, int]]
    depends: bool
    ends: set[Any]


def head_graph(begin: Sequence[Start], features: Features) -> HeadGraph:
    """Walk from each loss down to the features, and collect the parameters of each head."""
    # Not built on `leaves`, for speed: this runs in every step.
    place = {_sinks.through(edge_of(tensor)): j for j, tensor in enumerate(features.tensors)}
    parameters: list[list[Tensor]] = []
    crosses: list[tuple[int, int]] = []
    borders: list[list[Any]] = []
    walked: set[Any] = set()
    ends: set[Any] = set()
    overlapping = False
    parallel = _sinks.may_exist()
    for i, (outputs, _) in enumerate(begin):
        found: dict[Tensor, None] = {}
        seen: set[Any] = set()
        border: list[Any] = []
        stack = [node_of(o) for o in outputs]
        if parallel:
            stack = [_sinks.through(edge_of(o))[0] for o in outputs]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            children = _sinks.below(node) if parallel else node.next_functions
            if not children:
                variable = getattr(node, "variable", None)
                if variable is not None and variable.requires_grad:  # not frozen since
                    found[variable] = None
                    ends.add(node)
                continue
            seen.add(node)
            for edge in children:
                if edge in place:
                    if not border or border[-1] is not node:
                        border.append(node)
                    if features.per_task and place[edge] != i:
                        crosses.append((i, place[edge]))
                elif edge[0] is not None:
                    stack.append(edge[0])
        parameters.append(list(found))
        borders.append(border)
        overlapping = overlapping or not walked.isdisjoint(seen)
        walked |= seen
    return HeadGraph(parameters, overlapping, borders, crosses, any(borders), ends)


def require_cut(graph: HeadGraph, names: Sequence[str]) -> None:
    """Check that the features lie between the trunk and the losses.

    Args:
        graph: The graph between features and losses.
        names: Names of the tasks.

    Raises:
        ValueError: No loss depends on the features, or one depends on another task's features.
    """
    if not graph.depends:
        raise ValueError(
            "no loss depends on the features; pass the very tensor that the heads read, not a copy "
            "or a detached one, or leave features out. What a model returns is a copy if it was "
            "compiled in one piece, or was prepared by accelerate or the Hugging Face Trainer for "
            "mixed precision: compile trunk and heads apart, and keep the features from inside the "
            "forward pass. The features that last_layer= remembers are those of its last run with "
            "gradients on, which must be the losses' own"
        )
    if graph.crosses:
        i, j = graph.crosses[0]
        raise ValueError(
            f"the loss of task {names[i]} also depends on the features of task {names[j]}; where "
            "all tasks read the same features, pass that one tensor, or a tuple where they read "
            "several, not one per task"
        )


def path_around(graph: HeadGraph, features: Features, names: Sequence[str]) -> tuple[str, bool]:
    """Look for leaves of the trunk that a loss reaches around the features as well.

    Args:
        graph: The graph between features and losses.
        features: The representation.
        names: Names of the tasks.

    Returns:
        Which task reaches a trunk parameter, in words, "" if none; and whether one reaches another
        leaf, an input that requires a gradient.
    """
    outputs = features.outputs
    if not _reaches(outputs, graph.ends):
        return "", False
    below = {id(p): isinstance(p, nn.Parameter) for p in leaves(outputs)[0]}
    functional = not any(below.values())
    for name, head in zip(names, graph.parameters, strict=True):
        for leaf in head:
            if below.get(id(leaf)) or (functional and id(leaf) in below):
                return (
                    f"the loss of task {name} reaches a parameter of the trunk around the features "
                    f"(one of shape {tuple(leaf.shape)})"
                ), False
    return "", True


def _reaches(roots: Iterable[Tensor], ends: set[Any]) -> bool:
    """Whether one of the nodes ``ends`` lies below the roots.

    Runs in every step, as the graph may change. Takes about half a microsecond per trunk node.
    """
    seen: set[Any] = set()
    parallel = _sinks.may_exist()
    stack = [_sinks.through(edge_of(t))[0] for t in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node in ends:
            return True
        seen.add(node)
        for child, _ in _sinks.below(node) if parallel else node.next_functions:
            if child is not None and child not in seen:
                stack.append(child)
    return False


def feature_gradients(
    begin: Sequence[Start],
    features: Features,
    graph: HeadGraph,
    *,
    heads: bool,
    retain: bool,
    differentiable: bool = False,
) -> TaskGradients:
    """Differentiate each loss with respect to the features, and to its head's parameters.

    One call of the engine serves all tasks, unless their heads share nodes or parameters: then each
    task takes one call.

    Args:
        begin: Where the backward pass of each task starts; see :func:`ntkmtl.graph.starts`.
        features: The representation.
        graph: Result of :func:`head_graph`.
        heads: Differentiate with respect to the heads' parameters as well.
        retain: Keep the graph for a later pass over the heads.
        differentiable: Return gradients that can themselves be differentiated.
    """
    parameters = graph.parameters if heads else [[] for _ in begin]
    flat = [p for head in parameters for p in head]
    # One call would return the sum of two tasks' gradients for a parameter that both heads use,
    # and for a feature below an operation that both heads use.
    apart = len({id(p) for p in flat}) == len(flat)
    if differentiable:
        own, grads = _twice_differentiable(begin, features, parameters)
    elif features.separate:
        own, grads = _at_separate_tensors(begin, features, graph, parameters, retain)
    elif features.per_task:
        own, grads = (_at_views if apart else _at_views_one_by_one)(
            begin, features, parameters, retain
        )
    elif apart and not graph.overlapping and len(begin) > 1:
        own, grads = _hooked_at_borders(begin, features, graph, flat, retain)
    else:
        own, grads = _one_by_one(begin, features, graph, parameters, retain)
    if not heads:
        return TaskGradients(own)
    rest = iter(grads)
    by_head = [[(p, g) for p in head if (g := next(rest)) is not None] for head in parameters]
    return TaskGradients(own, by_head)


def _inputs(tensors: Sequence[Tensor]) -> list[Any]:
    """Return the features as inputs of the engine; below DDP's sink if the model is wrapped."""
    if not _sinks.may_exist():
        return list(tensors)
    edges = [(edge_of(t), _sinks.through(edge_of(t))) for t in tensors]
    return [
        t if inner == outer else GradientEdge(*inner)
        for t, (outer, inner) in zip(tensors, edges, strict=True)
    ]


_Gradients = tuple[list[list[Tensor]], list[Tensor | None]]


def _hooked_at_borders(
    begin: Sequence[Start],
    features: Features,
    graph: HeadGraph,
    parameters: list[Tensor],
    retain: bool,
) -> _Gradients:
    """Differentiate all tasks in one call; hooks record each task's gradient at its border nodes.

    The engine returns only the sum over tasks. One call of the engine takes about 15 microseconds,
    a hook 2.
    """
    place = {_sinks.through(edge_of(tensor)): f for f, tensor in enumerate(features.tensors)}
    own: list[list[Tensor | None]] = [[None] * len(begin) for _ in features.tensors]

    def note(task: int, node: Any) -> Any:
        edges = map(_sinks.through, node.next_functions)
        outlets = [(j, place[e]) for j, e in enumerate(edges) if e in place]

        def hook(below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
            for j, f in outlets:
                if (g := below[j]) is not None:
                    before = own[f][task]
                    own[f][task] = g if before is None else before + g

        return node.register_hook(hook)

    handles = [note(i, node) for i, border in enumerate(graph.borders) for node in border]
    try:
        grads = differentiate(
            [tensor for outputs, _ in begin for tensor in outputs],
            (*_inputs(features.tensors), *parameters),
            [gradient for _, cotangents in begin for gradient in cotangents],
            retain=retain,
        )
    finally:
        for handle in handles:
            handle.remove()
    return [
        [torch.zeros_like(tensor) if g is None else g for g in per_task]
        for tensor, per_task in zip(features.tensors, own, strict=True)
    ], list(grads[len(features.tensors) :])


def _one_by_one(
    begin: Sequence[Start],
    features: Features,
    graph: HeadGraph,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    own: list[list[Tensor]] = [[] for _ in features.tensors]
    flat: list[Tensor | None] = []
    count = len(own)
    for i, start in enumerate(begin):
        keep = retain or (graph.overlapping and i < len(begin) - 1)
        if count > 1:
            # If one feature is computed from another, the engine returns the total derivative.
            alone = replace(graph, borders=graph.borders[i : i + 1])
            found, rest = _hooked_at_borders([start], features, alone, parameters[i], keep)
            for per_task, (one,) in zip(own, found, strict=True):
                per_task.append(one)
            flat += rest
            continue
        inputs = (*_inputs(features.tensors), *parameters[i])
        grads = differentiate(start[0], inputs, start[1], retain=keep)
        for per_task, tensor, g in zip(own, features.tensors, grads, strict=False):
            per_task.append(torch.zeros_like(tensor) if g is None else g)
        flat += grads[count:]
    return own, flat


def _at_separate_tensors(
    begin: Sequence[Start],
    features: Features,
    graph: HeadGraph,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    """Differentiate each task at its own tensor, which may be computed from another task's."""
    apart = len({id(p) for head in parameters for p in head}) == sum(map(len, parameters))
    if apart and not graph.overlapping:
        flat = [p for head in parameters for p in head]
        found, rest = _hooked_at_borders(begin, features, graph, flat, retain)
        place = {edge_of(tensor): f for f, tensor in enumerate(features.tensors)}
        return [[found[place[edge_of(t)]][i] for i, t in enumerate(features.tensors)]], rest
    own: list[Tensor] = []
    grads: list[Tensor | None] = []
    for i, start in enumerate(begin):
        alone = replace(graph, borders=graph.borders[i : i + 1])
        keep = retain or i < len(begin) - 1
        one = features.select([i])
        found, rest = _hooked_at_borders([start], one, alone, parameters[i], keep)
        own.append(found[0][0])
        grads += rest
    return [own], grads


def _at_views(
    begin: Sequence[Start],
    features: Features,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    """Differentiate all tasks in one call, each at its own view."""
    grads = differentiate(
        [tensor for outputs, _ in begin for tensor in outputs],
        (*_inputs(features.tensors), *(p for head in parameters for p in head)),
        [gradient for _, cotangents in begin for gradient in cotangents],
        retain=retain,
    )
    k = len(begin)
    own = [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(features.tensors, grads[:k], strict=True)
    ]
    return [own], list(grads[k:])


def _at_views_one_by_one(
    begin: Sequence[Start],
    features: Features,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    own: list[Tensor] = []
    flat: list[Tensor | None] = []
    for i, (start, tensor) in enumerate(zip(begin, features.tensors, strict=True)):
        g, *rest = differentiate(
            start[0],
            (*_inputs([tensor]), *parameters[i]),
            start[1],
            retain=retain or i < len(begin) - 1,
        )
        own.append(torch.zeros_like(tensor) if g is None else g)
        flat += rest
    return [own], flat


def _twice_differentiable(
    begin: Sequence[Start],
    features: Features,
    parameters: list[list[Tensor]],
) -> _Gradients:
    own: list[list[Tensor]] = [[] for _ in range(1 if features.per_task else len(features.tensors))]
    flat: list[Tensor | None] = []
    for i, start in enumerate(begin):
        read = features.tensors[i : i + 1] if features.per_task else features.tensors
        inputs = (*_inputs(read), *parameters[i])
        grads = differentiate(start[0], inputs, start[1], retain=True, create=True)
        for per_task, tensor, g in zip(own, read, grads, strict=False):
            per_task.append(torch.zeros_like(tensor) if g is None else g)
        flat += [None if g is None else g.detach() for g in grads[len(read) :]]
    return own, flat
