"""Krum: the gradients that most others are near to."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian
from ntkmtl.weighting._method import EXACT, method

__all__ = ["Krum"]

# Scores closer than this share of the largest are equal: rounding tells them apart, nothing else.
_EQUAL = 1e-9


@method(
    "krum",
    family="gradients",
    summary="The gradient that is nearest to its neighbors; the others are left out",
    paper="Blanchard et al.: Machine Learning with Adversaries, NeurIPS 2017",
)
class Krum(GramianWeighting):
    r"""The mean of the gradients that are nearest to their neighbors.

    Section 4 of "Machine Learning with Adversaries": the score of a gradient is the sum of its
    squared distances to the :math:`k - f - 2` nearest others, and the ``selected`` gradients of
    the lowest scores are averaged (Multi-Krum). It was made for workers of which f may lie, and
    most agree. Tasks need not agree: one that is never selected is trained by its head alone.

    TorchJD's version sums distances, not their squares. Here gradients of equal scores share their
    weight, so that the order of the tasks does not matter, and with less than f + 3 tasks the
    nearest other one is looked at, where the paper has no rule.

    Args:
        byzantine: f, the number of gradients that may be anything.
        selected: How many are averaged; all that are there if they are fewer.

    Raises:
        ValueError: ``byzantine`` is negative, or ``selected`` less than 1.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> J = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5], [-5.0, 0.0]])
        >>> # Two nearest: .04 + .25, .04 + .09, .09 + .25, ...
        >>> Krum()(ExtendedNTK((J @ J.T).reshape(4, 1, 4, 1)))
        tensor([0., 1., 0., 0.], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def __init__(self, byzantine: int = 0, selected: int = 1) -> None:
        for name, value, least in (("byzantine", byzantine, 0), ("selected", selected, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}. Found {name}={value!r}.")
        self.byzantine, self.selected = byzantine, selected

    def of_gramian(self, gramian: Tensor) -> Tensor:
        gramian, _ = balanced_gramian(gramian)
        count = len(gramian)
        if count == 1:
            return torch.ones_like(gramian[0])
        squares = gramian.diagonal()
        distances = (squares[:, None] + squares[None, :] - 2.0 * gramian).clamp_min(0.0)
        distances.fill_diagonal_(torch.inf)
        near = max(count - self.byzantine - 2, 1)
        scores = distances.topk(near, largest=False).values.sum(dim=1)
        wanted = min(self.selected, count)
        last = scores.sort().values[wanted - 1]
        margin = _EQUAL * scores.max()
        before, tied = scores < last - margin, (scores - last).abs() <= margin
        weights = before.to(gramian)
        weights[tied] = (wanted - before.sum()) / tied.sum()
        return weights / wanted
