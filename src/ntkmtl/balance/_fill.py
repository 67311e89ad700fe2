"""How weighted gradients get into ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from ntkmtl.balance._step import Step
from ntkmtl.kernel._autograd import TaskGradients, add_to_grad

__all__ = ["HeadGradients", "add_flat", "plain_backward", "weighted_sum"]

# Entries up to which the heads' gradients are copied behind each other to be checked at once.
_FLAT_LIMIT = 1 << 20


def plain_backward(
    losses: Sequence[Tensor],
    weights: Tensor | Sequence[float],
    inputs: Sequence[Tensor] | None = None,
    retain: bool = False,
) -> None:
    """One ordinary backward pass of the weighted sum."""
    values = weights.tolist() if isinstance(weights, Tensor) else weights
    torch.autograd.backward(
        list(losses),
        [torch.full_like(loss, w) for loss, w in zip(losses, values, strict=True)],
        retain_graph=retain,
        inputs=None if inputs is None else list(inputs),
    )


def add_flat(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """Add one gradient, all parameters behind each other, to their ``.grad``."""
    sizes = [p.numel() for p in parameters]
    add_to_grad(
        (p, part.view_as(p).clone()) for p, part in zip(parameters, flat.split(sizes), strict=True)
    )


def weighted_sum(gradients: Tensor | Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_i w_i g_i of gradients of one shape, stacked along dimension 0 or in a list."""
    if isinstance(gradients, Tensor):
        combined = gradients.new_tensor(weights) @ gradients.flatten(1)
        return combined.view(gradients.shape[1:])
    total: Tensor = gradients[0] * weights[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        total.add_(gradient, alpha=weight)
    return total


class HeadGradients:
    """The gradients of the heads' parameters, to be checked and then weighted.

    Args:
        gradients: Of the tasks with labels in this process.
    """

    def __init__(self, gradients: TaskGradients) -> None:
        self._counts = [len(head) for head in gradients.heads]
        self._parameters = [p for head in gradients.heads for p, _ in head]
        self._gradients = [g for head in gradients.heads for _, g in head]

    def require_finite(self, step: Step) -> None:
        """Raise if a gradient is NaN or infinite.

        Raises:
            NonFiniteError: Naming the task.
        """
        if not self._gradients or self._finite():
            return
        worst = torch.zeros(len(step.present), dtype=torch.float64)
        start = 0
        for position, count in zip(step.local, self._counts, strict=True):
            for g in self._gradients[start : start + count]:
                if not bool(g.isfinite().all()):
                    worst[position] = g[~g.isfinite()][0]
            start += count
        step.require_finite(worst, "gradient")

    def _finite(self) -> bool:
        """Return False if an entry is not finite; it may be so by mistake."""
        small = sum(g.numel() for g in self._gradients) <= _FLAT_LIMIT
        if small and len({g.dtype for g in self._gradients}) == 1:
            return bool(_flatten_dense_tensors(self._gradients).isfinite().all())
        # Without a copy; a norm may overflow where no entry does.
        norms = torch.stack(torch._foreach_norm(self._gradients))
        return bool(norms.isfinite().all())

    def add(self, weights: Sequence[float]) -> None:
        """Add them to ``.grad``, each times its task's weight."""
        if not self._parameters:
            return
        per_gradient = [w for w, n in zip(weights, self._counts, strict=True) for _ in range(n)]
        # Multiplied out of place even by 1: the engine may hand out one tensor twice.
        scaled = torch._foreach_mul(self._gradients, per_gradient)
        add_to_grad(zip(self._parameters, scaled, strict=True))
