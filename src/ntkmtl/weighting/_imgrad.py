"""IMGrad: conflict-averse gradient descent that listens to the imbalance of the gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive
from ntkmtl.weighting._cagrad import CANCELLED, toward_worst
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._qp import cancellation, shortest_combination

__all__ = ["IMGrad"]

# Below it the dual's radius is lost in rounding; its weights are then those of a cosine of 0.
_NO_COSINE = 1e-6


@method(
    "imgrad",
    family="gradients",
    summary="Conflict-averse by how far the mean gradient is from the shortest combination",
    paper="Zhou et al.: Injecting Imbalance Sensitivity for Multi-Task Learning, IJCAI 2025",
)
class IMGrad(GramianWeighting):
    r"""CAGrad whose worst task is sought the more locally, the more one gradient dominates.

    "Injecting Imbalance Sensitivity for Multi-Task Learning", in the form of its authors' code.
    With the mean gradient :math:`g_0`, the shortest convex combination :math:`g_m` and the cosine
    :math:`\mu` between them, which falls as one task dominates the mean,

    .. math::
        w = \arg\min_w \; (1.5 - \mu)\, g_w^T g_0 + \mu\, c \|g_0\| \|g_w\|, \qquad
        d = g_0 + c \|g_0\| \frac{g_w}{\|g_w\|}

    with :math:`g_w = \sum_i w_i g_i` over the simplex. Divided by :math:`1.5 - \mu`, that is the
    dual of CAGrad with the radius :math:`c \mu / (1.5 - \mu)`, which
    :func:`ntkmtl.weighting._cagrad.toward_worst` solves; the step has the radius c. At
    :math:`\mu = 0.75` it is CAGrad itself.

    The code multiplies d by :math:`1 / (1 + c^2)` and by the number of tasks; here it is as long
    as CAGrad's. Where a convex combination of the gradients is zero, or :math:`\mu` below 1e-6,
    the step goes toward the gradient that gains least from the mean, as for a :math:`\mu` of 0.

    Args:
        c: Radius of the step, relative to the mean gradient; 0.8 in the code's scripts.

    Raises:
        ValueError: ``c`` is negative.
        RuntimeError: On use, if the solver does not find the optimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> IMGrad(c=0.8)(ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1)))  # no imbalance: longer
        tensor([0.9000, 0.9000], dtype=torch.float64)
    """

    balancer_defaults = EXACT
    search_space = (
        SearchRange("c", 0.0, 0.99, 0.8, reason="as for CAGrad, which it is for one imbalance"),
    )

    def __init__(self, c: float = 0.8) -> None:
        self.c = check_positive("c", c, zero=True)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        device = gramian.device
        gramian, _ = balanced_gramian(gramian.cpu())
        uniform = torch.full_like(gramian[0], 1.0 / len(gramian))
        length = _length(gramian, uniform)
        radius = self.c * length
        if radius <= 0.0 or cancellation(gramian, uniform) <= CANCELLED:
            return uniform.to(device)
        products = gramian @ uniform
        cosine = _cosine(gramian, products, length)
        if cosine > _NO_COSINE:
            share = cosine / (1.5 - cosine)
            moved = toward_worst(gramian, products, share * radius) / share
        else:
            worst = (products <= products.min()).to(gramian)
            size = _length(gramian, worst)
            moved = worst * (radius / size) if size > 0.0 else torch.zeros_like(worst)
        return (uniform + moved).to(device)


def _cosine(gramian: Tensor, products: Tensor, length: float) -> float:
    """Return the cosine between the mean and the shortest combination, 0 where that is zero.

    Args:
        gramian: float64, shape (k, k).
        products: Of all gradients with the mean, shape (k,).
        length: Of the mean.
    """
    shortest = shortest_combination(gramian)
    if cancellation(gramian, shortest) <= CANCELLED:
        return 0.0
    cosine = float(shortest @ products) / (length * _length(gramian, shortest))
    return min(max(cosine, 0.0), 1.0)


def _length(gramian: Tensor, weights: Tensor) -> float:
    return math.sqrt(max(float(weights @ gramian @ weights), 0.0))
