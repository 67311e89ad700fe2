"""Multiple gradient descent."""

from __future__ import annotations

import math

from torch import Tensor
from torchjd.aggregation import MGDAWeighting

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian

__all__ = ["MGDA"]


class MGDA(GramianWeighting):
    """The convex combination of gradients of least norm, by TorchJD's Frank-Wolfe solver.

    Algorithm 2 of "Multi-Task Learning as Multi-Objective Optimization".

    Args:
        epsilon: Step length below which the solver stops.
        max_iters: Its largest number of iterations.

    Raises:
        ValueError: A setting is not positive.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 3.0])).reshape(2, 1, 2, 1))
        >>> MGDA()(K)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    def __init__(self, epsilon: float = 1e-3, max_iters: int = 100) -> None:
        if not 0.0 < epsilon < math.inf:
            raise ValueError(f"epsilon must be positive and finite. Found epsilon={epsilon}.")
        if max_iters < 1:
            raise ValueError(f"max_iters must be at least 1. Found max_iters={max_iters}.")
        self.epsilon = epsilon
        self.max_iters = max_iters
        self._solver = MGDAWeighting(epsilon=epsilon, max_iters=max_iters)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return self._solver(balanced_gramian(gramian)[0])
