"""One learned number per task."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ntkmtl._device import with_cpu_default

__all__ = ["LARGEST_EXPONENT", "TaskParameter"]

LARGEST_EXPONENT = 64.0
"""Bound of learned exponents: 6e27, which float32 holds with room for a gradient."""


class TaskParameter:
    """Numbers that the user's optimizer moves, remembered by the tasks' positions.

    An optimizer may hold the parameter from before the number of tasks is known, and across loading
    of a state: it is changed in place. Until its size is known it is an ``UninitializedParameter``.

    Args:
        start: What the numbers start at.
        tasks: Their number, if it is known.
        bound: What they count as at most, and its negative at least; beyond it nothing pulls them
            further. The loss of zero that a task may keep has no best scale.

    Raises:
        ValueError: The number of tasks is not positive.
    """

    @with_cpu_default
    def __init__(self, start: float, tasks: int | None = None, bound: float = math.inf) -> None:
        if tasks is not None and tasks < 1:
            raise ValueError(f"tasks must be positive. Found tasks={tasks}.")
        self.start = start
        self.bound = bound
        self._values: nn.Parameter | nn.parameter.UninitializedParameter
        self._values = nn.parameter.UninitializedParameter()
        if tasks is not None:
            self.prepare(tasks, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self._values)

    @property
    def parameter(self) -> nn.Parameter:
        """What optimizers are given."""
        return cast("nn.Parameter", self._values)

    def prepare(self, tasks: int, device: torch.device) -> None:
        """Make the numbers if there are none, and bring them to a device."""
        if isinstance(self._values, nn.parameter.UninitializedParameter):
            self._values.materialize((tasks,), device=device, dtype=torch.float32)
            nn.init.constant_(self._values, self.start)
        elif self._values.device != device:
            self._values.data = self._values.data.to(device)

    def of(self, tasks: Tensor) -> Tensor:
        """Return the numbers of the tasks at these positions, float64 and detached."""
        values = self._values.detach().to(torch.float64)[tasks]
        return values.clamp(-self.bound, self.bound)

    def accumulate(self, slope: Tensor, tasks: Tensor) -> None:
        """Add to the gradient of the numbers of the tasks at these positions."""
        values = self._values.detach()[tasks]
        # An optimizer steps against the slope.
        outwards = (values.abs() >= self.bound) & (slope.to(values) * values < 0)
        gradient = torch.zeros_like(self._values)
        gradient[tasks] = torch.where(outwards, 0.0, slope.to(gradient))
        grad = self._values.grad
        self._values.grad = gradient if grad is None else grad.add_(gradient)

    def get(self) -> Tensor | None:
        """Return the numbers, None from before there are any."""
        if isinstance(self._values, nn.parameter.UninitializedParameter):
            return None
        return self._values.detach()

    def set(self, saved: Tensor | None) -> None:
        """Take over what :meth:`get` returned; begin again if it is None.

        Raises:
            ValueError: It is of another number of tasks.
        """
        if saved is None:
            if not isinstance(self._values, nn.parameter.UninitializedParameter):
                nn.init.constant_(self._values, self.start)
            return
        self.prepare(len(saved), saved.device)
        if self._values.shape != saved.shape:
            raise ValueError(f"the state has {len(saved)} tasks, this method {len(self._values)}")
        with torch.no_grad():
            self._values.copy_(saved)
