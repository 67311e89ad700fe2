"""The gradients of k tasks from one pass over a batch that holds rows of each.

The rows of a batch do not interact inside the networks. So one backward pass of the sum of the
losses leaves, at the output of every linear layer, each task's own gradient in its own rows;
multiplied with the layer's inputs, task by task, they are the k gradients of its weights. The
arithmetic is that of one ordinary backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl.bench.reinforce.networks import TwinLinear

Trace = list[tuple[nn.Module, Tensor, Tensor]]
"""Linear layers with what went in and what came out, in the order of the pass."""


def with_task_gradients(
    losses: Sequence[Tensor | None],
    trace: Trace,
    sizes: Sequence[int],
    parameters: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the losses with gradients that are known already.

    Args:
        losses: k losses of one pass, each of its own task's rows alone; None for a task without
            rows. Their graph is used up.
        trace: The layers of the pass.
        sizes: Number of rows of each task, which are contiguous.
        parameters: Of the traced layers, in any order.

    Returns:
        The k losses. Differentiating one gives its gradients with respect to ``parameters`` and
        nothing else.
    """
    live = [loss for loss in losses if loss is not None]
    deltas = torch.autograd.grad(live, [output for _, _, output in trace])
    present = [size for size in sizes if size]
    by_parameter: dict[int, list[Tensor]] = {}
    for (layer, inputs, _), delta in zip(trace, deltas, strict=True):
        inputs = inputs.detach()
        if isinstance(layer, TwinLinear):
            shared = inputs.ndim == 2
            a = (inputs.expand(2, -1, -1) if shared else inputs, delta)
            weight, bias = _twin(a[0], a[1], present)
        else:
            assert isinstance(layer, nn.Linear)
            weight, bias = _linear(inputs, delta, present)
        by_parameter[id(layer.weight)] = weight
        by_parameter[id(layer.bias)] = bias
    found = iter(range(len(present)))
    result: list[Tensor | None] = []
    for loss in losses:
        if loss is None:
            result.append(None)
            continue
        place = next(found)
        own = [by_parameter[id(p)][place] for p in parameters]
        result.append(_Known.apply(loss.detach(), own, *parameters))  # type: ignore[no-untyped-call]
    return result


def _linear(x: Tensor, d: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients of weight (outputs, inputs) and bias (outputs,) of each task."""
    if len(set(sizes)) == 1:
        x, d = x.unflatten(0, (len(sizes), -1)), d.unflatten(0, (len(sizes), -1))
        return list(d.transpose(1, 2) @ x), list(d.sum(dim=1))
    parts = list(zip(x.split(list(sizes)), d.split(list(sizes)), strict=True))
    return [di.T @ xi for xi, di in parts], [di.sum(dim=0) for _, di in parts]


def _twin(x: Tensor, d: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients of weight (2, inputs, outputs) and bias (2, 1, outputs) of each task."""
    parts = list(zip(x.split(list(sizes), dim=1), d.split(list(sizes), dim=1), strict=True))
    return [xi.transpose(1, 2) @ di for xi, di in parts], [
        di.sum(dim=1, keepdim=True) for _, di in parts
    ]


class _Known(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        factor = float(outputs[0])
        gradients = ctx.gradients
        if factor != 1.0:
            gradients = torch._foreach_mul(gradients, factor)
        return (None, None, *gradients)
