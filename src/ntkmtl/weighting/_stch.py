"""Smooth Tchebycheff scalarization."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._losses import LEAST_LOSS, nonzero, reciprocals
from ntkmtl.weighting._method import SearchRange, method

__all__ = ["SmoothTchebycheff"]


@method(
    "stch",
    family="losses",
    summary="Smooth Tchebycheff scalarization: a smooth maximum of normalized log losses",
    paper="Lin et al.: Smooth Tchebycheff Scalarization, ICML 2024",
)
class SmoothTchebycheff(LossWeighting):
    r"""A smooth maximum of log losses relative to a reference.

    The multi-task protocol of the paper: the first ``warmup`` epochs, and the one after, train the
    sum of log losses; over that last one each task's mean loss becomes its reference
    :math:`n_i`. From then on the total is
    :math:`k \mu \log \sum_i \exp(\log(\ell_i / n_i) / \mu)`, whose weights are
    :math:`k\,\mathrm{softmax}_i(\log(\ell_i / n_i) / \mu) / \ell_i`. Call ``end_epoch`` after each
    epoch. A task without labels in the reference epoch, or whose losses were all zero, takes its
    first later loss above zero as reference. A loss of zero (below 1.2e-38, the smallest normal
    float32 number) has no gradient to weigh and gets weight 0.

    Args:
        mu: Smoothing; smaller is closer to the maximum.
        warmup: Epochs before the reference epoch.

    Raises:
        ValueError: ``mu`` is not positive, ``warmup`` is negative, or, on use, a loss is negative.

    Example:
        >>> import torch
        >>> w = SmoothTchebycheff(warmup=0)
        >>> w(losses=torch.tensor([2.0, 4.0]))  # log losses: 1 / loss
        tensor([0.5000, 0.2500], dtype=torch.float64)
        >>> w.end_epoch()
        >>> w(losses=torch.tensor([1.0, 4.0]))  # mu = 1: k (1 / n_i) / sum_j (l_j / n_j)
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    search_space = (
        SearchRange("mu", 0.1, 10.0, 1.0, log=True, reason="a factor of 10 around the default"),
    )
    takes_logarithms: ClassVar[bool] = True
    needs_positive_losses: ClassVar[bool] = True

    def __init__(self, mu: float = 1.0, warmup: int = 4) -> None:
        self.mu = check_positive("mu", mu)
        if warmup < 0:
            raise ValueError(f"warmup must not be negative. Found warmup={warmup}.")
        self.warmup = int(warmup)
        self._epoch = 0
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._sum is None:
            self._sum = torch.zeros(tasks, dtype=torch.float64, device=device)
            self._count = torch.zeros_like(self._sum)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        live = nonzero(losses, "stch", "takes logarithms of losses")
        self.prepare(len(losses), losses.device)
        assert self._sum is not None
        assert self._count is not None
        if self._epoch == self.warmup:
            self._sum[tasks] += losses
            self._count[tasks] += 1
        inverse = reciprocals(losses)
        if self._epoch <= self.warmup or not bool(live.any()):
            return inverse
        fresh = live & ~(self._sum[tasks] >= LEAST_LOSS * self._count[tasks].clamp_min(1.0))
        self._sum[tasks[fresh]] = losses[fresh]
        self._count[tasks[fresh]] = 1
        reference = self._sum[tasks] / self._count[tasks]
        relative = torch.where(live, losses.log() - reference.log(), -torch.inf)
        return len(losses) * torch.softmax(relative / self.mu, dim=0) * inverse

    def end_epoch(self) -> None:
        self._epoch += 1

    def _get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "sum": self._sum, "count": self._count}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._epoch = int(state["epoch"])
        self._sum, self._count = state["sum"], state["count"]
