"""Unconflicting projection of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkmtl.weighting._base import check_positive
from ntkmtl.weighting._dual_cone import project
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._preference import PreferenceWeighting

__all__ = ["UPGrad"]


@method(
    "upgrad",
    family="gradients",
    summary="The mean of gradients that are projected so as to conflict with none",
    paper="Quinton, Rey: Jacobian Descent for Multi-Objective Optimization, 2024",
)
class UPGrad(PreferenceWeighting):
    r"""The mean of the gradients, each projected so that it conflicts with none.

    From "Jacobian Descent for Multi-Objective Optimization": every gradient is
    projected onto the dual cone
    :math:`\{d : \langle g_i, d \rangle \ge 0 \text{ for all } i\}`, which is a quadratic program
    in the Gramian (Proposition 1), and the projections are averaged.

    Args:
        regularization: Added to the diagonal of the Gramian, relative to its trace, before the
            program is solved; TorchJD's value.
        preference: How much each task counts in that mean, one number per task; see
            :class:`ntkmtl.weighting._preference.PreferenceWeighting`.

    Raises:
        ValueError: ``regularization`` is negative, or ``preference`` not positive.
        RuntimeError: On use, if the solver does not reach the projections.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> UPGrad()(ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1)))  # no conflict: the mean
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def __init__(
        self, regularization: float = 1e-4, preference: Sequence[float] | None = None
    ) -> None:
        super().__init__(preference)
        self.regularization = check_positive("regularization", regularization, zero=True)

    def of_preference(self, gramian: Tensor, shares: Tensor) -> Tensor:
        one_each = torch.eye(len(gramian), dtype=gramian.dtype)
        projected = project(one_each, gramian.cpu(), self.regularization)
        return shares @ projected.to(gramian.device)
