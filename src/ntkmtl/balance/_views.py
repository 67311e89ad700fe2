"""The interface between a step and the graph: a view, and helper functions of both views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkmtl.balance._step import Step
from ntkmtl.graph import TaskGradients, differentiate
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._ranks import Ranks

__all__ = [
    "HALF",
    "View",
    "parameters_only",
    "pull",
    "push",
    "require_means",
    "trainable_now",
    "weighted_sum",
]

HALF = (torch.float16, torch.bfloat16)


class View(Protocol):
    """A step's graph, divided into the shared part and the heads at some representation.

    Attributes:
        bypass: Why some gradient does not pass through the representation, naming task and
            parameter; empty if all of them do.
        separate: Whether each task has its own representation, so that blocks between tasks do not
            exist.
        skips: Whether an input that requires a gradient enters a head around the representation, so
            that only an ordinary backward pass fills its ``.grad``.
        partition: The mini-batches.
    """

    bypass: str
    separate: bool
    skips: bool
    partition: Partition

    @property
    def outputs(self) -> int:
        """Number of tensors of the representation, where the shared part's backward pass starts."""

    @property
    def shared(self) -> list[Tensor]:
        """The shared parameters."""

    @property
    def below(self) -> list[Tensor]:
        """All leaves below the representation."""

    @property
    def unweighted(self) -> list[Tensor]:
        """The leaves below that count as those of heads where heads are not weighted."""

    @property
    def hooks(self) -> bool:
        """Whether parameters or tensors above the shared part have hooks."""

    def differentiate(self, *, heads: bool, retain: bool) -> TaskGradients:
        """Return gradients with respect to the representation and, with ``heads``, to the heads."""

    def kernel(
        self,
        gradients: TaskGradients,
        pooling: Pooling,
        *,
        full: bool,
        ranks: Ranks | None,
        layer: tuple[Tensor, float] | None,
    ) -> ExtendedNTK:
        """Return the kernel with respect to the representation."""

    def rows(
        self, gradients: TaskGradients, parameters: Sequence[Tensor], *, release: bool
    ) -> Callable[[int], Tensor]:
        """Return a function from a task to its n gradients with respect to parameters."""

    def combined(
        self, gradients: TaskGradients, weights: Sequence[float]
    ) -> tuple[Sequence[Tensor] | Sequence[GradientEdge], list[Tensor]]:
        """Return the representation and the weighted sums of the tasks' gradients there."""


def push(
    view: View,
    gradients: TaskGradients,
    weights: Sequence[float],
    inputs: Sequence[Tensor] | None = None,
    *,
    extra: Tensor | None = None,
    retain: bool = False,
) -> None:
    """Run the shared part's backward pass from the weighted sum of the tasks' gradients.

    A loss outside the balance joins the pass, so that each parameter's hooks run once.
    """
    outputs, cotangents = view.combined(gradients, weights)
    if extra is not None:
        outputs, cotangents = [*outputs, extra], [*cotangents, torch.ones_like(extra)]
    torch.autograd.backward(outputs, cotangents, inputs=inputs, retain_graph=retain)


def pull(
    view: View,
    gradients: TaskGradients,
    weights: Sequence[float],
    inputs: Sequence[Tensor] | None = None,
    *,
    retain: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Return copies of the gradients that :func:`push` would add to each parameter's ``.grad``."""
    outputs, cotangents = view.combined(gradients, weights)
    inputs = view.below if inputs is None else inputs
    found = differentiate(outputs, inputs, cotangents, retain=retain)
    # The engine may return one tensor for two parameters, as for both terms of a sum.
    return [(p, g.clone()) for p, g in zip(inputs, found, strict=True) if g is not None]


def require_means(step: Step, counts: Tensor | None, minibatches: int) -> None:
    """Raise if numbers of labels are given for losses whose mean is over samples.

    Raises:
        ValueError: They are, and mini-batches would be scaled by them.
    """
    if counts is not None and minibatches > 1 and step.samples is not None:
        raise ValueError(
            "counts is for losses that are means over labels, and these are losses of single "
            "samples, whose mean is taken over samples: leave counts out, and pass (values, mask) "
            "where some samples have no label; or pass means over labels"
        )


def parameters_only(found: Sequence[Tensor]) -> list[Tensor]:
    """Return those leaves that are an ``nn.Parameter``; all of them if none is.

    Inputs that require a gradient are leaves too. A functional model has plain tensors only.
    """
    return [p for p in found if isinstance(p, nn.Parameter)] or list(found)


def weighted_sum(gradients: Tensor | Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_i w_i g_i of gradients of one shape, stacked along dimension 0 or in a list.

    Half precision is summed in float32: a weight may overflow float16 where its product does not.
    """
    dtype = gradients[0].dtype
    if dtype in HALF:
        sums = gradients[0].float() * weights[0]
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            sums.add_(gradient.float(), alpha=weight)
        return sums.to(dtype)
    if isinstance(gradients, Tensor):
        combined = gradients.new_tensor(weights) @ gradients.flatten(1)
        return combined.view(gradients.shape[1:])
    total: Tensor = gradients[0] * weights[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        total.add_(gradient, alpha=weight)
    return total


def trainable_now(shared: Sequence[Tensor]) -> list[Tensor]:
    """Return the shared parameters that are not frozen.

    Raises:
        ValueError: All of them are frozen.
    """
    found = [p for p in shared if p.requires_grad]
    if not found:
        raise ValueError("every shared parameter is frozen; use a method that reads losses only")
    return found
