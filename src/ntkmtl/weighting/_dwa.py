"""Dynamic weight average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._method import SearchRange, method

__all__ = ["DynamicWeightAverage"]


@method(
    "dwa",
    family="losses",
    summary="Dynamic weight average: by the ratio of the last two epochs' losses",
    paper="Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention, CVPR 2019",
)
class DynamicWeightAverage(LossWeighting):
    r"""Weights from how quickly each loss fell over the last two epochs.

    Eq. 7 of "End-to-End Multi-Task Learning with Attention": with the mean losses L of the last two
    epochs, :math:`r_i = L_i(t-1) / L_i(t-2)` and
    :math:`w_i = k \exp(r_i / T) / \sum_j \exp(r_j / T)`. All weights are 1 in the first two
    epochs. Call ``end_epoch`` after each epoch.

    A task that had no label in an epoch keeps the mean of the last epoch in which it had one.

    Args:
        temperature: T; the paper uses 2.

    Raises:
        ValueError: The temperature is not positive.

    Example:
        >>> import torch
        >>> w = DynamicWeightAverage()
        >>> for losses in ([4.0, 1.0], [2.0, 1.0]):
        ...     _ = w(losses=torch.tensor(losses))
        ...     w.end_epoch()
        >>> w(losses=torch.tensor([1.0, 1.0]))  # 2 exp(.25) / (exp(.25) + exp(.5)), ...
        tensor([0.8756, 1.1244], dtype=torch.float64)
    """

    search_space = (
        SearchRange(
            "temperature", 0.5, 8.0, 2.0, log=True, reason="a factor of 4 around the default"
        ),
    )

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = check_positive("temperature", temperature)
        self._sum: Tensor | None = None
        self._count: Tensor | None = None
        self._last: Tensor | None = None
        self._before: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._sum is None:
            self._sum = torch.zeros(tasks, dtype=torch.float64, device=device)
            self._count = torch.zeros_like(self._sum)
            self._last = torch.full_like(self._sum, float("nan"))
            self._before = torch.full_like(self._sum, float("nan"))

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        assert self._sum is not None
        assert self._count is not None
        assert self._last is not None
        assert self._before is not None
        self._sum[tasks] += losses
        self._count[tasks] += 1
        rates = self._last[tasks] / self._before[tasks]
        # No history, or a loss that was zero: an unchanged loss.
        rates = torch.where(rates.isfinite(), rates, 1.0)
        return len(losses) * torch.softmax(rates / self.temperature, dim=0)

    def end_epoch(self) -> None:
        if self._sum is None or self._count is None:
            return
        assert self._last is not None
        mean = torch.where(self._count > 0, self._sum / self._count, self._last)
        self._before, self._last = self._last, mean
        self._sum, self._count = torch.zeros_like(self._sum), torch.zeros_like(self._count)

    def _get_state(self) -> dict[str, Any]:
        return {
            "sum": self._sum,
            "count": self._count,
            "last": self._last,
            "before": self._before,
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self._last, self._before = state["last"], state["before"]
