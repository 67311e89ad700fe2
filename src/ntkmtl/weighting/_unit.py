"""Unitary scalarization."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._method import method

__all__ = ["UnitaryScalarization"]


@method(
    "unit",
    family="losses",
    summary="Unitary scalarization: the plain sum, regularized as single-task networks are",
    paper="Kurin et al.: In Defense of the Unitary Scalarization, NeurIPS 2022",
)
class UnitaryScalarization(LossWeighting):
    """Every task has weight 1.

    "In Defense of the Unitary Scalarization for Deep Multi-Task Learning" finds that the plain sum
    of the losses keeps up with elaborate methods once the network is regularized as in single-task
    training. The weights are those of ``ls``; what is particular, weight decay, dropout and early
    stopping, belongs to the model and its optimizer, and is set there.

    Example:
        >>> import torch
        >>> UnitaryScalarization()(losses=torch.tensor([3.0, 5.0]))
        tensor([1., 1.], dtype=torch.float64)
    """

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return torch.ones_like(losses)
