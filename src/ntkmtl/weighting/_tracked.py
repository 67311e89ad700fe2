"""Moving averages of gradients, entry by entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkmtl.weighting._base import check_known

__all__ = ["TrackedGradients", "norms"]


class TrackedGradients:
    """A moving average of each task's gradient, remembered by the tasks' positions.

    Kept in float32 where gradients are in half precision: small steps would be lost there.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.updates: Tensor | None = None

    def prepare(self, tasks: int) -> None:
        """Note the number of tasks. The averages start at 0."""
        if self.updates is None:
            self.updates = torch.zeros(tasks, dtype=torch.float64)

    def count(self, tasks: Tensor, method: str) -> Tensor:
        """Add to, and return, the number of updates of the tasks at these positions.

        Raises:
            ValueError: There are more tasks than before.
        """
        assert self.updates is not None
        check_known(tasks, len(self.updates), method)
        self.updates[tasks.cpu()] += 1.0
        return self.updates[tasks.cpu()]

    def update(
        self,
        rows: Tensor,
        tasks: Tensor,
        rates: Tensor,
        method: str,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Move the averages of some tasks toward new gradients.

        Where all tasks have a gradient they are changed in place, without a copy of k gradients.

        Args:
            rows: The gradients, shape (k, P).
            tasks: Positions of the tasks, shape (k,).
            rates: What share of the way to go, float64 of shape (k,).
            method: Its name, for errors.
            factors: What the gradients are multiplied by first, float64 of shape (k,); 1 if None.

        Returns:
            The averages, shape (k, P); not to be changed.

        Raises:
            ValueError: The gradients have another length than before.
        """
        assert self.updates is not None
        half = rows.dtype in (torch.float16, torch.bfloat16)
        rows = rows.float() if half else rows
        if self.values is None:
            self.values = rows.new_zeros(len(self.updates), rows.shape[1])
        if self.values.shape[1] != rows.shape[1]:
            raise ValueError(
                f"{method} follows gradients over steps, which had {self.values.shape[1]} entries "
                f"and now have {rows.shape[1]}: it needs the same shared parameters in every step, "
                "hence source='exact'"
            )
        self.values = self.values.to(rows)
        every = tasks.tolist() == list(range(len(self.values)))
        at = tasks.to(rows.device)
        moved = self.values if every else self.values[at]
        rates = rates.to(rows.device)
        if factors is None:
            moved.lerp_(rows, rates.to(rows)[:, None])
        else:
            largest = torch.finfo(rows.dtype).max
            steps = (rates * factors.to(rates)).clamp_max(largest)
            moved.mul_((1.0 - rates).to(rows)[:, None])
            moved.addcmul_(rows, steps.to(rows)[:, None])
        if not every:
            self.values[at] = moved
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the numbers of updates."""
        return {"tracked": self.values, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.values, self.updates = state["tracked"], state["updates"]


def norms(rows: Tensor) -> Tensor:
    """Return the norm of each row, float64."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths
