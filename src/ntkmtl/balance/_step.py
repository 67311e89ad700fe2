"""What is known of one call of backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkmtl.errors import NonFiniteError
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._autograd import TaskGradients
from ntkmtl.kernel._features import Features
from ntkmtl.kernel._ranks import Ranks

__all__ = ["BalanceResult", "Step", "with_zeros"]


@dataclass(frozen=True)
class BalanceResult:
    """What one call of :meth:`Balancer.backward` found.

    Attributes:
        weights: Task weights, shape (k,), 0 for a task without a label in this batch. For
            loss-only methods the effective ones, d total / d l_i.
        eigenvalues: Largest eigenvalue of each task's kernel, shape (k,), NaN for a task without a
            label; None if the method reads none, or reuses weights in this step (``every``).
        kernel: The kernel of the tasks with labels that the weights were made of, None if there is
            none.
        skipped: Whether a gradient scaler was told to skip this step.
    """

    weights: Tensor
    eigenvalues: Tensor | None = None
    kernel: ExtendedNTK | None = None
    skipped: bool = False


@dataclass
class Step:
    """One call of backward.

    Attributes:
        names: Names of all tasks.
        losses: Losses of the tasks with labels in this process, times the gradient scale.
        raw: Losses of the tasks with labels in any process, float64 on the CPU, shape (k,).
        present: Positions of those among all tasks.
        local: Positions among ``present`` of the tasks with labels in this process.
        scale: The gradient scale, 1 for none.
        number: Number of the call.
        like: A tensor whose device and dtype results take.
        slope: What makes weights of the losses from weights of what is balanced; None for 1.
        ranks: The other processes, None if there are none.
        kernel: The kernel, once known.
    """

    names: tuple[str, ...]
    losses: list[Tensor]
    raw: Tensor
    present: list[int]
    local: list[int]
    scale: float
    number: int
    like: Tensor
    slope: Tensor | None = None
    ranks: Ranks | None = None
    kernel: ExtendedNTK | None = None

    def __post_init__(self) -> None:
        self.index = torch.tensor(self.present)

    @property
    def total(self) -> int:
        """Number of all tasks."""
        return len(self.names)

    @property
    def local_names(self) -> list[str]:
        """Names of the tasks with labels in this process."""
        return [self.names[self.present[i]] for i in self.local]

    @property
    def has_label(self) -> Tensor:
        """Whether this process has a label for each task of ``present``."""
        mask = torch.zeros(len(self.present), dtype=torch.bool)
        mask[self.local] = True
        return mask

    def require_finite(self, values: Tensor, what: str) -> None:
        """Raise if one of the values, one for each task of ``present``, is NaN or infinite."""
        if not bool(values.isfinite().all()):
            position = int((~values.isfinite()).nonzero()[0])
            raise NonFiniteError(
                self.names[self.present[position]], self.number, what, float(values[position])
            )

    def spread(self, values: Tensor, missing: float = 0.0) -> Tensor:
        """Put the values of the tasks with labels at their places among all tasks."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        if len(self.present) == self.total:
            return values.to(self.like.device, dtype)
        full = torch.full((self.total,), missing, dtype=torch.float64)
        full[self.index] = values.to("cpu", torch.float64)
        return full.to(self.like.device, dtype)

    def result(
        self,
        weights: Tensor,
        eigenvalues: Tensor | None = None,
        *,
        skipped: bool = False,
    ) -> BalanceResult:
        """Report the weights of the losses themselves, for all tasks."""
        return BalanceResult(
            self.spread(weights if self.slope is None else weights * self.slope),
            None if eigenvalues is None else self.spread(eigenvalues, math.nan),
            self.kernel,
            skipped,
        )

    def unscaled(
        self, combine: Callable[..., tuple[Tensor, Tensor]], matrix: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Show a method the gradients without the gradient scale, and put it back after."""
        if self.scale == 1.0:
            return combine(matrix, self.raw, self.index)
        combined, weights = combine(matrix / self.scale, self.raw, self.index)
        return combined * self.scale, weights


def with_zeros(gradients: TaskGradients, features: Features, step: Step) -> TaskGradients:
    """Add zero gradients for tasks that have labels in other processes only."""
    if len(step.local) == len(step.present):
        return gradients
    place = {position: i for i, position in enumerate(step.local)}
    filled: list[list[Tensor]] = []
    for f, per_task in enumerate(gradients.features):
        row = []
        for position, task in enumerate(step.present):
            if position in place:
                row.append(per_task[place[position]])
            else:
                like = features.tensors[task if features.per_task else f]
                row.append(torch.zeros_like(like))
        filled.append(row)
    return TaskGradients(filled, gradients.heads)
