"""Nash bargaining."""

from __future__ import annotations

from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting
from ntkmtl.weighting._fair import fair_weights
from ntkmtl.weighting._method import EXACT_HEADS, method

__all__ = ["NashMTL"]


@method(
    "nash-mtl",
    family="gradients",
    summary="Nash bargaining between the tasks",
    paper="Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022",
)
class NashMTL(GramianWeighting):
    r"""The Nash bargaining solution between tasks, :math:`G w = 1 / w`.

    Claim 3.1 of "Multi-Task Learning as a Bargaining Game", solved to machine precision by
    :func:`ntkmtl.weighting._fair.fair_weights`. The published code then clips the gradient to norm
    1, which is left to the user here.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([4.0, 0.25])).reshape(2, 1, 2, 1))
        >>> NashMTL()(K)  # orthogonal: 1 / norm
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """

    balancer_defaults = EXACT_HEADS

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return fair_weights(gramian, 1.0)
