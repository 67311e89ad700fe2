"""Conflict-averse gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._qp import cancellation, nonnegative_qp, shortest_combination

__all__ = ["CANCELLED", "CAGrad", "toward_worst"]

# A combination whose squared norm is less than this share of its terms' has cancelled: what is left
# may be rounding of float32 gradients.
CANCELLED = 1e-12
_MAX_ITERATIONS = 100


@method(
    "cagrad",
    family="gradients",
    summary="Conflict-averse: the best worst-task improvement near the mean gradient",
    paper="Liu et al.: Conflict-Averse Gradient Descent, NeurIPS 2021",
)
class CAGrad(GramianWeighting):
    r"""The best improvement of the worst task within a ball around the mean gradient.

    Eq. 1 of "Conflict-Averse Gradient Descent": with the mean gradient :math:`g_0`,
    :math:`\max_d \min_i \langle g_i, d \rangle` subject to :math:`\|d - g_0\| \le c \|g_0\|`.
    Algorithm 1 there solves the dual, :math:`\min_w g_w^T g_0 + c \|g_0\| \|g_w\|` over the simplex
    with :math:`g_w = \sum_i w_i g_i`, for :math:`d = g_0 + c \|g_0\| g_w / \|g_w\|`, which is not
    defined where :math:`g_w = 0`. Here the primal is solved: for a worst product t, the nearest
    point to :math:`g_0` with :math:`\langle g_i, d \rangle \ge t` for all i is a small quadratic
    program; its distance is convex in t, and Newton steps find the t at which it is
    :math:`c \|g_0\|`. A step goes to the value of the dual at the :math:`w` of the last program.

    Where a convex combination of the gradients is zero (one task is done, two oppose each other),
    no direction improves all tasks, and the best worst product is 0 at most. If the ball holds
    directions of product 0, the nearest of them to the mean gradient is taken. Combinations below
    1e-6 of their terms count as zero.

    Args:
        c: Radius of the ball, relative to the mean gradient; 0.4 as published.

    Raises:
        ValueError: ``c`` is negative.
        RuntimeError: On use, if the solver does not find the optimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> J = torch.tensor([[1.1, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> w = CAGrad(c=0.4)(ExtendedNTK((J @ J.T).reshape(3, 1, 3, 1)))
        >>> (w.float() @ J).abs()  # the first two oppose each other: neither gets worse
        tensor([0.0000, 0.3333])
    """

    balancer_defaults = EXACT
    search_space = (
        SearchRange("c", 0.0, 0.99, 0.4, reason="the method converges for c in [0, 1)"),
    )

    def __init__(self, c: float = 0.4) -> None:
        self.c = check_positive("c", c, zero=True)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        device = gramian.device
        gramian, _ = balanced_gramian(gramian.cpu())
        uniform = torch.full_like(gramian[0], 1.0 / len(gramian))
        radius = self.c * math.sqrt(max(float(uniform @ gramian @ uniform), 0.0))
        if radius > 0.0 and cancellation(gramian, uniform) > CANCELLED:
            uniform = uniform + toward_worst(gramian, gramian @ uniform, radius)
        return uniform.to(device)


def toward_worst(gramian: Tensor, products: Tensor, radius: float) -> Tensor:
    """Return the weights of d - g_0, which are not negative.

    Args:
        gramian: float64, shape (k, k).
        products: Of all gradients with the mean, shape (k,).
        radius: Largest distance from the mean.
    """
    worst = 0.0
    moved, distance = _nearest(gramian, products, worst)
    if distance <= radius:
        w = shortest_combination(gramian)
        if cancellation(gramian, w) <= CANCELLED:
            return moved
        worst = _dual(gramian, products, radius, w)
        moved, distance = _nearest(gramian, products, worst)
    for _ in range(_MAX_ITERATIONS):
        if distance <= radius * (1.0 + 1e-12):
            return moved * min(radius / distance, 1.0) if distance > 0.0 else moved
        bound = _dual(gramian, products, radius, moved / moved.sum())
        if not bound < worst:
            break
        worst = bound
        moved, distance = _nearest(gramian, products, worst)
    # Where gradients nearly cancel, the Gramian does not tell the distance more closely.
    left = max(cancellation(gramian, moved), CANCELLED)
    if distance <= radius * (1.0 + 1e-9 + 100.0 * torch.finfo(torch.float64).eps / left):
        return moved * (radius / distance)
    raise RuntimeError(
        f"the optimum of CAGrad was not found: the distance from the mean gradient is "
        f"{distance / radius} of what it should be; the Gramian over its mean diagonal is "
        f"{gramian.tolist()}"
    )


def _nearest(gramian: Tensor, products: Tensor, worst: float) -> tuple[Tensor, float]:
    """Return how to move the mean until all products are at least ``worst``, and how far."""
    moved = nonnegative_qp(gramian, worst - products)
    return moved, math.sqrt(max(float(moved @ gramian @ moved), 0.0))


def _dual(gramian: Tensor, products: Tensor, radius: float, w: Tensor) -> float:
    """Return the dual's value at w on the simplex: a bound on the worst product in the ball."""
    return float(w @ products) + radius * math.sqrt(max(float(w @ gramian @ w), 0.0))
