"""Geometric loss strategy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import method

__all__ = ["GeometricLoss"]


@method(
    "gls",
    family="losses",
    summary="Geometric loss strategy: the geometric mean of the losses",
    paper="Chennupati et al.: MultiNet++, CVPR Workshops 2019",
)
class GeometricLoss(LossWeighting):
    r"""The geometric mean of the losses, :math:`L = (\prod_i \ell_i)^{1/k}`.

    The geometric loss strategy of "MultiNet++". Weights are its derivatives,
    :math:`w_i = L / (k \ell_i)`: every :math:`w_i \ell_i` is the same, and multiplying one loss by
    a constant changes no ratio of these. A loss of zero (below 1.2e-38, the smallest normal
    float32 number) has no gradient to weigh; it gets weight 0 and is left out of the mean, which
    would otherwise stop every other task. The paper's
    focused variant, with a second factor for chosen tasks, is not offered.

    Raises:
        ValueError: On use, if a loss is negative.

    Example:
        >>> import torch
        >>> GeometricLoss()(losses=torch.tensor([1.0, 4.0]))  # L = 2: 2 / (2 * 1), 2 / (2 * 4)
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    takes_logarithms: ClassVar[bool] = True
    needs_positive_losses: ClassVar[bool] = True

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        live = nonzero(losses, "gls", "takes roots of losses")
        weights = torch.zeros_like(losses)
        if bool(live.any()):
            logs = losses[live].log()
            weights[live] = torch.exp(logs.mean() - logs) / len(logs)
        return weights
