"""Weights that the user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting

__all__ = ["FixedWeights"]


class FixedWeights(LossWeighting):
    """The same weights in every step.

    Args:
        weights: One per task, in the order of the tasks; of a mapping the values count, and their
            order. All 1 if None.

    Raises:
        ValueError: A weight is negative or not finite, or, once the number of tasks is known, there
            are more or fewer weights.

    Example:
        >>> import torch
        >>> FixedWeights([1.0, 0.5])(losses=torch.tensor([3.0, 5.0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, weights: Sequence[float] | Mapping[str, float] | None = None) -> None:
        values = weights.values() if isinstance(weights, Mapping) else weights
        self.weights = None if values is None else [float(w) for w in values]
        for weight in self.weights or ():
            if weight < 0 or not math.isfinite(weight):
                raise ValueError(
                    f"weights must be finite and not negative. Found weights={self.weights}."
                )
        self._tasks: int | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._tasks is not None:
            return
        if self.weights is not None and len(self.weights) != tasks:
            raise ValueError(
                f"fixed has {len(self.weights)} weights for {tasks} tasks; give one per task"
            )
        self._tasks = tasks

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        if self.weights is None:
            return torch.ones_like(losses)
        return losses.new_tensor(self.weights)[tasks]
