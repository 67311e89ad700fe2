"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Any

import clarabel  # noqa: F401 - the solver that cvxpy is told to use
import cvxpy
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting, balanced_gramian, check_positive

__all__ = ["CAGrad"]


class CAGrad(GramianWeighting):
    r"""The best improvement of the worst task within a ball around the mean gradient.

    Algorithm 1 of "Conflict-Averse Gradient Descent": with the mean gradient :math:`g_0` and
    :math:`g_w = \sum_i w_i g_i`, the dual :math:`\min_w g_w^T g_0 + c \|g_0\| \|g_w\|` over the
    simplex is solved by cvxpy with Clarabel; the gradient is
    :math:`g_0 + c \|g_0\| g_w / \|g_w\|`. Where :math:`g_w` vanishes its direction is not
    defined, and the mean gradient is left. TorchJD's version is not used because it stops all
    training there: one task that is done would end every other.

    Args:
        c: Radius of the ball, relative to the mean gradient; 0.4 as published.

    Raises:
        ValueError: ``c`` is negative.
        RuntimeError: On use, if the solver does not find the optimum.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> w = CAGrad(c=0.0)(ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1)))
        >>> w  # no room to move: the mean gradient
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, c: float = 0.4) -> None:
        self.c = check_positive("c", c, zero=True)
        self._problem: _Dual | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The compiled problem can neither be copied nor pickled, and is made again when needed.
        return {**vars(self), "_problem": None}

    def of_gramian(self, gramian: Tensor) -> Tensor:
        k = len(gramian)
        uniform = torch.full_like(gramian[0], 1.0 / k)
        gramian, _ = balanced_gramian(gramian)
        # Rows of a square root stand for the gradients: all that is needed is their Gramian.
        values, vectors = torch.linalg.eigh(gramian)
        root = vectors * values.clamp_min(0.0).sqrt()
        mean = root.mean(dim=0)
        radius = self.c * float(mean.norm())
        if radius == 0.0:
            return uniform
        if self._problem is None or self._problem.tasks != k:
            self._problem = _Dual(k)
        w = torch.from_numpy(
            self._problem.solve(root.cpu().numpy(), (root @ mean).cpu().numpy(), radius)
        ).to(gramian)
        norm = float((w @ root).norm())
        # Below the solver's precision the direction of g_w is noise.
        if norm <= 1e-6 * float(root.norm(dim=1).max()):
            return uniform
        return uniform + (radius / norm) * w


class _Dual:
    """The dual of CAGrad for k tasks, compiled once."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self._w = cvxpy.Variable(tasks, nonneg=True)
        self._root = cvxpy.Parameter((tasks, tasks))
        self._slope = cvxpy.Parameter(tasks)
        cost = self._slope @ self._w + cvxpy.pnorm(self._root @ self._w, 2)  # type: ignore[attr-defined]
        simplex = np.ones(tasks) @ self._w == 1
        self._problem = cvxpy.Problem(cvxpy.Minimize(cost), [simplex])

    def solve(
        self, root: NDArray[np.float64], slope: NDArray[np.float64], radius: float
    ) -> NDArray[np.float64]:
        """Return the minimiser, float64 of shape (k,)."""
        self._root.value = radius * root.T
        self._slope.value = slope
        # No warm start: equal input gives equal weights, whatever came before.
        self._problem.solve(solver=cvxpy.CLARABEL, warm_start=False)  # type: ignore[no-untyped-call]
        if self._problem.status not in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE):
            raise RuntimeError(
                f"Clarabel found no optimum of CAGrad's dual: {self._problem.status}"
            )
        weights: NDArray[np.float64] = np.clip(
            np.asarray(self._w.value, dtype=np.float64), 0.0, None
        )
        weights /= weights.sum()
        return weights
