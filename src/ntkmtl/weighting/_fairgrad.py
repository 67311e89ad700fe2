"""Alpha-fair gradients."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, check_positive
from ntkmtl.weighting._fair import fair_weights
from ntkmtl.weighting._method import EXACT, SearchRange, method

__all__ = ["FairGrad"]


@method(
    "fairgrad",
    family="gradients",
    summary="Alpha-fair allocation of the loss decrease",
    paper="Ban, Ji: Fair Resource Allocation in Multi-Task Learning, ICML 2024",
)
class FairGrad(GramianWeighting):
    r"""The alpha-fair allocation of the loss decrease, :math:`G w = w^{-1/\alpha}`.

    Eq. 4 of "Fair Resource Allocation in Multi-Task Learning", solved to machine precision by
    :func:`ntkmtl.weighting._fair.fair_weights`.

    Args:
        alpha: Fairness: 1 is Nash bargaining, larger values care more for the worst task; 2 as in
            the published scripts.

    Raises:
        ValueError: ``alpha`` is not positive.
        RuntimeError: On use, the solution was not found, which takes norms that differ by many
            orders of magnitude and an alpha far above 2.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 8.0])).reshape(2, 1, 2, 1))
        >>> FairGrad(alpha=2.0)(K)  # orthogonal: norm ** (-2 alpha / (alpha + 1)) = 8 ** (-2/3)
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    balancer_defaults = EXACT
    search_space: ClassVar[tuple[SearchRange, ...]] = (
        SearchRange("alpha", 0.5, 8.0, 2.0, log=True, reason="a factor of 4 around the default"),
    )

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = check_positive("alpha", alpha)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return fair_weights(gramian, self.alpha)
