"""How much each task counts inside a method's own equations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import GramianWeighting

__all__ = ["PreferenceWeighting"]


class PreferenceWeighting(GramianWeighting):
    """A weighting of gradients that are preferred to each other, as TorchJD's preference vectors.

    ``Balancer(priorities=...)`` multiplies a method's weights after they are found, so that the
    balance is the set point. A preference goes into the method's equations: what it asks for holds
    for the result, as that it conflicts with no task.

    Args:
        preference: One number per task, in the order of the tasks; their proportions count. All
            equal if None. Tasks without labels are left out of it.

    Raises:
        ValueError: A number is not positive and finite, or, on use, they are not one per task.
    """

    def __init__(self, preference: Sequence[float] | None = None) -> None:
        self.preference = None if preference is None else [float(p) for p in preference]
        if any(not 0.0 < p < math.inf for p in self.preference or ()):
            raise ValueError(
                f"preference must be positive and finite. Found preference={self.preference}."
            )
        self._tasks: int | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._tasks is None and self.preference is not None and len(self.preference) != tasks:
            raise ValueError(
                f"preference has {len(self.preference)} numbers for {tasks} tasks; give one each"
            )
        self._tasks = self._tasks or tasks

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        gramian = kernel.gramian()
        self.prepare(len(gramian), gramian.device)
        shares = torch.ones_like(gramian[0])
        if self.preference is not None:
            shares = gramian.new_tensor(self.preference)[tasks.to(gramian.device)]
        return self.of_preference(gramian, shares / shares.sum())

    def of_gramian(self, gramian: Tensor) -> Tensor:
        return self.of_preference(gramian, torch.full_like(gramian[0], 1.0 / len(gramian)))

    @abstractmethod
    def of_preference(self, gramian: Tensor, shares: Tensor) -> Tensor:
        """Return the weights.

        Args:
            gramian: float64, shape (k, k).
            shares: Preferences of the tasks, float64 of shape (k,), which sum to 1.
        """
