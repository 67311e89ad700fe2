"""Learning-rate annealing, in its later form of gradient norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive
from ntkmtl.weighting._method import EXACT_HEADS, SearchRange, method

__all__ = ["LearningRateAnnealing"]


@method(
    "lra",
    family="gradients",
    summary="Learning-rate annealing: averaged weights that make gradients equally long",
    paper=(
        "Wang, Teng, Perdikaris: Understanding and Mitigating Gradient Flow Pathologies, SISC "
        "2021; by norms: Wang et al.: An Expert's Guide to Training PINNs, arXiv 2023"
    ),
)
class LearningRateAnnealing(GramianWeighting):
    r"""A moving average of weights that make all gradients equally long.

    Algorithm 1 of "An Expert's Guide to Training Physics-informed Neural Networks", by the authors
    of learning-rate annealing: :math:`\hat\lambda_i = \sum_j \|g_j\| / \|g_i\|` and
    :math:`\lambda_i \leftarrow \alpha \lambda_i + (1 - \alpha) \hat\lambda_i`, starting at 1.

    The first form (2021) has :math:`\max |g_r| / \mathrm{mean} |g_i|` instead, the largest entry of
    the residual's gradient by the mean entry of each other one. Entries of gradients are not in a
    Gramian, and the authors replaced them by norms; so does this method.

    The papers renew the weights every 10 steps (2021) or 1,000 (2023): that is ``every`` of the
    Balancer.

    A gradient that vanishes leaves its task's weight as it is. A task without labels keeps its
    weight, and its gradient is not in the sum.

    Args:
        alpha: :math:`\alpha`; 0.9 as published.

    Raises:
        ValueError: ``alpha`` is not in [0, 1).

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> LearningRateAnnealing(alpha=0.5)(K)  # (1 + 4 / 1) / 2, (1 + 4 / 3) / 2
        tensor([2.5000, 1.1667], dtype=torch.float64)
    """

    balancer_defaults = EXACT_HEADS
    search_space = (SearchRange("alpha", 0.0, 0.99, 0.9, reason="no memory to one of 100 steps"),)

    def __init__(self, alpha: float = 0.9) -> None:
        if check_positive("alpha", alpha, zero=True) >= 1:
            raise ValueError(f"alpha must be below 1. Found alpha={alpha}.")
        self.alpha = float(alpha)
        self._weights: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._weights is None:
            self._weights = torch.ones(tasks, dtype=torch.float64, device=device)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        self.prepare(kernel.tasks, tasks.device)
        assert self._weights is not None
        fresh = self.of_gramian(kernel.gramian()).to(self._weights.device)
        old = self._weights[tasks]
        mixed = self.alpha * old + (1 - self.alpha) * fresh
        self._weights[tasks] = torch.where(fresh.isnan(), old, mixed)
        return self._weights[tasks]

    def of_gramian(self, gramian: Tensor) -> Tensor:
        """Return the weights before they are averaged, NaN where a gradient vanishes."""
        norms = balanced_gramian(gramian)[0].diagonal().clamp_min(0.0).sqrt()
        return torch.where(norms > 0, norms.sum() / norms, torch.nan)

    def _get_state(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._weights = state["weights"]
