"""Independent component alignment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian

__all__ = ["AlignedMTL"]


class AlignedMTL(GramianWeighting):
    """All singular values of the matrix of gradients are made equal to the smallest, then summed.

    Algorithm 1 of "Independent Component Alignment for Multi-Task Learning", by TorchJD, with every
    task preferred by 1 as in the published code.

    Args:
        scale_mode: The singular value that all are set to: ``"min"``, ``"median"`` or ``"rmse"``.

    Raises:
        ValueError: The mode is unknown.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 4.0])).reshape(2, 1, 2, 1))
        >>> AlignedMTL()(K)
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, scale_mode: Literal["min", "median", "rmse"] = "min") -> None:
        if scale_mode not in ("min", "median", "rmse"):
            raise ValueError(
                f"scale_mode must be 'min', 'median' or 'rmse'. Found scale_mode={scale_mode!r}."
            )
        self.scale_mode = scale_mode

    def of_gramian(self, gramian: Tensor) -> Tensor:
        solver = AlignedMTLWeighting(torch.ones_like(gramian[0]), scale_mode=self.scale_mode)
        return solver(balanced_gramian(gramian)[0])
