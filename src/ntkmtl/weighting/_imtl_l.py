"""Impartial multi-task learning, the loss half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ntkmtl._device import with_cpu_default
from ntkmtl.weighting._base import LossWeighting

__all__ = ["IMTLL", "require_not_negative"]


def require_not_negative(name: str, losses: Tensor) -> None:
    """Check that the learned scales have somewhere to go.

    Raises:
        ValueError: A loss is negative: its scale would grow without end.
    """
    if bool((losses < 0).any()):
        raise ValueError(
            f"{name} brings losses to a common scale, found a negative one in "
            f"{losses.tolist()}; shift the loss, or use another method"
        )


class IMTLL(LossWeighting):
    r"""Weights from a learned scale per task, under which all losses tend to 1.

    The loss balance of "Towards Impartial Multi-Task Learning": the total is
    :math:`\sum_i (e^{s_i} \ell_i - s_i)`, whose minimum over :math:`s_i` has
    :math:`e^{s_i} \ell_i = 1`; weights are :math:`e^{s_i}`. The s_i are :meth:`parameters`: give
    them to the optimiser beside the model's. They start at 0. TorchJD's ``IMTLL`` is the same total
    for tasks that all have labels in every batch.

    Args:
        tasks: Number of tasks; learned from the first step if None. Until then the parameter is an
            ``UninitializedParameter``, which optimisers accept.

    Raises:
        ValueError: The number of tasks is not positive, or, on use, a loss is negative.

    Example:
        >>> import torch
        >>> w = IMTLL(tasks=2)
        >>> w(losses=torch.tensor([1.0, 3.0]))  # exp(0)
        tensor([1., 1.], dtype=torch.float64)
        >>> w.accumulate(torch.tensor([1.0, 3.0]), torch.arange(2), 1.0)
        >>> next(w.parameters()).grad  # exp(0) l - 1
        tensor([0., 2.])
    """

    @with_cpu_default
    def __init__(self, tasks: int | None = None) -> None:
        if tasks is not None and tasks < 1:
            raise ValueError(f"tasks must be positive. Found tasks={tasks}.")
        self._log_scale: nn.Parameter | nn.parameter.UninitializedParameter
        self._log_scale = nn.parameter.UninitializedParameter()
        if tasks is not None:
            self.prepare(tasks, torch.device("cpu"))

    def prepare(self, tasks: int, device: torch.device) -> None:
        if isinstance(self._log_scale, nn.parameter.UninitializedParameter):
            self._log_scale.materialize((tasks,), device=device, dtype=torch.float32)
            nn.init.zeros_(self._log_scale)
        elif self._log_scale.device != device:
            # In place, since an optimiser may hold the parameter already.
            self._log_scale.data = self._log_scale.data.to(device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        require_not_negative("imtl-l", losses)
        self.prepare(len(losses), losses.device)
        if len(losses) > len(self._log_scale):
            raise ValueError(
                f"imtl-l was made for {len(self._log_scale)} tasks, found {len(losses)} losses"
            )
        return torch.exp(self._log_scale.detach().to(torch.float64)[tasks])

    def parameters(self) -> Iterator[nn.Parameter]:
        yield cast("nn.Parameter", self._log_scale)

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        s = self._log_scale
        slope = (torch.exp(s.detach().to(torch.float64)[tasks]) * losses - 1.0) * scale
        gradient = torch.zeros_like(s)
        gradient[tasks] = slope.to(gradient)
        s.grad = gradient if s.grad is None else s.grad.add_(gradient)

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self._log_scale, nn.parameter.UninitializedParameter):
            return {"log_scale": None}
        return {"log_scale": self._log_scale.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        saved = state["log_scale"]
        if saved is None:
            # From before the first step. An optimiser may hold the parameter: in place.
            if not isinstance(self._log_scale, nn.parameter.UninitializedParameter):
                nn.init.zeros_(self._log_scale)
            return
        self.prepare(len(saved), saved.device)
        if self._log_scale.shape != saved.shape:
            raise ValueError(
                f"the state has {len(saved)} tasks, this method {len(self._log_scale)}"
            )
        with torch.no_grad():
            self._log_scale.copy_(saved)
