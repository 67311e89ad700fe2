"""Gradient sign dropout."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_jacobian
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._random import RandomState

__all__ = ["GradDrop"]


@method(
    "graddrop",
    family="gradients",
    summary="Gradient sign dropout: one sign is kept per entry, at random",
    paper="Chen et al.: Just Pick a Sign, NeurIPS 2020",
)
class GradDrop(Weighting):
    r"""In each entry either the positive or the negative gradients are kept, drawn by their purity.

    Lines 10 to 15 of Algorithm 1 of "Just Pick a Sign": with the purity
    :math:`P = \frac12 (1 + \sum_i g_i / \sum_i |g_i|)` of an entry and a uniform random number U,
    its positive gradients are summed if :math:`P > U`, its negative ones if not. TorchJD's version
    is not used because it draws from torch's global stream.

    It does not weight whole gradients: the weights it reports are the share of each task's
    gradient (by absolute value) that was kept.

    Args:
        seed: Seed of its own random stream; torch's initial seed if None.

    Example:
        >>> import torch
        >>> combined, kept = GradDrop().combine(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
        >>> combined, kept  # no entry has two signs: nothing is dropped
        (tensor([4., 3.]), tensor([1., 1.], dtype=torch.float64))
    """

    requires: ClassVar[Requires] = "jacobian"
    balancer_defaults = EXACT

    def __init__(self, seed: int | None = None) -> None:
        self._random = RandomState(seed)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        raise ValueError(
            "graddrop needs the gradients entry by entry, which no kernel holds; call combine"
        )

    @with_cpu_default
    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the combined gradient and the share kept of each task. See the base class."""
        check_jacobian(jacobian, losses, tasks, "graddrop")
        # In half precision one number in a few hundred that are drawn from [0, 1) is 0, which drops
        # gradients that are negative in all tasks, and none that are positive.
        dtype = torch.promote_types(jacobian.dtype, torch.float32)
        size = jacobian.abs()
        whole = size.sum(dim=0, dtype=dtype)
        purity = 0.5 * (1.0 + jacobian.sum(dim=0, dtype=dtype) / whole)
        drawn = torch.rand(
            purity.shape,
            dtype=dtype,
            device=jacobian.device,
            generator=self._random.on(jacobian.device),
        )
        sign = torch.where(purity > drawn, 1, -1).to(jacobian)
        kept = torch.sign(jacobian) == sign
        combined = (jacobian * kept).sum(dim=0)
        total = size.sum(dim=1, dtype=torch.float64)
        share = (size * kept).sum(dim=1, dtype=torch.float64) / total
        return combined, torch.where(total > 0, share, 1.0)

    def _get_state(self) -> dict[str, Any]:
        return {"random": self._random.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._random.set(state["random"])
