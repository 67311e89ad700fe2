"""Container for the gradients of k losses at the cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["STACK_LIMIT", "TaskGradients"]

STACK_LIMIT = 1 << 22
"""Entries up to which the gradients of all tasks are stacked into one tensor."""


@dataclass
class TaskGradients:
    """Gradients of k task losses with respect to features and head parameters.

    Attributes:
        features: ``features[f][i]`` is the gradient of task i with respect to the f-th shared
            tensor, of that tensor's shape. If each task has its own tensor, f is 0.
        heads: ``heads[i]`` holds pairs of a head parameter of task i and its gradient. Empty if
            heads were not differentiated.
        stacks: Results of :meth:`stacked`, by f.
    """

    features: list[list[Tensor]]
    heads: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    stacks: dict[int, Tensor] = field(default_factory=dict)

    def stacked(self, f: int) -> Tensor | list[Tensor]:
        """Return the gradients with respect to the f-th tensor, stacked to (k, ...) if small.

        The kernel and the combined gradient both use the stack. Above ``STACK_LIMIT`` entries it
        would take too much memory; then, and where shapes differ, the list is returned.
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
