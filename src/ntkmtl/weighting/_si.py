"""Scale-invariant scalarization."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._losses import nonzero, reciprocals
from ntkmtl.weighting._method import method

__all__ = ["ScaleInvariant"]


@method(
    "si",
    family="losses",
    summary="Scale-invariant: the sum of the logarithms of the losses",
    paper="Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022 (as a baseline)",
)
class ScaleInvariant(LossWeighting):
    r"""The sum of log losses, whose weights are :math:`1 / \ell_i`.

    A loss of zero (below 1.2e-38, the smallest normal float32 number) has no gradient to weigh and
    gets weight 0.

    Raises:
        ValueError: On use, if a loss is negative.

    Example:
        >>> import torch
        >>> ScaleInvariant()(losses=torch.tensor([0.5, 4.0]))
        tensor([2.0000, 0.2500], dtype=torch.float64)
    """

    takes_logarithms: ClassVar[bool] = True
    needs_positive_losses: ClassVar[bool] = True

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        nonzero(losses, "si", "takes logarithms of losses")
        return reciprocals(losses)
