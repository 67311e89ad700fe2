"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._method import method
from ntkmtl.weighting._task_parameter import LARGEST_EXPONENT, TaskParameter

__all__ = ["UncertaintyWeighting"]


@method(
    "uw",
    family="losses",
    summary="Uncertainty weighting: a learned log-variance per task",
    paper="Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty, CVPR 2018",
)
class UncertaintyWeighting(LossWeighting):
    r"""Weights from a learned log-variance per task.

    The total is :math:`\sum_i \frac12 (e^{-s_i} \ell_i + s_i)` with
    :math:`s_i = \log \sigma_i^2`, in the form that Kendall et al. recommend for stability; weights
    are :math:`\frac12 e^{-s_i}`. The s_i are :meth:`parameters`: give them to the optimizer beside
    the model's. They start at 0. A loss that stays at zero has no best s, which would fall without
    end; the s_i count as -64 at least and 64 at most.

    Args:
        tasks: Number of tasks; learned from the first step if None. Until then the parameter is an
            ``UninitializedParameter``, which optimizers accept.

    Raises:
        ValueError: The number of tasks is not positive.

    Example:
        >>> import torch
        >>> UncertaintyWeighting(tasks=2)(losses=torch.tensor([1.0, 2.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, tasks: int | None = None) -> None:
        self._log_variance = TaskParameter(0.0, tasks, LARGEST_EXPONENT)

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._log_variance.prepare(tasks, device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        if len(losses) > len(self._log_variance):
            raise ValueError(
                f"uw was made for {len(self._log_variance)} tasks, found {len(losses)} losses"
            )
        return 0.5 * torch.exp(-self._log_variance.of(tasks))

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self._log_variance.parameter

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        slope = 0.5 * (1.0 - torch.exp(-self._log_variance.of(tasks)) * losses) * scale
        self._log_variance.accumulate(slope, tasks)

    def _get_state(self) -> dict[str, Any]:
        return {"log_variance": self._log_variance.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._log_variance.set(state["log_variance"])
