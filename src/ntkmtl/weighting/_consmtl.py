"""ConsMTL: heads that turn the gradients they send toward the joint update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import check_positive
from ntkmtl.weighting._fairgrad import FairGrad
from ntkmtl.weighting._method import EXACT, SearchRange, method

__all__ = ["ConsMTL"]


@method(
    "consmtl",
    family="gradients",
    summary="Consistent: fair gradients, and heads that turn theirs toward the joint one",
    paper="Qin, Wang, Yan: Towards Consistent Multi-Task Learning, CVPR 2025",
)
class ConsMTL(FairGrad):
    r"""Fair gradients for the trunk, and heads that make gradients agree.

    The bi-level method of "Towards Consistent Multi-Task Learning: Unlocking the Potential of
    Task-Specific Parameters". The trunk gets the fair allocation of
    :class:`~ntkmtl.weighting._fairgrad.FairGrad`, weights w. A head also shapes the gradient
    :math:`\delta_i = \partial l_i / \partial z` that it sends to the trunk: with
    :math:`\delta = \sum_j w_j \delta_j` held fixed, its parameters :math:`\theta_i` descend along

    .. math:: g_1 + \min\left(1, \frac{c\,\|g_1\|}{\|g_2\|}\right) g_2, \qquad
        g_1 = \frac{\partial l_i}{\partial \theta_i}, \quad
        g_2 = \frac{\partial}{\partial \theta_i} \bigl(-\lambda \langle \delta_i, \delta \rangle
        \bigr),

    as in the published code: the weights do not apply to the heads, and the guiding gradient's norm
    is held to a fraction c of the loss's own. (That code also multiplies the shared gradient by k
    and clips it to norm 1, which is left to the user here.)

    It needs second derivatives of the losses through the heads, about twice the work on the heads,
    and the features to differentiate to. Representations of each task's own must have one shape.

    Args:
        alpha: Fairness; 2 in the published code.
        strength: :math:`\lambda`; 1 by default in the published code, whose scripts choose it
            between 1e-3 and 50.
        bound: The fraction c.

    Raises:
        ValueError: A setting is not positive.

    Example:
        >>> import torch
        >>> guiding = ConsMTL(strength=2.0).head_objective(torch.tensor([1.0, 2.0]), torch.ones(2))
        >>> guiding
        tensor(-6.)
        >>> ConsMTL().head_update([torch.tensor([10.0])], [torch.tensor([-4.0])])
        [tensor([9.])]
    """

    balancer_defaults = EXACT
    search_space: ClassVar[tuple[SearchRange, ...]] = ()
    has_head_objective: ClassVar[bool] = True

    def __init__(self, alpha: float = 2.0, strength: float = 1.0, bound: float = 0.1) -> None:
        super().__init__(alpha)
        self.strength = check_positive("strength", strength)
        self.bound = check_positive("bound", bound)

    def head_objective(self, own: Tensor, joint: Tensor) -> Tensor:
        return -self.strength * (own * joint).sum()

    def head_update(self, plain: Sequence[Tensor], guiding: Sequence[Tensor]) -> list[Tensor]:
        allowed = self.bound * _norm(plain)
        length = _norm(guiding)
        factor = torch.where(length > allowed, allowed / length, torch.ones_like(length))
        return [p + g * factor.to(g) for p, g in zip(plain, guiding, strict=True)]


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    peak = torch.stack([g.abs().amax() for g in gradients]).amax().to(torch.float64)
    if not peak > 0:
        return peak
    # Squares of small float32 gradients would vanish.
    return (
        peak
        * torch.stack([(g.to(torch.float64) / peak).square().sum() for g in gradients]).sum().sqrt()
    )
