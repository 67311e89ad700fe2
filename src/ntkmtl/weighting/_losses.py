"""Reciprocals and logarithms of losses that may be zero."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LEAST_LOSS", "logarithm", "nonzero", "reciprocals"]

LEAST_LOSS = torch.finfo(torch.float32).tiny
"""Losses below this count as zero: float32, in which most gradients are, does not hold their
reciprocals."""


def nonzero(losses: Tensor, method: str, does: str) -> Tensor:
    """Return which losses are not zero.

    Args:
        losses: float64, shape (k,).
        method: Its name, for the error.
        does: What it does with losses, for the error.

    Returns:
        bool, shape (k,).

    Raises:
        ValueError: A loss is negative.

    Example:
        >>> import torch
        >>> nonzero(torch.tensor([1.0, 0.0]), "si", "takes logarithms of losses")
        tensor([ True, False])
    """
    if bool((losses < 0).any()):
        raise ValueError(
            f"{method} {does}, found a negative one in {losses.tolist()}; shift the loss, or use "
            "another method"
        )
    return losses >= LEAST_LOSS


def reciprocals(losses: Tensor) -> Tensor:
    """Return 1 / loss, the slope of :func:`logarithm`: 0 for a loss of zero.

    A loss that cannot be negative has no gradient where it is zero (a hinge that is met, a
    prediction that is certain), so any finite number gives the same step; 0 says that nothing is
    left to learn.

    Example:
        >>> import torch
        >>> reciprocals(torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    return torch.where(losses >= LEAST_LOSS, 1.0 / losses, 0.0)


def logarithm(loss: Tensor) -> Tensor:
    """Return the logarithm of a loss, to differentiate; of a loss of zero it has no slope.

    Example:
        >>> import torch
        >>> loss = torch.tensor([1.0, 0.0], requires_grad=True)
        >>> logarithm(loss)
        tensor([  0.0000, -87.3365], grad_fn=<LogBackward0>)
        >>> torch.autograd.grad(logarithm(loss).sum(), loss)[0]
        tensor([1., 0.])
    """
    # Half precision does not hold the least loss.
    precise = loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss
    return precise.clamp_min(LEAST_LOSS).log()
