"""Multiple gradient descent."""

from __future__ import annotations

from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._qp import shortest_combination

__all__ = ["MGDA"]


@method(
    "mgda",
    family="gradients",
    summary="Multiple gradient descent: the shortest convex combination of gradients",
    paper="Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018",
)
class MGDA(GramianWeighting):
    r"""The convex combination of gradients of least norm.

    Eq. 3 of "Multi-Task Learning as Multi-Objective Optimization": :math:`\min_w \|\sum_i w_i
    g_i\|` over the simplex, solved to rounding by
    :func:`ntkmtl.weighting._qp.shortest_combination`, an active-set method. (The published code and
    TorchJD's take Frank-Wolfe steps, up to 250 and 100, which can end far from the minimum.) Where
    a gradient vanishes, it is the shortest combination by itself.

    Raises:
        RuntimeError: On use, if the solver does not reach the minimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 3.0])).reshape(2, 1, 2, 1))
        >>> MGDA()(K)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return shortest_combination(gramian.cpu()).to(gramian.device)
