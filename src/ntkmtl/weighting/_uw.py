"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ntkmtl._device import with_cpu_default
from ntkmtl.weighting._base import LossWeighting

__all__ = ["UncertaintyWeighting"]


class UncertaintyWeighting(LossWeighting):
    r"""Weights from a learned log-variance per task.

    The total is :math:`\sum_i \frac12 (e^{-s_i} \ell_i + s_i)` with
    :math:`s_i = \log \sigma_i^2`, in the form that Kendall et al. recommend for stability; weights
    are :math:`\frac12 e^{-s_i}`. The s_i are :meth:`parameters`: give them to the optimiser beside
    the model's. They start at 0.

    Args:
        tasks: Number of tasks; learned from the first step if None. Until then the parameter is an
            ``UninitializedParameter``, which optimisers accept.

    Raises:
        ValueError: The number of tasks is not positive.

    Example:
        >>> import torch
        >>> UncertaintyWeighting(tasks=2)(losses=torch.tensor([1.0, 2.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    @with_cpu_default
    def __init__(self, tasks: int | None = None) -> None:
        if tasks is not None and tasks < 1:
            raise ValueError(f"tasks must be positive. Found tasks={tasks}.")
        self._log_variance: nn.Parameter | nn.parameter.UninitializedParameter
        self._log_variance = nn.parameter.UninitializedParameter()
        if tasks is not None:
            self.prepare(tasks, torch.device("cpu"))

    def prepare(self, tasks: int, device: torch.device) -> None:
        if isinstance(self._log_variance, nn.parameter.UninitializedParameter):
            self._log_variance.materialize((tasks,), device=device, dtype=torch.float32)
            nn.init.zeros_(self._log_variance)
        elif self._log_variance.device != device:
            # In place, since an optimiser may hold the parameter already.
            self._log_variance.data = self._log_variance.data.to(device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        if len(losses) > len(self._log_variance):
            raise ValueError(
                f"uw was made for {len(self._log_variance)} tasks, found {len(losses)} losses"
            )
        return 0.5 * torch.exp(-self._log_variance.detach().to(torch.float64)[tasks])

    def parameters(self) -> Iterator[nn.Parameter]:
        yield cast("nn.Parameter", self._log_variance)

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        s = self._log_variance
        slope = 0.5 * (1.0 - torch.exp(-s.detach().to(torch.float64)[tasks]) * losses) * scale
        gradient = torch.zeros_like(s)
        gradient[tasks] = slope.to(gradient)
        s.grad = gradient if s.grad is None else s.grad.add_(gradient)

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self._log_variance, nn.parameter.UninitializedParameter):
            return {"log_variance": None}
        return {"log_variance": self._log_variance.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        saved = state["log_variance"]
        if saved is None:
            # From before the first step. An optimiser may hold the parameter: in place.
            if not isinstance(self._log_variance, nn.parameter.UninitializedParameter):
                nn.init.zeros_(self._log_variance)
            return
        self.prepare(len(saved), saved.device)
        if self._log_variance.shape != saved.shape:
            raise ValueError(
                f"the state has {len(saved)} tasks, this method {len(self._log_variance)}"
            )
        with torch.no_grad():
            self._log_variance.copy_(saved)
