"""Weights on the simplex."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SimplexWeights", "project_onto_simplex"]


def project_onto_simplex(vector: Tensor) -> Tensor:
    """Return the nearest vector of non-negative entries that sum to 1.

    Args:
        vector: float64, shape (k,), of any scale.

    Example:
        >>> import torch
        >>> project_onto_simplex(torch.tensor([1.0, 0.6, -3.0], dtype=torch.float64))
        tensor([0.7000, 0.3000, 0.0000], dtype=torch.float64)
    """
    # Only differences matter; taken from the largest, 1 is not lost beside numbers of 1e24.
    centered = vector - vector.max()
    descending = centered.sort(descending=True).values
    count = torch.arange(1, len(vector) + 1, dtype=vector.dtype, device=vector.device)
    levels = (descending.cumsum(0) - 1.0) / count
    active = int((descending > levels).sum())
    return (centered - levels[active - 1]).clamp_min(0.0)


class SimplexWeights:
    """Task weights that sum to 1 and are remembered by the tasks' positions.

    The tasks with labels share what they had together before: the ratio of the others' weights, and
    everything about a task without labels, stays.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def prepare(self, tasks: int) -> None:
        """Start at equal weights, unless there are weights already."""
        if self.values is None:
            self.values = torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)

    def get(self, tasks: Tensor) -> Tensor:
        """Return the weights of the tasks at these positions, summing to 1, on the CPU."""
        assert self.values is not None
        own = self.values[tasks.to(self.values.device)].cpu()
        total = own.sum()
        return own / total if total > 0 else torch.full_like(own, 1.0 / len(own))

    def set(self, tasks: Tensor, weights: Tensor) -> None:
        """Replace the weights of the tasks at these positions by others that sum to 1."""
        assert self.values is not None
        at = tasks.to(self.values.device)
        total = float(self.values[at].sum())
        mass = total if total > 0 else len(at) / len(self.values)
        self.values[at] = mass * weights.to(self.values)
