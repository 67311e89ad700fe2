"""Quantities computed from the spectrum of an extended NTK.

Ranks, condition numbers and steps to converge, as pure functions of eigenvalues.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.analysis._system import require_real
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

_ROUNDING = 1e-5
"""Eigenvalues below 0 by at most this share of the largest are zeros that were rounded."""

FLOOR = 1e-6
"""Eigenvalues below this share of the largest count as zero. Errors of float32 gradients change all
eigenvalues by about 1e-7 of the largest."""


def task_spectra(kernel: ExtendedNTK) -> Tensor:
    """Return the eigenvalues of each task's block K_ii, descending, float64 of shape (k, n).

    Values that rounding made negative become 0. The first column equals
    :meth:`ExtendedNTK.max_eigenvalues`.

    Raises:
        TypeError: ``kernel`` is none.
        ValueError: It is not finite.

    Args:
        kernel: The extended NTK of k tasks and n mini-batches.

    Example:
        >>> import torch
        >>> K = ExtendedNTK(blocks=torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]))
        >>> task_spectra(K)
        tensor([[3., 1.]], dtype=torch.float64)
    """
    blocks = _finite(kernel).blocks.detach().to("cpu", torch.float64)
    eigenvalues: Tensor = torch.linalg.eigvalsh(blocks).flip(-1).clamp_min(0.0)
    return eigenvalues


def extended_spectrum(kernel: ExtendedNTK) -> Tensor:
    """Return the eigenvalues of the (kn, kn) matrix of Eq. 9, descending, float64 of shape (kn,).

    Args:
        kernel: The extended NTK of k tasks and n mini-batches.

    Raises:
        TypeError: ``kernel`` is none.
        ValueError: Only the diagonal blocks exist, or one is not finite.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).reshape(2, 1, 2, 1)
        >>> extended_spectrum(ExtendedNTK(K))
        tensor([3., 1.], dtype=torch.float64)
    """
    size = _finite(kernel).tasks * kernel.minibatches
    matrix = kernel.values.detach().to("cpu", torch.float64).reshape(size, size)
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix).flip(-1).clamp_min(0.0)
    return eigenvalues


def _finite(kernel: ExtendedNTK) -> ExtendedNTK:
    """Return a kernel whose eigenvalues exist.

    Raises:
        TypeError: It is none.
        ValueError: An entry is NaN or infinite.
    """
    if not isinstance(kernel, ExtendedNTK):
        raise TypeError(f"kernel must be an ntkmtl.ExtendedNTK, found {type(kernel)}")
    entries = kernel.values if kernel.has_all_blocks else kernel.blocks
    if not bool(entries.isfinite().all()):
        raise ValueError("the kernel holds NaN or infinity, so it has no eigenvalues")
    return kernel


def _read_one(eigenvalues: Tensor, *, unknown: bool = False) -> Tensor:
    """Return the eigenvalues of one spectrum; see :func:`_read`."""
    values = _read(eigenvalues, unknown=unknown)
    if values.ndim != 1:
        raise ValueError(f"eigenvalues must have shape (n,), found {tuple(values.shape)}")
    return values


def _read(eigenvalues: Tensor, *, unknown: bool = False) -> Tensor:
    """Return eigenvalues as float64 on the CPU, those that rounding made negative as 0.

    Args:
        eigenvalues: Shape (..., n).
        unknown: Whether some may be NaN.

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: There are none, or one is negative, infinite or, unless allowed, NaN.
    """
    require_real("eigenvalues", eigenvalues)
    if not eigenvalues.ndim or not eigenvalues.shape[-1]:
        raise ValueError(f"eigenvalues must have shape (..., n), found {tuple(eigenvalues.shape)}")
    values = eigenvalues.detach().to("cpu", torch.float64)
    known = values.nan_to_num(0.0, math.inf, -math.inf) if unknown else values
    least = -_ROUNDING * known.amax(dim=-1, keepdim=True)
    if not bool(((known >= least) & known.isfinite()).all()):
        raise ValueError(
            "eigenvalues of a kernel are finite and not negative, found "
            f"{known[~((known >= least) & known.isfinite())].tolist()[:3]}"
        )
    return values.clamp_min(0.0)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    r"""Return the exponential of the entropy of the spectrum (Roy and Vetterli, 2007).

    This is ``exp(-sum p log p)`` with ``p = eigenvalues / sum``: n if all n eigenvalues are equal,
    1 if only one is not zero, 0 if all are zero.

    Args:
        eigenvalues: Not negative, shape (..., n).

    Returns:
        float64 of shape (...).

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: There are none, or one is negative or not finite.

    Example:
        >>> import torch
        >>> effective_rank(torch.tensor([[5.0, 5.0], [7.0, 0.0]]))
        tensor([2., 1.], dtype=torch.float64)
    """
    shares, vanishing = _shares(eigenvalues)
    entropy = torch.special.entr(shares).sum(dim=-1)
    return torch.where(vanishing, 0.0, entropy.exp())


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """Return ``(sum eigenvalues)^2 / sum eigenvalues^2``, a count of the large eigenvalues.

    At most :func:`effective_rank`, and equal to it if all nonzero eigenvalues are equal.

    Args:
        eigenvalues: Not negative, shape (..., n).

    Returns:
        float64 of shape (...); 0 if all eigenvalues are zero.

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: There are none, or one is negative or not finite.

    Example:
        >>> import torch
        >>> participation_ratio(torch.tensor([3.0, 1.0]))
        tensor(1.6000, dtype=torch.float64)
    """
    shares, vanishing = _shares(eigenvalues)
    return torch.where(vanishing, 0.0, 1.0 / shares.square().sum(dim=-1))


def _shares(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues divided by their sum, and whether that sum is zero."""
    values = _read(eigenvalues)
    # Divide by the largest first: the sum of tiny or huge numbers may underflow or overflow.
    largest = values.amax(dim=-1, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    total = scaled.sum(dim=-1, keepdim=True)
    return scaled / torch.where(total > 0, total, 1.0), largest[..., 0] == 0


def numerical_rank(eigenvalues: Tensor, floor: float = FLOOR) -> int:
    """Return the number of eigenvalues above ``floor`` times the largest.

    Args:
        eigenvalues: Not negative, shape (n,).
        floor: In [0, 1).

    Raises:
        TypeError: The eigenvalues are not a tensor of real numbers.
        ValueError: There are none, one is negative or not finite, or ``floor`` is out of range.

    Example:
        >>> import torch
        >>> numerical_rank(torch.tensor([4.0, 1.0, 1e-9]))
        2
    """
    _require_floor(floor)
    values = _read_one(eigenvalues)
    return int((values > floor * values.max()).sum())


def condition_number(eigenvalues: Tensor, floor: float = FLOOR) -> float:
    """Return the largest eigenvalue divided by the smallest one outside the null space.

    Eigenvalues of at most ``floor`` times the largest count as zero and are left out, so the result
    is below ``1 / floor``. (If two gradients are parallel the kernel is singular, and its smallest
    eigenvalue is a rounding error.) Also look at :func:`numerical_rank`: a weight of 0 moves a task
    into the null space, which makes the rest look better conditioned.

    Args:
        eigenvalues: Not negative, shape (n,).
        floor: In [0, 1).

    Returns:
        At least 1; NaN if all eigenvalues are zero.

    Raises:
        TypeError: The eigenvalues are not a tensor of real numbers.
        ValueError: There are none, one is negative or not finite, or ``floor`` is out of range.

    Example:
        >>> import torch
        >>> condition_number(torch.tensor([8.0, 2.0, 0.0]))
        4.0
    """
    _require_floor(floor)
    values = _read_one(eigenvalues)
    kept = values[values > floor * values.max()]
    return float(kept.max() / kept.min()) if len(kept) else math.nan


def imbalance(largest: Tensor) -> float:
    r"""Return the ratio of the largest to the smallest of the tasks' largest eigenvalues.

    The paper's measure of how differently fast tasks converge (section 3.3). The weights of Eq. 15
    make it 1 for the kernel of weighted losses, :math:`w_i^2 \lambda_i`. The rates of the outputs
    are then still different, :math:`w_i \lambda_i`; see docs/analysis/theory.md. Tasks without a
    kernel (NaN) or with gradient zero are left out.

    Args:
        largest: Largest eigenvalue of each task, shape (k,).

    Returns:
        At least 1; NaN if no task is left.

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: They have another shape, or one is negative or infinite.

    Example:
        >>> import torch
        >>> imbalance(torch.tensor([8.0, float("nan"), 2.0]))
        4.0
    """
    values = _read_one(largest, unknown=True)
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
    r"""Return a lower bound of the steps until each task's error or loss falls to a fraction.

    Without ``losses``, ``largest`` is of the kernel of the network's outputs (Eq. 8). By Eq. 5 the
    error along its eigenvector decays as ``exp(-learning_rate * lambda * t)``, so

        t = log(1 / fraction) / (learning_rate * lambda).

    With ``losses``, ``largest`` is of the kernel of losses with n mini-batches, as stored by
    :class:`ntkmtl.analysis.Recorder`. The squared norm of the whole batch's gradient is at most
    ``lambda / n``. So the loss decreases by at most ``learning_rate * lambda / n`` per step, and

        t = log(1 / fraction) * n * loss / (learning_rate * lambda).

    Both assume plain gradient descent with small steps, a constant kernel (with ``losses``: a
    constant relative decrease, as for squared errors and a constant kernel), an error that lies
    entirely along the largest eigenvector, and no other tasks. With an optimizer that scales its
    steps, such as Adam, only ratios between tasks are meaningful.

    Args:
        largest: Largest eigenvalue of each task, shape (k,), or (T, k) for T steps of a record; NaN
            for one that is not known.
        learning_rate: Learning rate of gradient descent.
        losses: Loss of each task, the shape of ``largest``.
        minibatches: The kernel's n, or a tensor with one n per row, shape (T, 1), NaN for one that
            is not known. Ignored without ``losses``.
        weights: Task weights, shape (k,) or that of ``largest``, which multiply the rates.
        fraction: In (0, 1).

    Returns:
        Steps, float64 of the shape of ``largest``: infinity if the eigenvalue is zero or the weight
        is not positive, NaN if one of them is NaN or the loss is negative, of which no fraction is
        meant.

    Raises:
        TypeError: An argument is not a tensor of real numbers.
        ValueError: Shapes do not match, an eigenvalue is negative or infinite, or a number is out
            of range.

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
    rate = learning_rate * _read(largest, unknown=True)
    if losses is not None:
        require_real("losses", losses)
        if losses.shape != largest.shape:
            raise ValueError(
                f"losses must have the shape of largest, {tuple(largest.shape)}, found "
                f"{tuple(losses.shape)}"
            )
        count = torch.as_tensor(minibatches, dtype=torch.float64, device="cpu")
        row = (*rate.shape[:-1], 1)
        if bool((count < 1).any()) or (count.ndim and count.shape not in (row, rate.shape)):
            raise ValueError(
                f"minibatches must be at least 1, one number or one per row, found {minibatches!r}"
            )
        values = losses.detach().to("cpu", torch.float64)
        rate = rate / (count * torch.where(values >= 0, values, math.nan))
    if weights is not None:
        require_real("weights", weights)
        if weights.shape not in (largest.shape, largest.shape[-1:]):
            raise ValueError(
                f"weights must have shape {tuple(largest.shape[-1:])}, found {tuple(weights.shape)}"
            )
        rate = rate * weights.detach().to("cpu", torch.float64).clamp_min(0.0)
    return math.log(1 / fraction) / rate


def _require_floor(floor: float) -> None:
    if not 0 <= floor < 1:
        raise ValueError(f"floor must be in [0, 1), found {floor}")
