"""Gradient surgery."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._random import RandomState

__all__ = ["PCGrad"]


@method(
    "pcgrad",
    family="gradients",
    summary="Gradient surgery: conflicting components are projected away",
    paper="Yu et al.: Gradient Surgery for Multi-Task Learning, NeurIPS 2020",
)
class PCGrad(GramianWeighting):
    """Each gradient loses its components against those it conflicts with, in random order.

    Algorithm 1 of "Gradient Surgery for Multi-Task Learning": for each task i and the others j in
    random order, a gradient :math:`g_i` whose product with the original :math:`g_j` is negative
    loses its component along it; the changed gradients are summed. TorchJD's version is not used
    because it draws from torch's global stream.

    Args:
        seed: Seed of its own random stream; torch's initial seed if None.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> G = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])  # g_1 = (1, 1), g_2 = (-1, 0)
        >>> PCGrad()(ExtendedNTK(G.reshape(2, 1, 2, 1)))
        tensor([1.5000, 2.0000], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def __init__(self, seed: int | None = None) -> None:
        self._random = RandomState(seed)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        found = balanced_gramian(gramian.cpu())[0]
        squares = found.diagonal()
        every = torch.arange(len(found))
        weights = torch.eye(len(found), dtype=torch.float64)  # of each changed gradient
        for others in self._orders(len(found)).T:
            products = (weights * found[others]).sum(dim=1)
            conflicts = (products < 0) & (squares[others] > 0)
            weights[every, others] -= torch.where(conflicts, products / squares[others], 0.0)
        return weights.sum(dim=0).to(gramian.device)

    def _orders(self, tasks: int) -> Tensor:
        """Draw the other tasks of each in random order, int64 of shape (k, k - 1)."""
        drawn = torch.rand(tasks, tasks - 1, dtype=torch.float64, generator=self._random.generator)
        others = drawn.argsort(dim=1)
        return others + (others >= torch.arange(tasks)[:, None])

    def _get_state(self) -> dict[str, Any]:
        return {"random": self._random.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._random.set(state["random"])
