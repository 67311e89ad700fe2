"""Gradient surgery."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchjd.aggregation import PCGradWeighting

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian
from ntkmtl.weighting._random import RandomState

__all__ = ["PCGrad"]


class PCGrad(GramianWeighting):
    """Each gradient loses its components against those it conflicts with, in random order.

    Algorithm 1 of "Gradient Surgery for Multi-Task Learning", by TorchJD.

    Args:
        seed: Seed of its own random stream; torch's initial seed if None.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> G = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])  # g_1 = (1, 1), g_2 = (-1, 0)
        >>> PCGrad()(ExtendedNTK(G.reshape(2, 1, 2, 1)))
        tensor([1.5000, 2.0000], dtype=torch.float64)
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = RandomState(seed)
        self._solver = PCGradWeighting()

    def of_gramian(self, gramian: Tensor) -> Tensor:
        with self._random.as_global(gramian.device):
            return self._solver(balanced_gramian(gramian)[0])

    def _get_state(self) -> dict[str, Any]:
        return {"random": self._random.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._random.set(state["random"])
