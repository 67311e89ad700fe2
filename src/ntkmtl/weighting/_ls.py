"""Linear scalarization, and the single task."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._method import method

__all__ = ["LinearScalarization", "SingleTask"]


@method(
    "ls",
    family="baseline",
    summary="Linear scalarization: the plain sum of the losses",
)
class LinearScalarization(LossWeighting):
    """Every task has weight 1: the total is the plain sum of the losses (Eq. 6).

    Example:
        >>> import torch
        >>> LinearScalarization()(losses=torch.tensor([3.0, 5.0]))
        tensor([1., 1.], dtype=torch.float64)
    """

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        return torch.ones_like(losses)


@method(
    "stl",
    family="baseline",
    summary="Single-task learning: one network per task, the baseline of Delta-m",
)
class SingleTask(LinearScalarization):
    """One task alone, with weight 1.

    Raises:
        ValueError: On use, if there is more than one task.
    """

    def prepare(self, tasks: int, device: torch.device) -> None:
        if tasks != 1:
            raise ValueError(
                f"stl trains one task alone, found {tasks} losses; use ls for their plain sum"
            )

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        return super().of_losses(losses, tasks)
