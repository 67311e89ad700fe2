"""Weights that the user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._method import method

__all__ = ["FixedWeights"]


@method(
    "fixed",
    family="losses",
    summary="Weights given by the user",
    paper="Common practice",
)
class FixedWeights(LossWeighting):
    """The same weights in every step.

    Args:
        weights: One per task, in the order of the tasks; or a mapping from their names, whose order
            counts only where tasks have no names, as without a Balancer. All 1 if None.

    Raises:
        TypeError: A weight is not a number.
        ValueError: A weight is negative or not finite, all are 0, or, once the tasks are known,
            they are not those that there are weights for.

    Example:
        >>> import torch
        >>> FixedWeights([1.0, 0.5])(losses=torch.tensor([3.0, 5.0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, weights: Sequence[float] | Mapping[str, float] | None = None) -> None:
        self._by_name = dict(weights) if isinstance(weights, Mapping) else None
        given = () if weights is None else weights  # an array has no truth value
        values = list(given.values() if isinstance(given, Mapping) else given)
        if any(isinstance(value, str | bool) for value in values):
            raise TypeError(f"weights must be numbers. Found weights={weights!r}.")
        self.weights = None if weights is None else [float(w) for w in values]
        for weight in self.weights or ():
            if weight < 0 or not math.isfinite(weight):
                raise ValueError(
                    f"weights must be finite and not negative. Found weights={self.weights}."
                )
        if self.weights and not any(self.weights):
            raise ValueError(
                f"one weight must be above 0, or nothing is trained. Found weights={self.weights}."
            )
        self._tasks: int | None = None

    def name_tasks(self, names: Sequence[str]) -> None:
        if self._by_name is None:
            return
        if set(names) != set(self._by_name):
            raise ValueError(
                f"fixed has weights for {sorted(self._by_name)}, and the tasks are {list(names)}; "
                "give one weight per task, by these names"
            )
        self.weights = [float(self._by_name[name]) for name in names]

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
