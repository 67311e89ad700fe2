"""Impartial multi-task learning, the loss half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import method
from ntkmtl.weighting._task_parameter import LARGEST_EXPONENT, TaskParameter

__all__ = ["IMTLL", "require_not_negative"]


def require_not_negative(name: str, losses: Tensor) -> None:
    """Check that the learned scales have somewhere to go.

    Raises:
        ValueError: A loss is negative: its scale would grow without end.
    """
    nonzero(losses, name, "brings losses to a common scale")


@method(
    "imtl-l",
    family="losses",
    summary="Impartial, loss half: a learned scale per task brings all losses to 1",
    paper="Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
)
class IMTLL(LossWeighting):
    r"""Weights from a learned scale per task, under which all losses tend to 1.

    The loss balance of "Towards Impartial Multi-Task Learning": the total is
    :math:`\sum_i (e^{s_i} \ell_i - s_i)`, whose minimum over :math:`s_i` has
    :math:`e^{s_i} \ell_i = 1`; weights are :math:`e^{s_i}`. The s_i are :meth:`parameters`: give
    them to the optimizer beside the model's. They start at 0. A loss that stays at
    zero has no best s, which would grow without end; the s_i count as -64 at least and 64 at most.
    TorchJD's ``IMTLL`` is the same total for tasks that all have labels in every batch.

    Args:
        tasks: Number of tasks; learned from the first step if None. Until then the parameter is an
            ``UninitializedParameter``, which optimizers accept.

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

    needs_positive_losses: ClassVar[bool] = True

    def __init__(self, tasks: int | None = None) -> None:
        self._log_scale = TaskParameter(0.0, tasks, LARGEST_EXPONENT)

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._log_scale.prepare(tasks, device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        require_not_negative("imtl-l", losses)
        self.prepare(len(losses), losses.device)
        if len(losses) > len(self._log_scale):
            raise ValueError(
                f"imtl-l was made for {len(self._log_scale)} tasks, found {len(losses)} losses"
            )
        return torch.exp(self._log_scale.of(tasks))

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self._log_scale.parameter

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        slope = (torch.exp(self._log_scale.of(tasks)) * losses - 1.0) * scale
        self._log_scale.accumulate(slope, tasks)

    def _get_state(self) -> dict[str, Any]:
        return {"log_scale": self._log_scale.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._log_scale.set(state["log_scale"])
