"""Independent component alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ntkmtl.weighting._base import DEPENDENT, balanced_gramian
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._preference import PreferenceWeighting

__all__ = ["AlignedMTL"]


@method(
    "aligned-mtl",
    family="gradients",
    summary="Independent component alignment: all singular values made equal",
    paper="Senushkin et al.: Independent Component Alignment, CVPR 2023",
)
class AlignedMTL(PreferenceWeighting):
    r"""All singular values of the matrix of gradients are made equal to the smallest, then summed.

    Algorithm 1 of "Independent Component Alignment for Multi-Task Learning", with every task
    preferred by 1 as in the published code: with the Gramian :math:`G = V \Lambda V^T` and
    :math:`\lambda_R` the smallest eigenvalue above zero, the weights are
    :math:`\sqrt{\lambda_R} V \Lambda^{-1/2} V^T 1`. A preference, scaled to a mean of 1, takes the
    place of the ones.

    Directions that rounding in float32 leaves where gradients depend on each other are taken as
    zero, by the size of the gradients that cancel there; TorchJD's version, given a float64
    Gramian, takes them for the smallest and nearly stops. Where all gradients vanish every weight
    is 1.

    Args:
        scale_mode: The singular value that all are set to: ``"min"``, ``"median"`` or ``"rmse"``.
        preference: How much each task counts, one number per task; see
            :class:`ntkmtl.weighting._preference.PreferenceWeighting`.

    Raises:
        ValueError: The mode is unknown, or ``preference`` not positive.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 4.0])).reshape(2, 1, 2, 1))
        >>> AlignedMTL()(K)
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def __init__(
        self,
        scale_mode: Literal["min", "median", "rmse"] = "min",
        preference: Sequence[float] | None = None,
    ) -> None:
        super().__init__(preference)
        if scale_mode not in ("min", "median", "rmse"):
            raise ValueError(
                f"scale_mode must be 'min', 'median' or 'rmse'. Found scale_mode={scale_mode!r}."
            )
        self.scale_mode = scale_mode

    def of_preference(self, gramian: Tensor, shares: Tensor) -> Tensor:
        wanted = shares * len(shares)
        gramian, _ = balanced_gramian(gramian)
        norms = gramian.diagonal().clamp_min(0.0).sqrt()
        values, vectors = torch.linalg.eigh(gramian)
        # What cancels in a combination of gradients leaves a share of their sizes; what one step of
        # the solver can tell apart is a share of the largest.
        rounding = DEPENDENT * (norms @ vectors.abs()).square()
        least = len(values) * torch.finfo(values.dtype).eps * values[-1]
        kept = values > torch.maximum(rounding, least)
        if not bool(kept.any()):
            return wanted
        values, vectors = values[kept], vectors[:, kept]
        if self.scale_mode == "min":
            scale = values[0]
        elif self.scale_mode == "median":
            scale = values.median()
        else:
            scale = values.mean()
        weights: Tensor = vectors @ ((wanted @ vectors) * (scale / values).sqrt())
        return weights
