"""Adam on one number per task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["TaskAdam"]


class TaskAdam:
    """One number per task, learned by Adam; each has its own step count.

    Numbers of tasks that a step leaves out do not move, and neither do their moments.

    Args:
        learning_rate: Of Adam, with its usual decays 0.9 and 0.999.
        start: What the numbers start at.
    """

    def __init__(self, learning_rate: float, start: float) -> None:
        self.learning_rate = learning_rate
        self.start = start
        self.values: Tensor | None = None
        self._first: Tensor | None = None
        self._second: Tensor | None = None
        self._updates: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> Tensor:
        """Return the numbers, shape (k,); made if there are none."""
        if self.values is None:
            self.values = torch.full((tasks,), self.start, dtype=torch.float64, device=device)
            self._first = torch.zeros_like(self.values)
            self._second = torch.zeros_like(self.values)
            self._updates = torch.zeros_like(self.values)
        return self.values

    def step(self, gradient: Tensor, tasks: Tensor) -> None:
        """Take one step against a gradient of the numbers at ``tasks``."""
        assert self.values is not None
        assert self._first is not None
        assert self._second is not None
        assert self._updates is not None
        self._updates[tasks] += 1
        self._first[tasks] = 0.9 * self._first[tasks] + 0.1 * gradient
        self._second[tasks] = 0.999 * self._second[tasks] + 0.001 * gradient.square()
        first = self._first[tasks] / (1 - 0.9 ** self._updates[tasks])
        second = self._second[tasks] / (1 - 0.999 ** self._updates[tasks])
        self.values[tasks] -= self.learning_rate * first / (second.sqrt() + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, moments and step counts."""
        return {
            "values": self.values,
            "first": self._first,
            "second": self._second,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.values, self._updates = state["values"], state["updates"]
        self._first, self._second = state["first"], state["second"]
