"""Projection onto the directions that hurt no task."""

from __future__ import annotations

import torch
from torch import Tensor
from torchjd.aggregation._pcd import _solve_qp

__all__ = ["project"]


def project(weights: Tensor, gramian: Tensor, regularisation: float) -> Tensor:
    r"""Return the weights of the nearest gradient that conflicts with none.

    The nearest point to :math:`J^T u` in the dual cone
    :math:`\{d : \langle g_i, d \rangle \ge 0 \text{ for all } i\}` is :math:`J^T (u + \mu)` with
    multipliers :math:`\mu \ge 0`. It is the program of TorchJD's PCD with the combined gradient as
    the primary one and no headway asked for, whose active-set solver is called here: TorchJD's own
    projectors need quadprog, which is under the GPL.

    Args:
        weights: u, float64 of shape (k,).
        gramian: float64, shape (k, k).
        regularisation: Added to the diagonal of the Gramian over its trace.

    Returns:
        u + mu, float64 of shape (k,).

    Example:
        >>> import torch
        >>> G = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> project(torch.tensor([1.0, 0.0], dtype=torch.float64), G, 0.0)  # g_1 + g_2 / 2
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    trace = float(gramian.diagonal().sum())
    if trace <= 0.0:
        return weights
    scaled = gramian / trace + regularisation * torch.eye(len(gramian), dtype=gramian.dtype)
    products = scaled @ weights
    whole = torch.cat([(weights @ products)[None], products])
    joint = torch.cat([whole[None], torch.cat([products[:, None], scaled], dim=1)])
    solution: Tensor = _solve_qp(joint, torch.zeros(len(gramian), dtype=gramian.dtype))
    return weights + solution[1:]
