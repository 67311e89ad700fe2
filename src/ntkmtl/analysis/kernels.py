"""What the spectrum of an extended NTK says: ranks, condition numbers, steps to converge.

Pure functions of eigenvalues; nothing here touches a model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK

__all__ = [
    "FLOOR",
    "condition_number",
    "convergence_steps",
    "effective_rank",
    "extended_spectrum",
    "imbalance",
    "numerical_rank",
    "participation_ratio",
    "task_spectra",
]

FLOOR = 1e-6
"""Eigenvalues below this share of the largest one count as zero: float32 gradients leave errors of
about 1e-7 of the largest eigenvalue, whatever the true one is."""


def task_spectra(kernel: ExtendedNTK) -> Tensor:
    """Return the eigenvalues of each task's own block K_ii, float64 of shape (k, n), falling.

    Rounding below zero is cut off. The first column is :meth:`ExtendedNTK.max_eigenvalues`.

    Args:
        kernel: The extended NTK of k tasks and n mini-batches.

    Example:
        >>> import torch
        >>> K = ExtendedNTK(blocks=torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]))
        >>> task_spectra(K)
        tensor([[3., 1.]], dtype=torch.float64)
    """
    blocks = kernel.blocks.detach().to("cpu", torch.float64)
    eigenvalues: Tensor = torch.linalg.eigvalsh(blocks).flip(-1).clamp_min(0.0)
    return eigenvalues


def extended_spectrum(kernel: ExtendedNTK) -> Tensor:
    """Return the eigenvalues of the whole (kn, kn) matrix of Eq. 9, float64, falling.

    Args:
        kernel: The extended NTK of k tasks and n mini-batches.

    Raises:
        ValueError: Only the diagonal blocks exist.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).reshape(2, 1, 2, 1)
        >>> extended_spectrum(ExtendedNTK(K))
        tensor([3., 1.], dtype=torch.float64)
    """
    size = kernel.tasks * kernel.minibatches
    matrix = kernel.values.detach().to("cpu", torch.float64).reshape(size, size)
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix).flip(-1).clamp_min(0.0)
    return eigenvalues


def effective_rank(eigenvalues: Tensor) -> Tensor:
    r"""Return the exponential of the entropy of the spectrum (Roy and Vetterli, 2007).

    ``exp(-sum p log p)`` with ``p = eigenvalues / sum``: n where all n are equal, 1 where one
    stands alone, 0 where all vanish.

    Args:
        eigenvalues: Not negative, shape (..., n).

    Returns:
        float64 of shape (...).

    Example:
        >>> import torch
        >>> effective_rank(torch.tensor([[5.0, 5.0], [7.0, 0.0]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    shares, vanishing = _shares(eigenvalues)
    entropy = torch.special.entr(shares).sum(dim=-1)
    return torch.where(vanishing, 0.0, entropy.exp())


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """Return ``(sum eigenvalues)^2 / sum eigenvalues^2``, which counts the large ones.

    At most :func:`effective_rank`; the same where all non-zero eigenvalues are equal.

    Args:
        eigenvalues: Not negative, shape (..., n).

    Returns:
        float64 of shape (...); 0 where all eigenvalues vanish.

    Example:
        >>> import torch
        >>> participation_ratio(torch.tensor([3.0, 1.0]))
        tensor(1.6000, dtype=torch.float64)
    """
    shares, vanishing = _shares(eigenvalues)
    return torch.where(vanishing, 0.0, 1.0 / shares.square().sum(dim=-1))


def _shares(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues over their sum, and where that sum is zero."""
    values = eigenvalues.detach().to("cpu", torch.float64)
    # By the largest first: the sum of tiny or huge ones may leave the range of floats.
    largest = values.amax(dim=-1, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    total = scaled.sum(dim=-1, keepdim=True)
    return scaled / torch.where(total > 0, total, 1.0), largest[..., 0] == 0


def numerical_rank(eigenvalues: Tensor, floor: float = FLOOR) -> int:
    """Return how many eigenvalues are more than ``floor`` times the largest one.

    Args:
        eigenvalues: Not negative, shape (n,).
        floor: In [0, 1).

    Raises:
        ValueError: ``floor`` is out of range.

    Example:
        >>> import torch
        >>> numerical_rank(torch.tensor([4.0, 1.0, 1e-9]))
        2
    """
    _require_floor(floor)
    values = eigenvalues.detach().to("cpu", torch.float64)
    return int((values > floor * values.max()).sum())


def condition_number(eigenvalues: Tensor, floor: float = FLOOR) -> float:
    """Return the largest eigenvalue over the smallest one outside the null space.

    Eigenvalues of at most ``floor`` times the largest are taken for zero and left out, so the
    number is below ``1 / floor``: the kernel of n mini-batches of k tasks has a null space wherever
    two gradients are parallel, and the smallest eigenvalue there is rounding. Read it beside
    :func:`numerical_rank`: a weight of 0 moves a task into the null space and makes the rest look
    better conditioned.

    Args:
        eigenvalues: Not negative, shape (n,).
        floor: In [0, 1).

    Returns:
        At least 1; NaN where all eigenvalues vanish.

    Raises:
        ValueError: ``floor`` is out of range.

    Example:
        >>> import torch
        >>> condition_number(torch.tensor([8.0, 2.0, 0.0]))
        4.0
    """
    _require_floor(floor)
    values = eigenvalues.detach().to("cpu", torch.float64)
    kept = values[values > floor * values.max()]
    return float(kept.max() / kept.min()) if len(kept) else math.nan


def imbalance(largest: Tensor) -> float:
    r"""Return the largest over the smallest of the tasks' largest eigenvalues.

    The paper's measure of how far apart tasks converge (section 3.3). For the kernel of the losses
    under weights, :math:`w_i^2 \lambda_i`, it is 1 after those of Eq. 15 from the same kernel; the
    outputs' rates are then still :math:`w_i \lambda_i`, see docs/analysis/theory.md. Tasks without
    a kernel (NaN) are left out, tasks whose gradient vanishes too.

    Args:
        largest: Largest eigenvalue of each task, shape (k,).

    Returns:
        At least 1; NaN where no task is left.

    Example:
        >>> import torch
        >>> imbalance(torch.tensor([8.0, float("nan"), 2.0]))
        4.0
    """
    values = largest.detach().to("cpu", torch.float64)
    values = values[values > 0]
    return float(values.max() / values.min()) if len(values) else math.nan


def convergence_steps(
    largest: Tensor,
    learning_rate: float,
    *,
    losses: Tensor | None = None,
    minibatches: int | Tensor = 1,
    weights: Tensor | None = None,
    fraction: float = 0.1,
) -> Tensor:
    r"""Predict the fewest steps in which each task comes down to a fraction of what it is.

    Without ``losses``, ``largest`` belongs to the kernel of the network's outputs (Eq. 8), and by
    Eq. 5 the error along its eigenvector falls as ``exp(-learning_rate * lambda * t)``, so that

        t = log(1 / fraction) / (learning_rate * lambda).

    With ``losses``, ``largest`` belongs to the kernel of the losses of n mini-batches, as
    :class:`ntkmtl.analysis.Recorder` keeps it. The whole batch's squared gradient is at most
    ``lambda / n``, the loss falls by ``learning_rate * lambda / n`` per step, and its relative rate
    is ``learning_rate * lambda / (n * loss)``:

        t = log(1 / fraction) * n * loss / (learning_rate * lambda).

    Assumed in both: plain gradient descent with a small step; a kernel, or with ``losses`` a
    relative rate (as for squared errors and a constant kernel), that stays what it is; all of the
    error along the largest eigenvector; and no other task. So these are lower bounds, and with an
    optimiser that scales its steps, such as Adam, only their ratios between tasks mean something.

    Args:
        largest: Largest eigenvalue of each task, shape (k,).
        learning_rate: Of gradient descent.
        losses: Loss of each task, positive, shape (k,).
        minibatches: The kernel's n, or one n per row where ``largest`` has rows of several steps.
            Without ``losses`` it has no effect.
        weights: Task weights, shape (k,); a task's own pull is then ``weight`` times as strong.
        fraction: In (0, 1).

    Returns:
        Steps, float64 of shape (k,): infinite where the eigenvalue or the weight is zero, NaN where
        one of them is unknown.

    Raises:
        ValueError: ``fraction`` or ``learning_rate`` is out of range.

    Example:
        >>> import math, torch
        >>> convergence_steps(torch.tensor([10.0, 0.0]), 0.1, fraction=math.exp(-3))
        tensor([3., inf], dtype=torch.float64)
        >>> loss = torch.tensor([0.5, 0.5])
        >>> convergence_steps(torch.tensor([4.0, 1.0]), 0.1, losses=loss, fraction=math.exp(-2))
        tensor([ 2.5000, 10.0000], dtype=torch.float64)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), found {fraction}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be positive, found {learning_rate}")
    rate = learning_rate * largest.detach().to("cpu", torch.float64)
    if losses is not None:
        rate = rate / (minibatches * losses.detach().to("cpu", torch.float64))
    if weights is not None:
        rate = rate * weights.detach().to("cpu", torch.float64)
    return math.log(1 / fraction) / rate


def _require_floor(floor: float) -> None:
    if not 0 <= floor < 1:
        raise ValueError(f"floor must be in [0, 1), found {floor}")
