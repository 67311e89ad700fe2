"""Gradient normalization."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, balanced_gramian, check_positive
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import EXACT_HEADS, SearchRange, method
from ntkmtl.weighting._task_adam import TaskAdam

__all__ = ["GradNorm"]

# A weight that a step would make negative starts again from here.
_LEAST = 1e-6


@method(
    "gradnorm",
    family="gradients",
    summary="Learned weights bring gradients to norms that follow the training rates",
    paper="Chen et al.: GradNorm, ICML 2018",
)
class GradNorm(Weighting):
    r"""Weights that bring the tasks' gradients to norms which follow their training rates.

    Algorithm 1 of "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
    Networks": with the norms :math:`G_i = w_i \|g_i\|`, their mean :math:`\bar G`, and the inverse
    training rates :math:`r_i = \tilde\ell_i / \mathrm{mean}_j \tilde\ell_j` for
    :math:`\tilde\ell_i = \ell_i / \ell_i(0)`, the weights descend on
    :math:`\sum_i |G_i - \bar G r_i^\alpha|`, whose targets :math:`\bar G r_i^\alpha` count as
    constants; then they are renormalized to sum to k. All start at 1. Each step uses the weights
    before its own update. A call without losses shows the weights and learns nothing.

    The paper takes gradients of the last shared layer; here they are of whatever the Balancer's
    kernel is of, all shared parameters by default (give the layer's as ``shared`` for the paper's
    choice). The weights have an Adam of their own, which sees norms relative to their root mean
    square in each step, so that the scale of the losses does not matter; a weight that would become
    negative is held above zero. Where a first loss is zero, the first positive one stands for
    :math:`\ell_i(0)`.

    A task without labels in a batch keeps its weight; those of the others keep their sum.

    Args:
        alpha: How strongly slow tasks are pushed; 1.5 as in the paper's experiments.
        learning_rate: Of the weights. Ours: the right one depends on the number of steps.

    Raises:
        ValueError: A setting is negative, or, on use, a loss is.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> w = GradNorm(learning_rate=0.1)
        >>> for _ in range(2):  # G = (1, 3), target 2 each: up by 0.1, down by 0.1
        ...     w(K, losses=torch.tensor([1.0, 1.0]))
        tensor([1., 1.], dtype=torch.float64)
        tensor([1.1000, 0.9000], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"
    balancer_defaults = EXACT_HEADS
    search_space = (
        SearchRange("alpha", 0.0, 3.0, 1.5, reason="0 to twice the default, the published 1.5"),
        SearchRange(
            "learning_rate",
            0.0025,
            0.25,
            0.025,
            log=True,
            reason="a factor of 10 around the default",
        ),
    )
    needs_positive_losses: ClassVar[bool] = True

    def __init__(self, alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        self.alpha = check_positive("alpha", alpha, zero=True)
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self._adam = TaskAdam(self.learning_rate, 1.0)
        self._start: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._adam.prepare(tasks, device)
        if self._start is None:
            self._start = torch.full((tasks,), float("nan"), dtype=torch.float64, device=device)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        self.prepare(kernel.tasks, tasks.device)
        values = self._adam.values
        assert values is not None
        weights = values[tasks]
        if losses is None:
            return weights
        norms = balanced_gramian(kernel.gramian())[0].diagonal().clamp_min(0.0).sqrt()
        norms = norms.to(weights.device)
        sizes = weights * norms
        target = sizes.mean() * self._rates(losses, tasks).pow(self.alpha)
        self._adam.step(torch.sign(sizes - target) * norms, tasks)
        moved = values[tasks].clamp_min(_LEAST)
        values[tasks] = moved * (weights.sum() / moved.sum())
        return weights

    def _rates(self, losses: Tensor, tasks: Tensor) -> Tensor:
        """Return the inverse training rates r, and remember first losses."""
        assert self._start is not None
        live = nonzero(losses, "gradnorm", "compares losses with their first values")
        start = self._start[tasks]
        start = torch.where(start.isnan() & live, losses, start)
        self._start[tasks] = start
        ratio = torch.where(start.isnan(), 1.0, losses / start)
        mean = ratio.mean()
        return ratio / mean if float(mean) > 0 else torch.ones_like(ratio)

    def _get_state(self) -> dict[str, Any]:
        return {"start": self._start, **self._adam.state_dict()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._start = state["start"]
        self._adam.load_state_dict(state)
