"""Gradients of k losses on the edges of the cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ntkmtl.graph import _sinks
from ntkmtl.graph._cut import Cut
from ntkmtl.graph._engine import differentiate

__all__ = ["Start", "crossing_gradients", "starts", "task_gradients"]

Start = tuple[list[Any], list[Tensor]]
"""Where one task's backward pass starts: tensors or edges, and one cotangent for each."""


def starts(losses: Sequence[Tensor]) -> list[Start]:
    """Return where each task's backward pass starts: at its loss, with cotangent 1.

    Args:
        losses: k scalars.
    """
    if len({(loss.dtype, loss.device) for loss in losses}) == 1:
        ones = losses[0].new_ones(len(losses)).unbind()
        return [([loss], [one]) for loss, one in zip(losses, ones, strict=True)]
    return [([loss], [torch.ones_like(loss)]) for loss in losses]


def crossing_gradients(
    begin: Sequence[Start],
    cut: Cut,
    parameters: Sequence[Sequence[Tensor]] | None = None,
    *,
    retain: bool,
) -> tuple[list[dict[int, Tensor]], list[Tensor | None]]:
    """Differentiate each loss with respect to the tensors of the cut.

    Only the gradient that arrives over an edge of the cut counts, not the part that flows on from
    one tensor of the representation to another. The engine returns sums over tasks, so hooks record
    each task's gradient where it leaves the nodes that only this task reaches. All tasks share one
    call of the engine, unless they share operations above the cut.

    Args:
        begin: Where each task starts; see :func:`starts`.
        cut: The cut.
        parameters: For each task the parameters above the cut, differentiated in the same pass.
        retain: Keep the graph above the cut.

    Returns:
        For each task its gradients, keyed by the tensor's position in ``cut.targets``; and the
        gradients of all ``parameters`` in one flat list, None for those that are not reached.
    """
    own: list[dict[int, Tensor]] = [{} for _ in begin]
    targets = [GradientEdge(*edge) for edge in cut.targets]
    flat = [] if parameters is None else [p for head in parameters for p in head]
    if not targets and not flat:
        return own, []
    if not cut.apart:
        with _recording(cut, range(len(begin)), own):
            grads = _differentiate(begin, [*targets, *flat], retain)
        return own, grads[len(targets) :]
    found: list[Tensor | None] = []
    for task, start in enumerate(begin):
        head = [] if parameters is None else list(parameters[task])
        with _recording(cut, (task,), own):
            grads = _differentiate([start], [*targets, *head], retain or task < len(begin) - 1)
        found += grads[len(targets) :]
    return own, found


def task_gradients(start: Start, task: int, cut: Cut) -> dict[int, Tensor]:
    """Differentiate a part of one task's loss (some of its samples, say), and retain the graph.

    Args:
        start: Where to start.
        task: The task whose edges of the cut are read.
        cut: The cut.

    Returns:
        Gradients, keyed by the tensor's position in ``cut.targets``.
    """
    own: list[dict[int, Tensor]] = [{} for _ in range(cut.tasks)]
    with _recording(cut, (task,), own):
        _differentiate([start], [GradientEdge(*edge) for edge in cut.targets], True)
    return own[task]


def _differentiate(
    begin: Iterable[Start], inputs: Sequence[Any], retain: bool
) -> list[Tensor | None]:
    outputs: list[Any] = []
    cotangents: list[Tensor] = []
    for tensors, gradients in begin:
        outputs += tensors
        cotangents += gradients
    if _are_alike_scalars(outputs) and not _sinks.may_exist():
        # One root instead of k is faster: the engine checks each root.
        outputs, cotangents = [torch.stack(outputs)], [torch.stack(cotangents)]
    return list(differentiate(outputs, inputs, cotangents, retain=retain))


def _are_alike_scalars(outputs: Sequence[Any]) -> bool:
    if len(outputs) < 2 or not all(isinstance(o, Tensor) and o.ndim == 0 for o in outputs):
        return False
    return len({(o.dtype, o.device) for o in outputs}) == 1


@contextmanager
def _recording(cut: Cut, tasks: Iterable[int], own: list[dict[int, Tensor]]) -> Iterator[None]:
    """Record the gradients over some tasks' edges, by hooks on the operations above the cut."""
    outlets: dict[Any, list[tuple[int, int, int]]] = {}
    for task in tasks:
        for crossing in cut.crossings[task]:
            outlets.setdefault(crossing.node, []).append((crossing.position, task, crossing.target))

    def recorder(places: list[tuple[int, int, int]]) -> Any:
        def hook(below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
            for position, task, target in places:
                gradient = below[position]
                if gradient is not None:
                    before = own[task].get(target)
                    own[task][target] = gradient if before is None else before + gradient

        return hook

    handles = [node.register_hook(recorder(places)) for node, places in outlets.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
