"""The mean of the gradients without the largest and smallest, entry by entry."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_jacobian
from ntkmtl.weighting._method import EXACT, method

__all__ = ["TrimmedMean"]


@method(
    "trimmed-mean",
    family="gradients",
    summary="The mean of what is neither largest nor smallest, entry by entry",
    paper="Yin et al.: Byzantine-Robust Distributed Learning, ICML 2018",
)
class TrimmedMean(Weighting):
    r"""In each entry the mean of the gradients, without the ``trim`` largest and smallest.

    Definition 2 of "Byzantine-Robust Distributed Learning": of the k numbers in an entry,
    the :math:`\lfloor \beta k \rfloor` largest and as many smallest are left out, here ``trim`` of
    each. TorchJD's version refuses fewer than ``2 trim + 1`` gradients, which one batch without a
    label would be; here one number or two are always left, so that two tasks have their mean.

    It does not weight whole gradients: the weights it reports are the share of each task's
    gradient (by absolute value) that was kept.

    Args:
        trim: How many are left out on each side.

    Raises:
        ValueError: ``trim`` is negative.

    Example:
        >>> import torch
        >>> J = torch.tensor([[1.0, 9.0], [2.0, 1.0], [6.0, 2.0]])
        >>> TrimmedMean().combine(J)
        (tensor([2., 2.]), tensor([0.0000, 0.6667, 0.2500], dtype=torch.float64))
    """

    requires: ClassVar[Requires] = "jacobian"
    balancer_defaults = EXACT

    def __init__(self, trim: int = 1) -> None:
        if trim < 0:
            raise ValueError(f"trim must be at least 0. Found trim={trim!r}.")
        self.trim = trim

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        raise ValueError(
            "trimmed-mean needs the gradients entry by entry, which no kernel holds; call combine"
        )

    @with_cpu_default
    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the combined gradient and the share kept of each task. See the base class."""
        check_jacobian(jacobian, losses, tasks, "trimmed-mean")
        count = len(jacobian)
        trim = min(self.trim, (count - 1) // 2)
        order = jacobian.argsort(dim=0, stable=True)
        kept = torch.zeros_like(jacobian, dtype=torch.bool)
        kept.scatter_(0, order[trim : count - trim], True)
        combined = torch.where(kept, jacobian / (count - 2 * trim), 0.0).sum(dim=0)
        size = jacobian.abs()
        total = size.sum(dim=1, dtype=torch.float64)
        share = (size * kept).sum(dim=1, dtype=torch.float64) / total
        return combined, torch.where(total > 0, share, 1.0)
