"""Impartial multi-task learning, the gradient half."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting
from ntkmtl.weighting._equal_projections import equal_projections
from ntkmtl.weighting._method import EXACT_HEADS, method

__all__ = ["IMTLG", "impartial_weights"]

# Weights that sum to less than this share of their sizes sum to nothing.
_NOTHING = 1e-12


def impartial_weights(gramian: Tensor) -> Tensor:
    """Return weights, summing to 1, whose combined gradient has equal projections on all.

    See :class:`IMTLG`.

    Args:
        gramian: float64, shape (k, k).
    """
    live = gramian.diagonal() > 0
    weights = equal_projections(gramian).weights
    total = weights.sum()
    if bool(live.any()) and bool(total.abs() <= _NOTHING * weights.abs().sum()):
        return torch.zeros_like(weights)
    share = 1.0 / len(weights)
    return torch.where(live, weights * (share * int(live.sum()) / total), share)


@method(
    "imtl-g",
    family="gradients",
    summary="Impartial, gradient half: equal projections on every task's gradient",
    paper="Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
)
class IMTLG(GramianWeighting):
    """Weights, summing to 1, whose combined gradient has equal projections on every gradient.

    Eq. 5 of "Towards Impartial Multi-Task Learning", in the least-squares sense where gradients
    depend on each other; TorchJD's version takes what rounding leaves of such a dependence for a
    direction, and nearly stops. Where gradients cancel, no direction serves all of them and every
    weight is 0.

    A task whose gradient is zero gets 1 / k, and the others share the rest, so that a head that
    starts at zero learns.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> IMTLG()(K)  # orthogonal: proportional to 1 / norm
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    balancer_defaults = EXACT_HEADS

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return impartial_weights(gramian)
