"""Conflict-averse gradient descent."""

from __future__ import annotations

import clarabel  # noqa: F401 - the solver that cvxpy is told to use
import cvxpy  # noqa: F401 - so that its absence is met here, with the name of what is missing
from torch import Tensor
from torchjd.aggregation import CAGradWeighting

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive

__all__ = ["CAGrad"]


class CAGrad(GramianWeighting):
    """The best improvement of the worst task within a ball around the mean gradient.

    Algorithm 1 of "Conflict-Averse Gradient Descent", its dual solved by cvxpy with Clarabel
    through TorchJD.

    Args:
        c: Radius of the ball, relative to the mean gradient; 0.4 as published.

    Raises:
        ValueError: ``c`` is negative.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> w = CAGrad(c=0.0)(ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1)))
        >>> w  # no room to move: the mean gradient
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, c: float = 0.4) -> None:
        self.c = check_positive("c", c, zero=True)
        self._solver = CAGradWeighting(c=self.c)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return self._solver(balanced_gramian(gramian)[0])
