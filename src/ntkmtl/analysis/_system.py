"""Gradient descent under a constant kernel, in its eigenbasis.

See :mod:`ntkmtl.analysis.dynamics` for the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Reduction",
    "System",
    "check_steps",
    "check_weights",
    "predict_outputs",
    "require_real",
    "system_of",
    "tasks_of",
]

Reduction = Literal["sum", "mean"]


def require_real(name: str, value: object, *, finite: bool = False) -> None:
    """Check that an argument is a tensor of real numbers.

    Args:
        name: Its name, for the error.
        value: The argument.
        finite: Whether its numbers must be finite too.

    Raises:
        TypeError: It is none.
        ValueError: A number is NaN or infinite.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        found = value.dtype if isinstance(value, Tensor) else type(value)
        raise TypeError(f"{name} must be a tensor of real numbers, found {found}")
    if finite and not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite, found {value[~value.isfinite()].tolist()[:3]}")


class System:
    """The matrix W^(1/2) K W^(1/2), checked and diagonalized once."""

    def __init__(self, kernel: Tensor, tasks: int, weights: Tensor | None) -> None:
        require_real("kernel", kernel)
        size = math.prod(kernel.shape[: kernel.ndim // 2]) if kernel.ndim in (2, 4) else 0
        samples = size // tasks
        fits = tuple(kernel.shape) in ((size, size), (tasks, samples, tasks, samples))
        if size == 0 or size % tasks or not fits:
            raise ValueError(
                f"kernel must have shape (N, N), (kN, kN) or (k, N, k, N) with k = {tasks}, "
                f"found {tuple(kernel.shape)}"
            )
        matrix = kernel.detach().to(torch.float64).reshape(size, size)
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("kernel holds NaN or infinity; look at the network's outputs")
        largest = float(matrix.abs().max())
        if float((matrix - matrix.T).abs().max()) > 1e-5 * largest:
            raise ValueError(
                "kernel must be symmetric, found K and its transpose to differ by "
                f"{float((matrix - matrix.T).abs().max()):.2g} where its largest entry is "
                f"{largest:.2g}; give K_ij = J_i J_j^T as (k, N, k, N), task before sample"
            )
        self.kernel = (matrix + matrix.T) / 2
        self.tasks, self.samples = tasks, samples
        self.weights = check_weights(weights, tasks, matrix)
        self.root = self.weights.sqrt().repeat_interleave(self.samples)
        eigenvalues, self.vectors = torch.linalg.eigh(
            self.kernel * self.root[:, None] * self.root[None, :]
        )
        top = max(float(eigenvalues[-1]), 0.0)
        if float(eigenvalues[0]) < -1e-5 * max(top, -float(eigenvalues[0])) < 0:
            raise ValueError(
                "kernel must be positive semi-definite, found the eigenvalues "
                f"{float(eigenvalues[0]):.2g} to {float(eigenvalues[-1]):.2g}"
            )
        # Eigenvalues below this are rounding errors of 0: their direction is not learned.
        floor = size * torch.finfo(torch.float64).eps * top
        self.eigenvalues = torch.where(eigenvalues > floor, eigenvalues, 0.0)

    def factor(self, reduction: Reduction) -> float:
        """Return c in d loss_i / d f_i = c (f_i - y_i)."""
        if reduction == "sum":
            return 1.0
        if reduction == "mean":
            return 2.0 / self.samples
        raise ValueError(f"reduction must be 'sum' or 'mean'. Found reduction={reduction!r}.")

    def rates(self, learning_rate: float, reduction: Reduction) -> Tensor:
        """Return eta c lambda, ascending, shape (kN,)."""
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(
                f"learning_rate must be positive. Found learning_rate={learning_rate}."
            )
        return learning_rate * self.factor(reduction) * self.eigenvalues

    def critical_rate(self, reduction: Reduction) -> float:
        """Return the learning rate at which descent starts to diverge, 2 / (c lambda_max)."""
        top = self.factor(reduction) * float(self.eigenvalues[-1])
        return 2.0 / top if top > 0 else math.inf


def check_weights(weights: Tensor | None, tasks: int, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_ones(tasks)
    require_real("weights", weights)
    weights = weights.detach().to(like)
    if weights.shape != (tasks,):
        raise ValueError(f"weights must have shape ({tasks},), found {tuple(weights.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool(weights.any()):
        raise ValueError(
            f"weights must be finite, not negative and not all zero, found {weights.tolist()}"
        )
    return weights


def tasks_of(kernel: Tensor, weights: Tensor | None) -> int:
    """Return the number of tasks from the shapes of kernel and weights."""
    require_real("kernel", kernel)
    if weights is not None:
        require_real("weights", weights)
    if kernel.ndim == 4:
        return kernel.shape[0]
    return 1 if weights is None else max(weights.numel(), 1)


def system_of(
    kernel: Tensor, initial: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[System, Tensor, Tensor]:
    """Return the system, and initial outputs and targets as float64 of shape (k, N)."""
    require_real("initial", initial, finite=True)
    require_real("targets", targets, finite=True)
    if initial.shape != targets.shape or targets.ndim not in (1, 2):
        raise ValueError(
            "initial and targets must have one shape, (N,) or (k, N); found "
            f"{tuple(initial.shape)} and {tuple(targets.shape)}"
        )
    tasks = targets.shape[0] if targets.ndim == 2 else 1
    system = System(kernel, max(tasks, 1), weights)
    if targets.numel() != system.tasks * system.samples:
        raise ValueError(
            f"the kernel is of {system.tasks} x {system.samples} outputs, "
            f"found targets of shape {tuple(targets.shape)}"
        )
    shape = (system.tasks, system.samples)
    return (
        system,
        initial.detach().to(system.kernel).reshape(shape),
        targets.detach().to(system.kernel).reshape(shape),
    )


def _decay(rates: Tensor, steps: Tensor, flow: bool) -> tuple[Tensor, Tensor]:
    """Return the share of each component that remains and the share gone, shapes (T, kN)."""
    t = steps[:, None]
    if flow:
        return torch.exp(-rates * t), -torch.expm1(-rates * t)
    # log1p keeps the digits of slow components; for rates above 1 the factor is negative.
    gentle = rates < 1
    log = torch.log1p(-torch.where(gentle, rates, 0.0)) * t
    power = (1.0 - rates).pow(t)
    return torch.where(gentle, log.exp(), power), torch.where(gentle, -torch.expm1(log), 1 - power)


def predict_outputs(
    system: System, initial: Tensor, targets: Tensor, steps: Tensor, rates: Tensor, flow: bool
) -> Tensor:
    """Return predicted outputs, shape (T, k, N)."""
    residual = (initial - targets).reshape(-1)
    start = system.vectors.T @ (system.root * residual)
    left, gone = _decay(rates, steps, flow)
    scaled = (left * start) @ system.vectors.T
    trained = system.root > 0
    later = scaled / torch.where(trained, system.root, 1.0)
    if not bool(trained.all()):
        # A task of weight 0 is moved by the others: f(t) - f(0) = -K W^(1/2) (eta c sum of s over
        # the steps), and this sum is, for the component of lambda, (the share gone) / lambda.
        lam = system.eigenvalues
        pull = torch.where(lam > 0, gone / torch.where(lam > 0, lam, 1.0), 0.0) * start
        moved = (pull @ system.vectors.T * system.root) @ system.kernel
        later = torch.where(trained, later, residual - moved)
    outputs: Tensor = targets + later.reshape(len(steps), *targets.shape)
    return outputs


def check_steps(steps: Sequence[int] | Sequence[float] | Tensor, whole: bool) -> Tensor:
    try:
        values = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise TypeError(f"steps must be a list of numbers, found {steps!r}") from error
    if values.ndim != 1 or not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ValueError(
            f"steps must be a list of finite numbers that are not negative, found {steps!r}"
        )
    if whole and not torch.equal(values, values.round()):
        raise ValueError(
            f"steps of gradient descent must be whole numbers, found {steps!r}; predict_flow takes "
            "any times"
        )
    return values
