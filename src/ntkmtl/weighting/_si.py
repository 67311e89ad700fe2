"""Scale-invariant scalarisation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting

__all__ = ["ScaleInvariant"]


class ScaleInvariant(LossWeighting):
    r"""The sum of log losses, whose weights are :math:`1 / \ell_i`.

    A loss of exactly zero has no gradient to weigh and gets weight 0.

    Raises:
        ValueError: On use, if a loss is negative.

    Example:
        >>> import torch
        >>> ScaleInvariant()(losses=torch.tensor([0.5, 4.0]))
        tensor([2.0000, 0.2500], dtype=torch.float64)
    """

    takes_logarithms: ClassVar[bool] = True

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        if bool((losses < 0).any()):
            raise ValueError(
                f"si takes logarithms of losses, found a negative one in {losses.tolist()}; "
                "shift the loss, or use another method"
            )
        return torch.where(losses > 0, 1.0 / losses, 0.0)
