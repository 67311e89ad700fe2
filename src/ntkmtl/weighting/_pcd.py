"""Priority-constrained descent."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import (
    DEPENDENT,
    Requires,
    Weighting,
    balanced_gramian,
    check_positive,
)
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._qp import cancellation, nonnegative_qp

__all__ = ["PCD"]

# Directions are zero below the precision of a Gramian of float32 gradients.
_ZERO = 1e-12


@method(
    "pcd",
    family="gradients",
    summary="Priority-constrained: the first task's gradient, with headway for all others",
    paper="Varam, AlHajri: Not All Objectives Are Born Equal, TMLR 2026",
)
class PCD(Weighting):
    r"""The primary task's gradient, changed no more than it takes for the others to make headway.

    "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical
    Multi-Objective Optimization": gradients are normalized,
    :math:`\tilde g_i = g_i / \sqrt{v_i + \epsilon}`, by the debiased moving average v of their
    squared norms; the direction minimizes :math:`\frac12 \|d - \tilde g_1\|^2` subject to
    :math:`\langle \tilde g_j, d \rangle \ge \tau \|\tilde g_j\|^2` for every other task j, and is
    rescaled to the primary gradient's norm. Where no direction satisfies all constraints, the
    primary gradient is left; so it is where only directions do that come from what rounding in
    float32 leaves of opposite gradients. Where the primary gradient is zero, so is the step.

    TorchJD's version is not used because its averages have one state for all tasks, which is
    forgotten when a batch has no labels for one of them. :math:`\epsilon` is relative to the mean
    squared norm here, so that the scale of the losses does not matter.

    Where a batch has no labels for the primary task, the first task that has some takes its place.

    Args:
        tau: :math:`\tau` in [0, 1], for all other tasks alike; the defaults are TorchJD's.
        beta: Decay of the moving average.
        epsilon: :math:`\epsilon`.
        primary: Position of the primary task.

    Raises:
        ValueError: A setting is out of range, or, on use, there is no such task.
        RuntimeError: On use, if the solver does not reach the minimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1))
        >>> PCD(tau=0.75, epsilon=0.0)(K)  # d = (1, 0.75) of norm 1.25, rescaled to 1
        tensor([0.8000, 0.6000], dtype=torch.float64)
    """

    depends_on_order: ClassVar[bool] = True
    requires: ClassVar[Requires] = "gramian"
    balancer_defaults = EXACT

    def __init__(
        self, tau: float = 0.02, beta: float = 0.999, epsilon: float = 1e-8, primary: int = 0
    ) -> None:
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must be in [0, 1]. Found tau={tau}.")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must be in [0, 1). Found beta={beta}.")
        if primary < 0:
            raise ValueError(f"primary must not be negative. Found primary={primary}.")
        self.tau = float(tau)
        self.beta = float(beta)
        self.epsilon = check_positive("epsilon", epsilon, zero=True)
        self.primary = int(primary)
        self._average: Tensor | None = None
        self._updates: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._average is None:
            if self.primary >= tasks:
                raise ValueError(
                    f"pcd has primary={self.primary}, but there are {tasks} tasks, 0 to {tasks - 1}"
                )
            self._average = torch.zeros(tasks, dtype=torch.float64, device=device)
            self._updates = torch.zeros_like(self._average)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        self.prepare(kernel.tasks, tasks.device)
        original = kernel.gramian()
        gramian, mean = balanced_gramian(original.cpu())
        squares = gramian.diagonal()
        scales = self._scales(squares, mean, tasks)
        positions: list[int] = tasks.tolist()
        first = positions.index(self.primary) if self.primary in positions else 0
        weights = torch.zeros_like(squares)
        if float(squares[first]) > 0:
            order = torch.tensor([first, *(i for i in range(len(squares)) if i != first)])
            normalized = (gramian * scales[:, None] * scales[None, :])[order][:, order]
            found = _constrained(normalized, self.tau)
            square = float(found @ normalized @ found)
            magnitude = float(found.abs() @ normalized.diagonal().clamp_min(0.0).sqrt()) ** 2
            if square > _ZERO * magnitude:
                weights[order] = found * (float(squares[first]) / square) ** 0.5
        return (weights * scales).to(original.device)

    def _scales(self, squares: Tensor, mean: float, tasks: Tensor) -> Tensor:
        """Return what normalizes each gradient, times the root of ``mean``, and move the averages.

        Args:
            squares: Squared norms of the gradients, in units of ``mean``.
            mean: Their mean.
            tasks: Their positions among all tasks.
        """
        assert self._average is not None
        assert self._updates is not None
        fresh = (squares * mean).to(self._average.device)
        self._updates[tasks] += 1
        self._average[tasks] = self.beta * self._average[tasks] + (1.0 - self.beta) * fresh
        debiased = self._average[tasks] / (1.0 - self.beta ** self._updates[tasks])
        size = (debiased.to(squares.device) / mean + self.epsilon).sqrt()
        return torch.where(size > 0, 1.0 / size, 0.0)

    def _get_state(self) -> dict[str, Any]:
        return {"average": self._average, "updates": self._updates}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._average, self._updates = state["average"], state["updates"]


def _constrained(gramian: Tensor, tau: float) -> Tensor:
    """Return the weights of the direction nearest to the first gradient that serves the others.

    Args:
        gramian: float64, shape (k, k), the primary gradient first.
        tau: Share of its squared norm that each other gradient's product with it must reach.
    """
    if len(gramian) == 1:
        return torch.ones_like(gramian[0])
    others = gramian[1:, 1:]
    multipliers = nonnegative_qp(others, tau * others.diagonal() - gramian[1:, 0])
    if cancellation(others, multipliers) <= DEPENDENT / 4.0:
        # Constraints that contradict each other: the dual has no maximum, and its multipliers grow
        # along a combination of gradients that cancels.
        multipliers = torch.zeros_like(multipliers)
    return torch.cat([torch.ones_like(gramian[0, :1]), multipliers])
