"""Projection onto the dual cone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ntkmtl.weighting._base import check_positive
from ntkmtl.weighting._dual_cone import project
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._preference import PreferenceWeighting

__all__ = ["DualProj"]


@method(
    "dualproj",
    family="gradients",
    summary="The mean gradient, projected so as to conflict with none",
    paper="Lopez-Paz, Ranzato: Gradient Episodic Memory for Continual Learning, NeurIPS 2017",
)
class DualProj(PreferenceWeighting):
    r"""The mean gradient, projected so that it conflicts with no task's.

    The projection of Eq. 11 of "Gradient Episodic Memory for Continual Learning", with the mean of
    the gradients in place of the current task's: the nearest point of the dual cone
    :math:`\{d : \langle g_i, d \rangle \ge 0 \text{ for all } i\}`.

    Args:
        regularization: Added to the diagonal of the Gramian, relative to its trace, before the
            program is solved; TorchJD's value.
        preference: How much each task counts in that mean, one number per task; see
            :class:`ntkmtl.weighting._preference.PreferenceWeighting`.

    Raises:
        ValueError: ``regularization`` is negative, or ``preference`` not positive.
        RuntimeError: On use, if the solver does not reach the projection.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> DualProj()(ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1)))  # no conflict: the mean
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def __init__(
        self, regularization: float = 1e-4, preference: Sequence[float] | None = None
    ) -> None:
        super().__init__(preference)
        self.regularization = check_positive("regularization", regularization, zero=True)

    def of_preference(self, gramian: Tensor, shares: Tensor) -> Tensor:
        return project(shares.cpu(), gramian.cpu(), self.regularization).to(gramian.device)
