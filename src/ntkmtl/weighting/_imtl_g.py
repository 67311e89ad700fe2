"""Impartial multi-task learning, the gradient half."""

from __future__ import annotations

from torch import Tensor
from torchjd.aggregation import IMTLGWeighting

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian

__all__ = ["IMTLG"]


class IMTLG(GramianWeighting):
    """Weights, summing to 1, whose combined gradient has equal projections on every gradient.

    Eq. 5 of "Towards Impartial Multi-Task Learning", by TorchJD, which solves it in the
    least-squares sense where gradients depend on each other.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> IMTLG()(K)  # orthogonal: proportional to 1 / norm
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._solver = IMTLGWeighting()

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return self._solver(balanced_gramian(gramian)[0])
