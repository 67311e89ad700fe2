"""ConicGrad: the best improvement of the worst task within a cone around the mean gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive
from ntkmtl.weighting._cagrad import CANCELLED
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._qp import cancellation, nonnegative_qp, shortest_combination

__all__ = ["ConicGrad"]

# A gradient whose squared distance from the axis is less than this share of its squared length
# counts as parallel to it: the difference of the two squares is rounding.
_PARALLEL = 1e-10
_MAX_ITERATIONS = 100


@method(
    "conicgrad",
    family="gradients",
    summary="The best worst-task improvement within a cone around the mean gradient",
    paper=(
        "Hassanpour et al.: Fantastic Multi-Task Gradient Updates and How to Find Them In a Cone, "
        "arXiv 2025"
    ),
)
class ConicGrad(GramianWeighting):
    r"""The best improvement of the worst task among directions at an angle to the mean gradient.

    The problem of "Fantastic Multi-Task Gradient Updates and How to Find Them In a Cone": with the
    mean gradient :math:`g_0`,

    .. math::
        \max_d \; \min_i \; \langle g_i, d \rangle \quad \text{subject to} \quad
        \langle g_0, d \rangle \ge c \|g_0\| \|d\|, \qquad \|d\| \le \|g_0\|

    so d is at most :math:`\arccos c` away from :math:`g_0`. The solution below, the
    bound on the length and the default of c are this library's own, and may differ from those of
    the published code.

    Without the cone the solution is as long as allowed, along the shortest convex combination of
    the gradients (that of ``mgda``). If that is within the cone, it is taken. Otherwise d is on
    the cone's surface. With the unit vector u along :math:`g_0`, :math:`a_i = \langle g_i, u
    \rangle`, :math:`h_i = g_i - a_i u` and :math:`\tau = \sqrt{1 - c^2} / c`, it is along
    :math:`u + v` with

    .. math::
        v = \arg\max_{\|v\| \le \tau} \; \min_i \; a_i + \langle h_i, v \rangle

    which is CAGrad's problem across the axis. For a worst product t, the shortest v with
    :math:`a_i + \langle h_i, v \rangle \ge t` is a small quadratic program,
    :math:`v = \sum_i x_i h_i` with :math:`x \ge 0`. The dual's value at
    :math:`w = x / \sum_i x_i`, :math:`\sum_i w_i a_i + \tau \|\sum_i w_i h_i\|`, bounds the optimum
    from above; it is the next t, until it falls no further.

    Where no direction of the cone improves all tasks, the problem has no solution but
    :math:`d = 0`. Here the step is then along the same :math:`u + v`, as long as :math:`g_0`: of
    directions with the same progress on the mean, one in which the worst task loses least. As tasks
    begin to conflict it follows from the solution without a jump.

    Args:
        c: Cosine of the widest angle to the mean gradient, in (0, 1]; at 1 the step is the mean.

    Raises:
        ValueError: ``c`` is not in (0, 1].
        RuntimeError: On use, if the solver does not find the optimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> J = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # the mean is (0.5, 1)
        >>> K = ExtendedNTK((J @ J.T).reshape(2, 1, 2, 1))
        >>> ConicGrad(c=0.5)(K)  # d = (1, 0.5), at a cosine of 0.8 to the mean
        tensor([1.0000, 0.2500], dtype=torch.float64)
        >>> ConicGrad(c=12 / 13)(K).float() @ J  # 11 / 13, 19 / 26
        tensor([0.8462, 0.7308])
    """

    balancer_defaults = EXACT
    search_space = (
        SearchRange("c", 0.1, 0.99, 0.5, reason="from nearly a half-space to 8 degrees"),
    )

    def __init__(self, c: float = 0.5) -> None:
        if check_positive("c", c) > 1.0:
            raise ValueError(f"c must be in (0, 1]. Found c={c}.")
        self.c = float(c)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        device = gramian.device
        gramian, _ = balanced_gramian(gramian.cpu())
        mean = torch.full_like(gramian[0], 1.0 / len(gramian))
        if cancellation(gramian, mean) <= CANCELLED:
            return mean.to(device)
        length = _length(gramian, mean)
        along = gramian @ mean / length
        shortest = shortest_combination(gramian)
        if cancellation(gramian, shortest) > CANCELLED:
            size = _length(gramian, shortest)
            if float(shortest @ along) >= self.c * size:
                return (shortest * (length / size)).to(device)
        across = gramian - along[:, None] * along[None, :]
        apart = across.diagonal() > _PARALLEL * gramian.diagonal()
        across = torch.where(apart[:, None] & apart[None, :], across, 0.0)
        moved = _sideways(across, along, math.sqrt(1.0 - self.c**2) / self.c)
        weights = mean * (1.0 - moved @ along) + moved * length
        return (weights / math.hypot(1.0, _length(across, moved))).to(device)


def _sideways(across: Tensor, along: Tensor, reach: float) -> Tensor:
    r"""Return x of the best :math:`v = \sum_i x_i h_i`.

    Args:
        across: Gramian of the parts across the axis :math:`h_i`, float64, shape (k, k).
        along: Parts along the axis :math:`a_i`, shape (k,).
        reach: :math:`\tau`, the largest length of v.
    """
    worst = float((along + reach * across.diagonal().sqrt()).min())
    for _ in range(_MAX_ITERATIONS):
        moved = nonnegative_qp(across, worst - along)
        total = float(moved.sum())
        if total == 0.0:
            return moved
        share = moved / total
        left = _length(across, share) if cancellation(across, share) > CANCELLED else 0.0
        bound = float(share @ along) + reach * left
        terms = float(share @ along.abs()) + reach * left
        if bound >= worst - 1e-12 * terms:
            size = _length(across, moved)
            return moved * min(reach / size, 1.0) if size > 0.0 else moved
        worst = bound
    raise RuntimeError(
        "the optimum of conicgrad was not found: the best worst product is at most "
        f"{worst}; the Gramian across the mean gradient is {across.tolist()}"
    )


def _length(gramian: Tensor, weights: Tensor) -> float:
    return math.sqrt(max(float(weights @ gramian @ weights), 0.0))
