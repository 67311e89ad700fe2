"""GO4Align: group weights guided by risk."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import method

__all__ = ["GO4Align", "group_means"]


def group_means(values: Tensor, groups: int) -> Tensor:
    """Cluster numbers by k-means and replace each by the mean of its cluster.

    On a line, the clusters of least total squared distance are intervals, and dynamic programming
    over the sorted numbers finds them: no starting point, no chance, no local minimum.

    Args:
        values: float64, shape (k,).
        groups: Number of clusters; as many as values at most are used.

    Returns:
        float64, shape (k,).

    Example:
        >>> import torch
        >>> group_means(torch.tensor([1.0, 8.0, 2.0, 9.0], dtype=torch.float64), 2)
        tensor([1.5000, 8.5000, 1.5000, 8.5000], dtype=torch.float64)
    """
    k = len(values)
    if groups >= k:
        return values.clone()
    ordered, order = values.sort(stable=True)
    largest = float(ordered.abs().max())
    if largest == 0.0:
        return values.clone()
    x = ordered / largest
    zero = x.new_zeros(1)
    sums = torch.cat([zero, x.cumsum(0)])
    squares = torch.cat([zero, x.square().cumsum(0)])
    # cost[i, j]: squared distances of numbers i to j from their mean.
    end = torch.arange(1, k + 1, device=x.device)
    size = end[None, :] - (end[:, None] - 1)
    total = sums[None, 1:] - sums[:-1, None]
    cost = squares[None, 1:] - squares[:-1, None] - total.square() / size.clamp_min(1)
    cost = cost.clamp_min(0.0).masked_fill(size < 1, torch.inf)
    best = cost[0]
    choices = []
    for _ in range(groups - 1):
        # The last cluster starts at i >= 1; the numbers before it are clustered already.
        best, start = (best[:-1, None] + cost[1:]).min(dim=0)
        choices.append(start + 1)
    means = torch.empty_like(values)
    stop = k
    for choice in reversed(choices):
        first = int(choice[stop - 1])
        means[order[first:stop]] = ordered[first:stop].mean()
        stop = first
    means[order[:stop]] = ordered[:stop].mean()
    return means


@method(
    "go4align",
    family="losses",
    summary="Group weights guided by risk: tasks alike in their risk share one",
    paper="Shen et al.: GO4Align, NeurIPS 2024",
)
class GO4Align(LossWeighting):
    r"""Weights per group of tasks that are alike in their risk.

    Adaptive group risk minimization, in the form of the published code of "GO4Align: Group
    Optimization for Multi-Task Alignment": indicators follow the losses,
    :math:`p_i \leftarrow p_i e^{-\beta \ell_i} / \sum_j p_j e^{-\beta \ell_j}`, starting at
    :math:`1/k`; with the scale :math:`\sum_j \ell_j / \ell_i` they make :math:`v_i = p_i \sum_j
    \ell_j / \ell_i`; the :math:`v_i` are clustered by k-means, and every task takes the mean of its
    cluster as its weight. The published code clusters with scikit-learn from random centers; here
    the best clusters are found exactly, see :func:`group_means`.

    A loss of zero (below 1.2e-38, the smallest normal float32 number) has no gradient to weigh; it
    gets weight 0 and is in no group. A task
    without labels in a batch is left out of that step; its indicator stays.

    Args:
        groups: Number of groups; 5 as in the published code of the NTKMTL paper, which compares
            with this method. With as many tasks as groups, or fewer, each task is its own group.
        step_size: :math:`\beta`; 1e-4 as published.

    Raises:
        ValueError: A setting is not positive, or, on use, a loss is negative.

    Example:
        >>> import torch
        >>> w = GO4Align(groups=2, step_size=1e-12)  # v = (1/3) (10/1, 10/1, 10/8)
        >>> w(losses=torch.tensor([1.0, 1.0, 8.0]))
        tensor([3.3333, 3.3333, 0.4167], dtype=torch.float64)
    """

    needs_positive_losses: ClassVar[bool] = True

    def __init__(self, groups: int = 5, step_size: float = 1e-4) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1. Found groups={groups}.")
        self.groups = int(groups)
        self.step_size = check_positive("step_size", step_size)
        self._logits: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._logits is None:
            self._logits = torch.zeros(tasks, dtype=torch.float64, device=device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        live = nonzero(losses, "go4align", "divides by losses")
        self.prepare(len(losses), losses.device)
        assert self._logits is not None
        self._logits[tasks] -= self.step_size * losses
        indicators = torch.softmax(self._logits[tasks], dim=0)
        weights = torch.zeros_like(losses)
        if bool(live.any()):
            values = indicators[live] * (losses.sum() / losses[live])
            weights[live] = group_means(values, self.groups)
        return weights

    def _get_state(self) -> dict[str, Any]:
        return {"logits": self._logits}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._logits = state["logits"]
