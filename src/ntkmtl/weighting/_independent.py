"""Products of gradients of independent samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK

__all__ = ["independent_products"]


def independent_products(kernel: ExtendedNTK, method: str) -> Tensor:
    r"""Estimate the Gramian of the tasks' expected gradients without bias.

    A gradient's product with itself overestimates the squared norm of its mean by its variance;
    the product of the gradients of two independent samples does not. Those products are the blocks
    :math:`K_{iu,jv}` of two different mini-batches, :math:`u \ne v`. All pairs are averaged, each
    by the product of the shares of labeled samples that the two mini-batches hold. Two tasks
    without such a pair get 0.

    Args:
        kernel: With all blocks.
        method: Its name, for errors.

    Returns:
        float64, shape (k, k), symmetric, not always positive semi-definite.

    Raises:
        ValueError: The kernel has one mini-batch only, diagonal blocks only, or no products
            between mini-batches.

    Example:
        >>> import torch
        >>> J = torch.tensor([3.0, 1.0])  # one task: its gradients on two mini-batches
        >>> independent_products(ExtendedNTK(torch.outer(J, J).reshape(1, 2, 1, 2)), "modo")
        tensor([[3.]], dtype=torch.float64)
    """
    n = kernel.minibatches
    if n < 2:
        raise ValueError(
            f"{method} multiplies gradients of different mini-batches, found one mini-batch: set "
            "minibatches to 2 or more"
        )
    if kernel._diagonal:
        raise ValueError(
            f"{method} multiplies gradients of different mini-batches, which pooling='blockwise' "
            "takes as zero: set pooling='pooled' or 'kernel', or source='exact'"
        )
    values = kernel.values.detach().to(torch.float64)
    shares = kernel.shares.to(values)
    other = 1.0 - torch.eye(n, dtype=torch.float64, device=values.device)
    total = torch.einsum("iu,iujv,jv,uv->ij", shares, values, shares, other)
    weight = torch.einsum("iu,jv,uv->ij", shares, shares, other)
    return torch.where(weight > 0, total / weight, 0.0)
