"""The one place that walks autograd graphs and asks the engine for gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ntkmtl.kernel._features import Features

STACK_LIMIT = 1 << 22

__all__ = [
    "STACK_LIMIT",
    "HeadGraph",
    "TaskGradients",
    "feature_gradients",
    "guiding_gradients",
    "head_graph",
    "leaves",
    "unretained",
    "vjp",
]


def _node(tensor: Tensor) -> Any:
    """Return the graph node that makes a tensor: a leaf's is the one that accumulates its .grad."""
    return tensor.grad_fn or get_gradient_edge(tensor).node


def _edge(tensor: Tensor) -> tuple[Any, int]:
    """Return node and output: one operation may make several tensors (chunk, unbind)."""
    return _node(tensor), tensor.output_nr


def leaves(
    roots: Iterable[Tensor], stop: Iterable[Tensor] = ()
) -> tuple[dict[Tensor, None], set[tuple[Any, int]]]:
    """Walk the graph from some tensors down to its leaves.

    Args:
        roots: Tensors to start from.
        stop: Tensors beyond which not to walk.

    Returns:
        The leaf tensors met, in a stable order; the edges of ``stop`` met.
    """
    barriers = {_edge(t) for t in stop}
    met: set[tuple[Any, int]] = set()
    seen: set[Any] = set()
    found: dict[Tensor, None] = {}
    stack = [_node(t) for t in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        children = node.next_functions
        for edge in children:
            if edge in barriers:
                met.add(edge)
            elif edge[0] is not None:
                stack.append(edge[0])
        if not children and (variable := getattr(node, "variable", None)) is not None:
            found[variable] = None
    return found, met


@dataclass(frozen=True)
class HeadGraph:
    """What lies between the features and the losses.

    Attributes:
        parameters: The leaves that task i's loss depends on other than through the features.
        overlapping: Whether the graphs of two tasks share a node, so that buffers of one must be
            kept for the other.
        borders: The nodes of task i that read a feature: where its gradient with respect to the
            features can be seen passing.
        crosses: Positions (i, j) of tasks i that reach the representation of another task j.
        depends: Whether any loss reaches the features.
        ends: The nodes of all those leaves.
    """

    parameters: list[list[Tensor]]
    overlapping: bool
    borders: list[list[Any]]
    crosses: list[tuple[int, int]]
    depends: bool
    ends: set[Any]


def head_graph(losses: Sequence[Tensor], features: Features) -> HeadGraph:
    """Find each head's parameters by walking from its loss down to the features."""
    # Written out rather than built on `leaves`: this runs in every step, and for a small network
    # every microsecond counts.
    place = {_edge(tensor): j for j, tensor in enumerate(features.tensors)}
    parameters: list[list[Tensor]] = []
    crosses: list[tuple[int, int]] = []
    borders: list[list[Any]] = []
    walked: set[Any] = set()
    ends: set[Any] = set()
    overlapping = False
    for i, loss in enumerate(losses):
        found: dict[Tensor, None] = {}
        seen: set[Any] = set()
        border: list[Any] = []
        stack = [_node(loss)]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            children = node.next_functions
            if not children:
                if (variable := getattr(node, "variable", None)) is not None:
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
        graph: What lies between features and losses.
        names: Names of the tasks.

    Raises:
        ValueError: No loss depends on the features, or one depends on another task's.
    """
    if not graph.depends:
        raise ValueError(
            "no loss depends on the features; pass the very tensor that the heads read, not a copy "
            "or a detached one. What a model returns is a copy if it was compiled in one piece, is "
            "wrapped in DDP with find_unused_parameters=True, or was prepared by accelerate or the "
            "Hugging Face Trainer for mixed precision: compile trunk and heads apart, and keep the "
            "features from inside the forward pass"
        )
    if graph.crosses:
        i, j = graph.crosses[0]
        raise ValueError(
            f"the loss of task {names[i]} also depends on the features of task {names[j]}; where "
            "all tasks read the same features, pass that one tensor, or a tuple where they read "
            "several, not one per task"
        )


def path_around(graph: HeadGraph, features: Features) -> str:
    """Say how a gradient reaches the trunk other than once through the features, or nothing."""
    outputs = features.outputs
    if _reaches(outputs, graph.ends):
        return "a loss reaches the trunk's parameters around the features"
    for i, output in enumerate(outputs):
        if leaves((output,), [t for j, t in enumerate(outputs) if j != i])[1]:
            return "one of the features is made from another"
    return ""


def _reaches(roots: Iterable[Tensor], ends: set[Any]) -> bool:
    """Whether one of some nodes lies below the roots.

    Looked up in every step, as a network may change from one to the next: half a microsecond per
    node of the trunk.
    """
    seen: set[Any] = set()
    stack = [_node(t) for t in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node in ends:
            return True
        seen.add(node)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                stack.append(child)
    return False


@contextlib.contextmanager
def unretained(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Leave the ``.grad`` of tensors (``retain_grad``) to the backward pass that is to fill it."""
    retained = [(t, t.grad) for t in tensors if t.retains_grad]
    try:
        yield
    finally:
        for tensor, gradient in retained:
            tensor.grad = gradient


@dataclass
class TaskGradients:
    """Gradients of k task losses with respect to features and head parameters.

    Attributes:
        features: ``features[f][i]``: gradient of task i with respect to the f-th shared tensor, its
            own shape. Where tasks have their own tensors there is one f, ``features[0][i]``.
        heads: ``heads[i]``: pairs of a head parameter of task i and its gradient. Empty if heads
            were not asked for.
    """

    features: list[list[Tensor]]
    heads: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    _stacks: dict[int, Tensor] = field(default_factory=dict)

    def stacked(self, f: int) -> Tensor | list[Tensor]:
        """Return the gradients with respect to the f-th tensor as one, shape (k, ...), if small.

        Kernel and combined gradient both want them so. Above ``STACK_LIMIT`` entries, or where
        shapes differ, a stack would double the memory for nothing, and the list is returned.
        """
        if f in self._stacks:
            return self._stacks[f]
        gradients = self.features[f]
        first = gradients[0]
        if len(gradients) * first.numel() > STACK_LIMIT or any(
            g.shape != first.shape for g in gradients
        ):
            return gradients
        self._stacks[f] = torch.stack(gradients)
        return self._stacks[f]


def feature_gradients(
    losses: Sequence[Tensor],
    features: Features,
    graph: HeadGraph,
    *,
    heads: bool,
    retain: bool,
    differentiable: bool = False,
) -> TaskGradients:
    """Differentiate each loss with respect to the features, and its head if asked to.

    One call of the engine for all tasks, unless their heads have something in common: then one call
    each.

    Args:
        losses: k scalars.
        features: The representation.
        graph: What :func:`head_graph` found between the two.
        heads: Differentiate with respect to the heads' parameters as well.
        retain: Keep the graph for a later pass over the heads.
        differentiable: Make gradients that can be differentiated once more, through the heads.
    """
    parameters = graph.parameters if heads else [[] for _ in losses]
    flat = [p for head in parameters for p in head]
    # A parameter that two heads share would get the sum of both tasks' gradients, and so would a
    # feature below an operation that they share.
    apart = len({id(p) for p in flat}) == len(flat)
    if differentiable:
        own, grads = _twice_differentiable(losses, features, parameters)
    elif features.per_task:
        own, grads = (_own if apart else _own_one_by_one)(losses, features, parameters, retain)
    elif apart and not graph.overlapping and len(losses) > 1:
        own, grads = _seen_at_borders(losses, features, graph, flat, retain)
    else:
        own, grads = _one_by_one(losses, features, graph, parameters, retain)
    if not heads:
        return TaskGradients(own)
    rest = iter(grads)
    by_head = [[(p, g) for p in head if (g := next(rest)) is not None] for head in parameters]
    return TaskGradients(own, by_head)


_Gradients = tuple[list[list[Tensor]], list[Tensor | None]]


def _seen_at_borders(
    losses: Sequence[Tensor],
    features: Features,
    graph: HeadGraph,
    parameters: list[Tensor],
    retain: bool,
) -> _Gradients:
    """All tasks in one call, each task's gradient noted where it leaves the task's own graph.

    The engine itself reports the sum over tasks. A call of the engine costs some 15 microseconds,
    a hook 2.
    """
    place = {_edge(tensor): f for f, tensor in enumerate(features.tensors)}
    own: list[list[Tensor | None]] = [[None] * len(losses) for _ in features.tensors]

    def note(task: int, node: Any) -> Any:
        outlets = [(j, place[e]) for j, e in enumerate(node.next_functions) if e in place]

        def hook(below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
            for j, f in outlets:
                if (g := below[j]) is not None:
                    before = own[f][task]
                    own[f][task] = g if before is None else before + g

        return node.register_hook(hook)

    handles = [note(i, node) for i, border in enumerate(graph.borders) for node in border]
    try:
        grads = torch.autograd.grad(
            list(losses),
            (*features.tensors, *parameters),
            grad_outputs=[torch.ones_like(loss) for loss in losses],
            retain_graph=retain,
            allow_unused=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    return [
        [torch.zeros_like(tensor) if g is None else g for g in per_task]
        for tensor, per_task in zip(features.tensors, own, strict=True)
    ], list(grads[len(features.tensors) :])


def _one_by_one(
    losses: Sequence[Tensor],
    features: Features,
    graph: HeadGraph,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    own: list[list[Tensor]] = [[] for _ in features.tensors]
    flat: list[Tensor | None] = []
    count = len(own)
    for i, loss in enumerate(losses):
        keep = retain or (graph.overlapping and i < len(losses) - 1)
        if count > 1:
            # Where one feature is made from another, the engine would report the total derivative.
            alone = replace(graph, borders=graph.borders[i : i + 1])
            found, rest = _seen_at_borders([loss], features, alone, parameters[i], keep)
            for per_task, (g,) in zip(own, found, strict=True):
                per_task.append(g)
            flat += rest
            continue
        grads = torch.autograd.grad(
            loss, (*features.tensors, *parameters[i]), retain_graph=keep, allow_unused=True
        )
        for per_task, tensor, g in zip(own, features.tensors, grads, strict=False):
            per_task.append(torch.zeros_like(tensor) if g is None else g)
        flat += grads[count:]
    return own, flat


def _own(
    losses: Sequence[Tensor],
    features: Features,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    """All tasks in one call, where each has a tensor of its own."""
    grads = torch.autograd.grad(
        list(losses),
        (*features.tensors, *(p for head in parameters for p in head)),
        grad_outputs=[torch.ones_like(loss) for loss in losses],
        retain_graph=retain,
        allow_unused=True,
    )
    k = len(losses)
    own = [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(features.tensors, grads[:k], strict=True)
    ]
    return [own], list(grads[k:])


def _own_one_by_one(
    losses: Sequence[Tensor],
    features: Features,
    parameters: list[list[Tensor]],
    retain: bool,
) -> _Gradients:
    own: list[Tensor] = []
    flat: list[Tensor | None] = []
    for i, (loss, tensor) in enumerate(zip(losses, features.tensors, strict=True)):
        g, *rest = torch.autograd.grad(
            loss,
            (tensor, *parameters[i]),
            retain_graph=retain or i < len(losses) - 1,
            allow_unused=True,
        )
        own.append(torch.zeros_like(tensor) if g is None else g)
        flat += rest
    return [own], flat


def _twice_differentiable(
    losses: Sequence[Tensor],
    features: Features,
    parameters: list[list[Tensor]],
) -> _Gradients:
    own: list[list[Tensor]] = [[] for _ in range(1 if features.per_task else len(features.tensors))]
    flat: list[Tensor | None] = []
    for i, loss in enumerate(losses):
        read = features.tensors[i : i + 1] if features.per_task else features.tensors
        grads = torch.autograd.grad(
            loss, (*read, *parameters[i]), create_graph=True, allow_unused=True
        )
        for per_task, tensor, g in zip(own, read, grads, strict=False):
            per_task.append(torch.zeros_like(tensor) if g is None else g)
        flat += [None if g is None else g.detach() for g in grads[len(read) :]]
    return own, flat


def guiding_gradients(objective: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate an objective made of gradients with respect to a head's parameters.

    Parameters that it does not depend on, as where a head is linear in them and its loss in its
    output, have gradient zero.
    """
    if not objective.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    grads = torch.autograd.grad(objective, list(parameters), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def vjp(
    outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None,
    *,
    retain: bool = True,
) -> Tensor:
    """Return one gradient with respect to parameters as a flat vector.

    Args:
        outputs: Where to start: scalars, or the trunk's outputs with ``cotangents``.
        parameters: With respect to what; those that are not reached count as zero.
        cotangents: Gradients with respect to ``outputs``, None for scalars.
        retain: Keep the graph.

    Returns:
        Shape (P,), P the number of entries of all parameters, in their order.
    """
    grads = torch.autograd.grad(
        list(outputs),
        list(parameters),
        grad_outputs=None if cotangents is None else list(cotangents),
        retain_graph=retain,
        allow_unused=True,
    )
    if any(g is not None and g.layout is not torch.strided for g in grads):
        raise ValueError(
            "the kernel of a sparse gradient is not implemented: make the embedding with "
            "sparse=False, leave it out of shared, or set source='representation'"
        )
    pieces = [
        (torch.zeros_like(p) if g is None else g).reshape(-1)
        for p, g in zip(parameters, grads, strict=True)
    ]
    return torch.cat(pieces)


def add_to_grad(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add gradients to ``.grad``. Each must be a tensor of its own, which may be kept."""
    for parameter, gradient in pairs:
        if (present := parameter.grad) is not None:
            present.add_(gradient)
        else:
            same = gradient.dtype == parameter.dtype
            parameter.grad = gradient if same else gradient.to(parameter.dtype)


def has_hooks(parameter: Tensor) -> bool:
    """Whether somebody (DDP, FSDP, the user) waits for this parameter's gradient to arrive."""
    return bool(
        getattr(parameter, "_backward_hooks", None)
        or getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def trainable(parameters: Iterable[Tensor]) -> list[nn.Parameter | Tensor]:
    """Keep each parameter that requires a gradient once, in order."""
    return list({id(p): p for p in parameters if p.requires_grad}.values())
