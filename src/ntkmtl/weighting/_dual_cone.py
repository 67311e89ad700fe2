"""Projection onto the directions that hurt no task."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.weighting._qp import nonnegative_qp

__all__ = ["project"]


def project(weights: Tensor, gramian: Tensor, regularization: float) -> Tensor:
    r"""Return the weights of the nearest gradient that conflicts with none.

    The nearest point to :math:`J^T u` in the dual cone
    :math:`\{d : \langle g_i, d \rangle \ge 0 \text{ for all } i\}` is :math:`J^T (u + \mu)` with
    multipliers :math:`\mu \ge 0`; :math:`v = u + \mu` is the minimum of :math:`v^T G v` over
    :math:`v \ge u`.

    Args:
        weights: u, float64 of shape (k,), or (B, k) for B projections.
        gramian: float64, shape (k, k).
        regularization: Added to the diagonal of the Gramian over its trace.

    Returns:
        u + mu, float64 of the shape of ``weights``.

    Raises:
        RuntimeError: The solver did not reach the minimum.

    Example:
        >>> import torch
        >>> G = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> project(torch.tensor([1.0, 0.0], dtype=torch.float64), G, 0.0)  # g_1 + g_2 / 2
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    trace = float(gramian.diagonal().sum())
    if trace <= 0.0:
        return weights
    scaled = gramian / trace + regularization * torch.eye(len(gramian), dtype=gramian.dtype)
    return weights + nonnegative_qp(scaled, -(weights @ scaled))
