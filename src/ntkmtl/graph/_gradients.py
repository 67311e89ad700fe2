"""Gradients of k losses at a cut, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["STACK_LIMIT", "TaskGradients"]

STACK_LIMIT = 1 << 22


@dataclass
class TaskGradients:
    """Gradients of k task losses with respect to features and head parameters.

    Attributes:
        features: ``features[f][i]``: gradient of task i with respect to the f-th shared tensor, its
            own shape. Where tasks have their own tensors there is one f, ``features[0][i]``.
        heads: ``heads[i]``: pairs of a head parameter of task i and its gradient. Empty if heads
            were not asked for.
    """

    features: list[list[Tensor]]
    heads: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    stacks: dict[int, Tensor] = field(default_factory=dict)

    def stacked(self, f: int) -> Tensor | list[Tensor]:
        """Return the gradients with respect to the f-th tensor as one, shape (k, ...), if small.

        Kernel and combined gradient both want them so. Above ``STACK_LIMIT`` entries, or where
        shapes differ, a stack would double the memory for nothing, and the list is returned.
        """
        if f in self.stacks:
            return self.stacks[f]
        gradients = self.features[f]
        first = gradients[0]
        if any(g is None for g in gradients) or (
            len(gradients) * first.numel() > STACK_LIMIT
            or any(g.shape != first.shape for g in gradients)
        ):
            return gradients
        self.stacks[f] = torch.stack(gradients)
        return self.stacks[f]
