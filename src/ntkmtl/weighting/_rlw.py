"""Random loss weighting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting
from ntkmtl.weighting._method import method
from ntkmtl.weighting._random import RandomState

__all__ = ["RandomLossWeighting"]


@method(
    "rlw",
    family="losses",
    summary="Random loss weighting: a softmax of normal random numbers",
    paper="Lin et al.: Reasonable Effectiveness of Random Weighting, TMLR 2022",
)
class RandomLossWeighting(LossWeighting):
    """Weights drawn at random in each step, the softmax of standard normal numbers; they sum to 1.

    Algorithm 2 of "Reasonable Effectiveness of Random Weighting".

    Args:
        seed: Seed of its own random stream; torch's initial seed if None.

    Example:
        >>> import torch
        >>> w = RandomLossWeighting(seed=0)(losses=torch.tensor([1.0, 2.0, 3.0]))
        >>> round(float(w.sum()), 12)
        1.0
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = RandomState(seed)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        drawn = torch.randn(len(losses), dtype=torch.float64, generator=self._random.generator)
        return torch.softmax(drawn, dim=0).to(losses.device)

    def _get_state(self) -> dict[str, Any]:
        return {"random": self._random.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._random.set(state["random"])
