r"""What a constant kernel predicts of training, and what gradient descent does.

k tasks with squared losses are trained on N samples by gradient descent on
:math:`\sum_i w_i \ell_i` (Eq. 12). While the extended NTK K of the outputs (Eq. 8) keeps still, one
step moves the outputs f, stacked to a vector of kN, by

.. math:: \Delta f = -\eta c \, K W (f - y), \qquad W = \mathrm{diag}(w_1 I_N, ..., w_k I_N),

with the loss's factor c: 1 for ``reduction="sum"``, the paper's :math:`\ell_i = \frac12 \sum_u
(f_{iu} - y_{iu})^2` (Eq. 19), and 2/N for ``reduction="mean"``, the mean of squares as
``torch.nn.functional.mse_loss`` has it. Everything here follows from that line. K W is not
symmetric, but on residuals scaled by the root of their weight, :math:`s = W^{1/2} (f - y)`, it acts
as :math:`S = W^{1/2} K W^{1/2}`, which is, so each eigencomponent of s decays by itself:

- by :math:`(1 - \eta c \lambda)^t` after t steps of gradient descent (:func:`predict_descent`),
- by :math:`e^{-\eta c \lambda t}` under gradient flow (:func:`predict_flow`), which is Eq. 4 and 10
  where all weights are 1, the outputs start at 0 and the loss is a sum.

Proposition 3.3 writes :math:`w_i w_j K_{ij}` where :math:`S` has :math:`\sqrt{w_i w_j} K_{ij}`. Its
left-hand side is the derivative of the scaled outputs :math:`w_i f_i` (Eq. 29) while its right-hand
side has the residuals as they are; with one meaning for both it holds for the loss
:math:`\sum_i w_i^2 \ell_i` and outputs and targets scaled by w. The weights of Eq. 12 are those of
the proposition squared, so what they multiply eigenvalues of K_ii by is :math:`w_i`, not
:math:`w_i^2`.

A kernel is a tensor: (N, N) for one task, (k, N, k, N) or (kN, kN) with the first task's samples
first for k tasks. Outputs and targets are (N,) or (k, N). Arithmetic is in float64. The weights are
taken to act on every parameter behind K. See ``docs/analysis/theory.md`` for measurements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from ntkmtl.weighting._ntkmtl import eigenvalue_weights

__all__ = [
    "Components",
    "Conditioning",
    "Simulation",
    "WeightingEffect",
    "WideMLP",
    "component_steps",
    "components",
    "critical_learning_rate",
    "predict_descent",
    "predict_flow",
    "prediction_error",
    "simulate",
    "task_losses",
    "task_steps",
    "weighting_effect",
]

Reduction = Literal["sum", "mean"]


class _System:
    """W^(1/2) K W^(1/2), checked and diagonalised once for all questions."""

    def __init__(self, kernel: Tensor, tasks: int, weights: Tensor | None) -> None:
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
        self.weights = _check_weights(weights, tasks, matrix)
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
        # Below this an eigenvalue is rounding, and its direction is not learned at all.
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


def _check_weights(weights: Tensor | None, tasks: int, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_ones(tasks)
    weights = weights.detach().to(like)
    if weights.shape != (tasks,):
        raise ValueError(f"weights must have shape ({tasks},), found {tuple(weights.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool(weights.any()):
        raise ValueError(
            f"weights must be finite, not negative and not all zero, found {weights.tolist()}"
        )
    return weights


def _tasks_of(kernel: Tensor, weights: Tensor | None) -> int:
    """Return k of a kernel that comes without outputs."""
    if kernel.ndim == 4:
        return kernel.shape[0]
    return 1 if weights is None else max(weights.numel(), 1)


def _system_of(
    kernel: Tensor, initial: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[_System, Tensor, Tensor]:
    """Return the system, and initial outputs and targets as float64 of shape (k, N)."""
    if initial.shape != targets.shape or targets.ndim not in (1, 2):
        raise ValueError(
            "initial and targets must have one shape, (N,) or (k, N); found "
            f"{tuple(initial.shape)} and {tuple(targets.shape)}"
        )
    tasks = targets.shape[0] if targets.ndim == 2 else 1
    system = _System(kernel, max(tasks, 1), weights)
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
    """Return the factor left of each component and one minus it, shapes (T, kN)."""
    t = steps[:, None]
    if flow:
        return torch.exp(-rates * t), -torch.expm1(-rates * t)
    # log1p keeps the slow components' digits; past rate 1 the factor is negative.
    gentle = rates < 1
    log = torch.log1p(-torch.where(gentle, rates, 0.0)) * t
    power = (1.0 - rates).pow(t)
    return torch.where(gentle, log.exp(), power), torch.where(gentle, -torch.expm1(log), 1 - power)


def _predict(
    system: _System, initial: Tensor, targets: Tensor, steps: Tensor, rates: Tensor, flow: bool
) -> Tensor:
    """Return predicted outputs, shape (T, k, N)."""
    residual = (initial - targets).reshape(-1)
    start = system.vectors.T @ (system.root * residual)
    left, gone = _decay(rates, steps, flow)
    scaled = (left * start) @ system.vectors.T
    trained = system.root > 0
    later = scaled / torch.where(trained, system.root, 1.0)
    if not bool(trained.all()):
        # A task of weight 0 is moved by the others: f(t) - f(0) = K W^(1/2) times what s was
        # summed over the steps, which for component lambda is (what is gone of it) / lambda.
        lam = system.eigenvalues
        pull = torch.where(lam > 0, gone / torch.where(lam > 0, lam, 1.0), 0.0) * start
        moved = (pull @ system.vectors.T * system.root) @ system.kernel
        later = torch.where(trained, later, residual - moved)
    outputs: Tensor = targets + later.reshape(len(steps), *targets.shape)
    return outputs


def _check_steps(steps: Sequence[int] | Sequence[float] | Tensor, whole: bool) -> Tensor:
    values = torch.as_tensor(steps, dtype=torch.float64, device="cpu")
    if values.ndim != 1 or not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ValueError("steps must be a list of finite numbers that are not negative")
    if whole and not torch.equal(values, values.round()):
        raise ValueError(
            "steps of gradient descent must be whole numbers; predict_flow takes any times"
        )
    return values


def predict_descent(
    kernel: Tensor,
    initial: Tensor,
    targets: Tensor,
    steps: Sequence[int] | Tensor,
    *,
    learning_rate: float,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Return the outputs after some steps of full-batch descent, if the kernel is constant.

    .. math:: W^{1/2} (f(t) - y) = V (1 - \eta c \Lambda)^t V^\top W^{1/2} (f(0) - y), \qquad
              W^{1/2} K W^{1/2} = V \Lambda V^\top.

    Exact for a model that is linear in its parameters; for a network as good as its kernel is
    constant. Stable only below :func:`critical_learning_rate`.

    Args:
        kernel: Output kernel at the start, shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        steps: T numbers of steps done, whole and not negative.
        learning_rate: eta.
        weights: Task weights of Eq. 12, shape (k,), not negative; 1 each if None. A task of weight
            0 is not trained but moved by the others.
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.

    Returns:
        float64 outputs of shape (T, N) or (T, k, N).

    Raises:
        ValueError: Shapes do not fit, the kernel is not symmetric positive semi-definite, or a
            number is out of range.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # Rates 1 / 2 and 1 / 4 at eta = 1 / 4.
        >>> y = torch.tensor([1.0, 1.0])
        >>> predict_descent(K, torch.zeros(2), y, [0, 1, 2], learning_rate=0.25)
        tensor([[0.0000, 0.0000],
                [0.5000, 0.2500],
                [0.7500, 0.4375]], dtype=torch.float64)
    """
    system, start, goal = _system_of(kernel, initial, targets, weights)
    rates = system.rates(learning_rate, reduction)
    t = _check_steps(steps, whole=True).to(rates.device)
    return _predict(system, start, goal, t, rates, flow=False).reshape(len(t), *targets.shape)


def predict_flow(
    kernel: Tensor,
    initial: Tensor,
    targets: Tensor,
    times: Sequence[float] | Tensor,
    *,
    learning_rate: float = 1.0,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Return the outputs under gradient flow, if the kernel is constant (Eq. 4 and 10).

    .. math:: W^{1/2} (f(t) - y) = V e^{-\eta c \Lambda t} V^\top W^{1/2} (f(0) - y).

    Eq. 4 and 10 are the case of outputs that start at 0, all weights 1 and ``reduction="sum"``.
    Time is counted in steps of ``learning_rate``, as there; it is the limit of
    :func:`predict_descent` for small steps.

    Args:
        kernel: Output kernel at the start, shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        times: T times, not negative.
        learning_rate: eta; 1 if time is the flow's own (Eq. 2).
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        float64 outputs of shape (T, N) or (T, k, N).

    Raises:
        ValueError: See :func:`predict_descent`.

    Example:
        >>> import math, torch
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> y = torch.tensor([1.0, 1.0])
        >>> predict_flow(K, torch.zeros(2), y, [math.log(2)])
        tensor([[0.7500, 0.5000]], dtype=torch.float64)
    """
    system, start, goal = _system_of(kernel, initial, targets, weights)
    rates = system.rates(learning_rate, reduction)
    t = _check_steps(times, whole=False).to(rates.device)
    return _predict(system, start, goal, t, rates, flow=True).reshape(len(t), *targets.shape)


@dataclass(frozen=True)
class Components:
    r"""Residuals in the eigenbasis of :math:`W^{1/2} K W^{1/2}` (Eq. 5 and 11).

    Attributes:
        eigenvalues: Ascending, shape (kN,). Those that are zero but for rounding are 0.
        vectors: Eigenvectors as columns, shape (kN, kN).
        values: :math:`V^\top W^{1/2} (f - y)`, shape (T, kN). Half the sum of their squares, times
            the factor c of the loss, is the weighted loss.
    """

    eigenvalues: Tensor
    vectors: Tensor
    values: Tensor


def components(
    kernel: Tensor, outputs: Tensor, targets: Tensor, *, weights: Tensor | None = None
) -> Components:
    r"""Project residuals, measured or predicted, on the kernel's eigenvectors (Eq. 5 and 11).

    Under :func:`predict_descent` row t is row 0 times :math:`(1 - \eta c \lambda)^t`; under
    :func:`predict_flow` times :math:`e^{-\eta c \lambda t}`.

    Args:
        kernel: Shape (N, N), (kN, kN) or (k, N, k, N).
        outputs: Shape (T, N) or (T, k, N).
        targets: Shape (N,) or (k, N).
        weights: See :func:`predict_descent`.

    Returns:
        Eigenvalues, eigenvectors and the T x kN components.

    Raises:
        ValueError: Shapes do not fit, or the kernel is not symmetric positive semi-definite.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> found = components(K, torch.zeros(1, 2), torch.tensor([3.0, 4.0]))
        >>> found.eigenvalues, found.values.abs()
        (tensor([1., 2.], dtype=torch.float64), tensor([[4., 3.]], dtype=torch.float64))
    """
    if outputs.ndim != targets.ndim + 1 or outputs.shape[1:] != targets.shape or not len(outputs):
        raise ValueError(
            f"outputs must have shape (T, *targets.shape) with targets of shape "
            f"{tuple(targets.shape)}, found {tuple(outputs.shape)}"
        )
    system, _, goal = _system_of(kernel, outputs[0], targets, weights)
    residuals = outputs.detach().to(goal).reshape(len(outputs), -1) - goal.reshape(-1)
    return Components(
        system.eigenvalues, system.vectors, (residuals * system.root) @ system.vectors
    )


def critical_learning_rate(
    kernel: Tensor, *, weights: Tensor | None = None, reduction: Reduction = "sum"
) -> float:
    r"""Return the learning rate :math:`2 / (c \lambda_{max})` that descent must stay below.

    The eigenvalue is that of :math:`W^{1/2} K W^{1/2}`. At half of it the fastest component is gone
    in one step.

    Args:
        kernel: Shape (k, N, k, N); a square matrix is one task's (N, N), or (kN, kN) of the k tasks
            that have weights.
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        The rate; infinity for a kernel of zeros.

    Raises:
        ValueError: See :func:`predict_descent`.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([2.0, 1.0]))
        >>> critical_learning_rate(K)
        1.0
        >>> critical_learning_rate(K, weights=torch.tensor([0.5, 4.0]))  # Two tasks, one sample.
        0.5
    """
    system = _System(kernel, _tasks_of(kernel, weights), weights)
    return _critical(system, reduction)


def _critical(system: _System, reduction: Reduction) -> float:
    top = system.factor(reduction) * float(system.eigenvalues[-1])
    return 2.0 / top if top > 0 else math.inf


def task_losses(outputs: Tensor, targets: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    r"""Return each task's loss, not weighted.

    Args:
        outputs: Shape (..., k, N).
        targets: Shape (k, N).
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.

    Returns:
        Shape (..., k).

    Raises:
        ValueError: Shapes do not fit, or ``reduction`` is unknown.

    Example:
        >>> import torch
        >>> f, y = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])
        >>> task_losses(f, y), task_losses(f, y, reduction="mean")
        (tensor([2.5000]), tensor([2.5000]))
    """
    if targets.ndim != 2 or outputs.shape[-2:] != targets.shape:
        raise ValueError(
            "outputs must have shape (..., k, N) and targets (k, N); found "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
        )
    squares = (outputs - targets).square()
    if reduction == "sum":
        return squares.sum(-1) / 2
    if reduction == "mean":
        return squares.mean(-1)
    raise ValueError(f"reduction must be 'sum' or 'mean'. Found reduction={reduction!r}.")


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1. Found tolerance={tolerance}.")


def component_steps(
    kernel: Tensor,
    *,
    learning_rate: float,
    tolerance: float = 0.01,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Return the steps of descent until each eigencomponent's share of the loss has shrunk.

    The least t with :math:`(1 - \eta c \lambda)^{2t} \le` ``tolerance``: the loss is quadratic in
    the residual.

    Args:
        kernel: See :func:`critical_learning_rate`.
        learning_rate: eta.
        tolerance: Share of the initial loss that may be left, between 0 and 1.
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        float64 of shape (kN,), in the order of ascending eigenvalues; infinity for a component that
        does not decay.

    Raises:
        ValueError: See :func:`predict_descent`.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([0.0, 1.0, 2.0, 8.0]))
        >>> component_steps(K, learning_rate=0.25, tolerance=0.2)
        tensor([inf, 3., 2., inf], dtype=torch.float64)
    """
    _check_tolerance(tolerance)
    system = _System(kernel, _tasks_of(kernel, weights), weights)
    return _steps_until(system.rates(learning_rate, reduction), math.log(tolerance) / 2)


def _steps_until(rates: Tensor, log_share: float | Tensor) -> Tensor:
    """Return the least whole t with t log|1 - rate| <= log_share < 0, infinity if there is none."""
    log = torch.where(rates < 1, torch.log1p(-rates.clamp_max(1.0)), (1.0 - rates).abs().log())
    # A hair less, so that rounding adds no step where t comes out whole.
    t = torch.ceil(log_share / log * (1 - 1e-12)).clamp_min(1.0)
    return torch.where(log < 0, t, math.inf)


def task_steps(
    kernel: Tensor,
    initial: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    tolerance: float = 0.01,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Return the steps of descent after which each task's loss stays below a share of its start.

    A task's loss is a mixture of the squared decays of every eigencomponent that reaches it, so
    with cross-task blocks it may rise before it falls; the last crossing counts. It is looked for
    among all of the first 256 steps, then at steps 1 % apart, and made exact between two of those.

    Args:
        kernel: Shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        learning_rate: eta.
        tolerance: Share of the task's initial loss that may be left, between 0 and 1.
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        float64 of shape (k,). Infinity for a task that never gets there, for one of weight 0, and
        for all of them at or above the critical learning rate.

    Raises:
        ValueError: See :func:`predict_descent`.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([2.0, 0.1]))  # Two tasks of one sample.
        >>> f, y = torch.zeros(2, 1), torch.ones(2, 1)
        >>> task_steps(K, f, y, learning_rate=0.25)
        tensor([ 4., 91.], dtype=torch.float64)
        >>> task_steps(K, f, y, learning_rate=0.25, weights=torch.tensor([0.5, 10.0]))
        tensor([9., 9.], dtype=torch.float64)
    """
    _check_tolerance(tolerance)
    system, start, goal = _system_of(kernel, initial, targets, weights)
    return _task_steps(system, start, goal, system.rates(learning_rate, reduction), tolerance)


def _task_steps(
    system: _System, initial: Tensor, targets: Tensor, rates: Tensor, tolerance: float
) -> Tensor:
    bounds = (initial - targets).square().sum(1) * tolerance
    result = torch.full_like(bounds, math.inf)
    # Rounding leaves a task that starts at its targets there; nothing is left to shrink.
    result[bounds == 0] = 0.0
    asked = (system.weights > 0) & (bounds > 0)
    if bool(rates[-1] >= 2) or not bool(asked.any()):
        return result

    # By then no component holds more than its share of the smallest bound.
    start = system.vectors.T @ (system.root * (initial - targets).reshape(-1))
    limit = (system.weights * bounds)[asked].min() / len(rates)
    shares = (limit / start.square()).log() / 2
    waits = _steps_until(rates, shares.clamp_max(-1e-300))
    waits = waits[torch.isfinite(waits) & (shares < 0)]
    horizon = int(min(float(waits.max()) if len(waits) else 1.0, 2.0**53))

    def losses(steps: Tensor) -> Tensor:
        outputs = _predict(system, initial, targets, steps, rates, flow=False)
        return (outputs - targets).square().sum(2)

    dense = min(horizon, 256)
    grid = list(range(dense + 1))
    while grid[-1] < horizon:
        grid.append(min(max(grid[-1] + 1, int(grid[-1] * 1.01)), horizon))
    places = torch.tensor(grid, dtype=torch.float64, device=rates.device)
    above = torch.cat([losses(chunk) for chunk in places.split(256)]) > bounds
    for task in asked.nonzero()[:, 0].tolist():
        last = int(above[:, task].nonzero()[-1, 0])  # Step 0 is above: the tolerance is below 1.
        if last == len(grid) - 1:
            continue
        low, high = grid[last], grid[last + 1]
        while high - low > 1:
            middle = (low + high) // 2
            if bool(losses(places.new_tensor([middle]))[0, task] > bounds[task]):
                low = middle
            else:
                high = middle
        result[task] = high
    return result


@dataclass(frozen=True)
class Conditioning:
    r"""How well a weighted problem is conditioned, and what that means in steps.

    Attributes:
        weights: Shape (k,).
        block_eigenvalues: :math:`w_i \lambda_i`, the largest eigenvalue of each task's block of
            :math:`W^{1/2} K W^{1/2}`: what decides the task's speed under Eq. 12. Shape (k,).
        proposition_eigenvalues: :math:`w_i^2 \lambda_i`, that of each block in Prop. 3.3 as
            printed: what Eq. 14 makes equal. Shape (k,).
        condition_number: Largest over smallest eigenvalue of :math:`W^{1/2} K W^{1/2}`; infinity if
            the smallest is zero but for rounding.
        critical_learning_rate: :math:`2 / (c \lambda_{max})`.
        learning_rate: The one that the steps are predicted for.
        task_steps: Steps until each task's loss stays below the tolerance, shape (k,).
        task_steps_alone: The same with the blocks between two tasks put to zero: as if the tasks
            shared no parameter. Shape (k,).
    """

    weights: Tensor
    block_eigenvalues: Tensor
    proposition_eigenvalues: Tensor
    condition_number: float
    critical_learning_rate: float
    learning_rate: float
    task_steps: Tensor
    task_steps_alone: Tensor


@dataclass(frozen=True)
class WeightingEffect:
    """A problem before and after it was given weights.

    Attributes:
        before: With all weights 1.
        after: With the weights.
    """

    before: Conditioning
    after: Conditioning


def weighting_effect(
    kernel: Tensor,
    initial: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    exponent: float = 0.5,
    learning_rate: float | None = None,
    tolerance: float = 0.01,
    reduction: Reduction = "sum",
) -> WeightingEffect:
    r"""Predict what task weights do to conditioning and to each task's steps (Eq. 11 to 15).

    The weights of Eq. 15, exponent 1/2, make the eigenvalues :math:`w_i^2 \lambda_i` of Prop. 3.3
    equal. Under the loss of Eq. 12 block i's largest eigenvalue is :math:`w_i \lambda_i`, so with
    them the ratio of two tasks' speeds is the square root of what it was; exponent 1 makes it 1.

    Blocks between tasks share eigenvectors among them. Where they are zero, each task has its own
    eigenvalues and its own pace; where they are not, a component may belong to several tasks, and
    one task's loss waits for the others'. ``task_steps_alone`` is there to compare.

    Args:
        kernel: Shape (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (k, N).
        targets: Same shape.
        weights: Shape (k,), not negative; those of Eq. 15, from this kernel's blocks, if None.
        exponent: Of Eq. 15, where ``weights`` is None.
        learning_rate: eta, for both; half the critical rate of each if None, so that the steps tell
            of the conditioning alone.
        tolerance: Share of a task's initial loss that may be left, between 0 and 1.
        reduction: See :func:`predict_descent`.

    Returns:
        The problem with all weights 1, and with the weights.

    Raises:
        ValueError: See :func:`predict_descent`; or the kernel is zero, so that there is no learning
            rate.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([16.0, 1.0]))  # Two tasks of one sample.
        >>> f, y = torch.zeros(2, 1), torch.ones(2, 1)
        >>> effect = weighting_effect(K, f, y)
        >>> effect.before.condition_number, effect.before.task_steps
        (16.0, tensor([ 1., 36.], dtype=torch.float64))
        >>> round(effect.after.condition_number, 6), effect.after.task_steps
        (4.0, tensor([1., 9.], dtype=torch.float64))
        >>> effect.after.proposition_eigenvalues
        tensor([8.5000, 8.5000], dtype=torch.float64)
    """
    if targets.ndim != 2:
        raise ValueError(f"targets must have shape (k, N), found {tuple(targets.shape)}")
    plain, start, goal = _system_of(kernel, initial, targets, None)
    k, n = plain.tasks, plain.samples
    blocks = plain.kernel.reshape(k, n, k, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    tops = torch.linalg.eigvalsh(blocks)[:, -1].clamp_min(0.0)
    if weights is None:
        weights = eigenvalue_weights(tops, exponent)
    apart = torch.block_diag(*blocks.unbind())
    _check_tolerance(tolerance)

    def condition(system: _System) -> Conditioning:
        critical = _critical(system, reduction)
        if learning_rate is None and math.isinf(critical):
            raise ValueError("the kernel is zero: nothing is learned; look at the network")
        eta = critical / 2 if learning_rate is None else learning_rate
        lam = system.eigenvalues
        alone = _System(apart, k, system.weights)
        return Conditioning(
            weights=system.weights,
            block_eigenvalues=system.weights * tops,
            proposition_eigenvalues=system.weights.square() * tops,
            condition_number=float(lam[-1] / lam[0]) if lam[0] > 0 else math.inf,
            critical_learning_rate=critical,
            learning_rate=eta,
            task_steps=_task_steps(system, start, goal, system.rates(eta, reduction), tolerance),
            task_steps_alone=_task_steps(
                alone, start, goal, alone.rates(eta, reduction), tolerance
            ),
        )

    return WeightingEffect(condition(plain), condition(_System(plain.kernel, k, weights)))


def prediction_error(predicted: Tensor, measured: Tensor, targets: Tensor) -> float:
    """Return the largest distance of prediction and measurement, relative to the first residual.

    Args:
        predicted: Shape (T, N) or (T, k, N).
        measured: Same shape; its first row is where training started.
        targets: Shape (N,) or (k, N).

    Returns:
        The maximum over the T rows of the Euclidean distance, divided by that of the first measured
        row from the targets.

    Raises:
        ValueError: Shapes do not fit, or training starts at the targets.

    Example:
        >>> import torch
        >>> measured = torch.tensor([[0.0], [1.0]])
        >>> prediction_error(torch.tensor([[0.0], [1.5]]), measured, torch.tensor([2.0]))
        0.25
    """
    if predicted.shape != measured.shape or measured.shape[1:] != targets.shape:
        raise ValueError(
            "predicted and measured must have shape (T, *targets.shape); found "
            f"{tuple(predicted.shape)}, {tuple(measured.shape)} and {tuple(targets.shape)}"
        )
    scale = float((measured[0] - targets).norm())
    if scale == 0:
        raise ValueError("the first measured row is the targets themselves: nothing to learn")
    return float((predicted - measured).flatten(1).norm(dim=1).max()) / scale


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
}


class WideMLP(nn.Module):
    r"""A fully connected network with k linear heads, wide enough to be near its kernel.

    Layer: :math:`h' = \phi(\sigma_w W h / \sqrt{m} + \sigma_b b)` with m inputs and standard normal
    W and b in the NTK parametrisation; in the standard one the scales are part of W and b, so that
    the function at the start is the same number for number, but the kernel grows with the width.
    Task i's output is ``scales[i]`` times a linear head's.

    With independent heads the blocks K_ij between tasks vanish as the width grows, and the blocks
    K_ii become ``scales[i] ** 2`` times one kernel; ``head_correlation`` makes the heads start
    alike, so that cross-task blocks stay.

    Args:
        inputs: Features of a sample.
        width: Units of each hidden layer.
        depth: Hidden layers.
        tasks: k.
        activation: ``"tanh"``, ``"relu"`` or ``"erf"``.
        parametrisation: ``"ntk"`` or ``"standard"``.
        scales: Factor of each task's outputs, k numbers; 1 each if None.
        head_correlation: Correlation of two heads' initial weights, 0 to 1.
        weight_scale: :math:`\sigma_w`.
        bias_scale: :math:`\sigma_b`.
        seed: Of the initial parameters.

    Raises:
        ValueError: A size is below 1, a name is unknown, or a number is out of range.

    Example:
        >>> import torch
        >>> model = WideMLP(inputs=2, width=64, tasks=3)
        >>> model(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([3, 5])
    """

    scales: Tensor

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        depth: int = 1,
        tasks: int = 1,
        activation: str = "tanh",
        parametrisation: str = "ntk",
        scales: Sequence[float] | None = None,
        head_correlation: float = 0.0,
        weight_scale: float = 1.5,
        bias_scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, width, depth, tasks) < 1:
            raise ValueError(
                "inputs, width, depth and tasks must be at least 1. Found "
                f"inputs={inputs}, width={width}, depth={depth}, tasks={tasks}."
            )
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(_ACTIVATIONS)}. "
                f"Found activation={activation!r}."
            )
        if parametrisation not in ("ntk", "standard"):
            raise ValueError(
                "parametrisation must be 'ntk' or 'standard'. "
                f"Found parametrisation={parametrisation!r}."
            )
        if not 0 <= head_correlation <= 1:
            raise ValueError(
                f"head_correlation must be in [0, 1]. Found head_correlation={head_correlation}."
            )
        if scales is not None and len(scales) != tasks:
            raise ValueError(f"scales must be {tasks} numbers, found {len(scales)}")
        self.activation = _ACTIVATIONS[activation]
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sizes = [inputs] + [width] * depth
        raw = [(draw(out, into), draw(out)) for into, out in itertools.pairwise(sizes)]
        common = draw(1, width) * math.sqrt(head_correlation)
        head = common + draw(tasks, width) * math.sqrt(1 - head_correlation)
        raw.append((head, draw(tasks)))
        self._multipliers = []
        self.layers = nn.ParameterList()
        for weight, bias in raw:
            scale = weight_scale / math.sqrt(weight.shape[1])
            if parametrisation == "ntk":
                self._multipliers.append((scale, bias_scale))
                self.layers.extend([nn.Parameter(weight), nn.Parameter(bias)])
            else:
                self._multipliers.append((1.0, 1.0))
                self.layers.extend([nn.Parameter(scale * weight), nn.Parameter(bias_scale * bias)])
        factors = [1.0] * tasks if scales is None else list(scales)
        self.register_buffer("scales", torch.tensor(factors, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all tasks, shape (k, N), for inputs of shape (N, inputs)."""
        last = len(self._multipliers) - 1
        for i, (by_weight, by_bias) in enumerate(self._multipliers):
            x = by_weight * (x @ self.layers[2 * i].T) + by_bias * self.layers[2 * i + 1]
            if i < last:
                x = self.activation(x)
        return self.scales[:, None] * x.T


@dataclass(frozen=True)
class Simulation:
    """What gradient descent did, and all that is needed to predict it.

    Attributes:
        steps: Recorded steps, shape (T,), from 0.
        outputs: Outputs at those steps, shape (T, k, N).
        targets: Shape (k, N).
        kernel: Output kernel at the start, shape (k, N, k, N).
        kernel_drift: Frobenius norm of the kernel's change over the training, relative to the
            kernel's.
        weights: Shape (k,).
        learning_rate: eta.
        reduction: Of the loss.
    """

    steps: Tensor
    outputs: Tensor
    targets: Tensor
    kernel: Tensor
    kernel_drift: float
    weights: Tensor
    learning_rate: float
    reduction: Reduction

    def predicted(self, *, flow: bool = False) -> Tensor:
        """Return the outputs that the kernel at the start predicts, shape (T, k, N).

        Args:
            flow: Gradient flow (Eq. 10) instead of the steps that were made.
        """
        start = self.outputs[0]
        if flow:
            return predict_flow(
                self.kernel,
                start,
                self.targets,
                self.steps,
                learning_rate=self.learning_rate,
                weights=self.weights,
                reduction=self.reduction,
            )
        return predict_descent(
            self.kernel,
            start,
            self.targets,
            self.steps,
            learning_rate=self.learning_rate,
            weights=self.weights,
            reduction=self.reduction,
        )

    def error(self, *, flow: bool = False) -> float:
        """Return :func:`prediction_error` of the prediction.

        Args:
            flow: See :meth:`predicted`.
        """
        return prediction_error(self.predicted(flow=flow), self.outputs, self.targets)

    def losses(self) -> Tensor:
        """Return the measured losses of the tasks, shape (T, k)."""
        return task_losses(self.outputs, self.targets, reduction=self.reduction)


def _kernel(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the extended NTK of the outputs (Eq. 8 and 9), shape (k, N, k, N)."""

    def outputs(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, values, (inputs,))
        return result

    jacobians = jacrev(outputs)(parameters)
    rows = [jacobian.flatten(2) for jacobian in jacobians.values()]
    k, n = rows[0].shape[:2]
    total: Tensor = rows[0].new_zeros(k * n, k * n)
    for row in rows:
        flat = row.reshape(k * n, -1)
        total += flat @ flat.T
    return total.reshape(k, n, k, n)


def simulate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    learning_rate: float | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "sum",
    record: Sequence[int] | None = None,
) -> Simulation:
    r"""Train by full-batch gradient descent on :math:`\sum_i w_i \ell_i`, and record the outputs.

    The model itself is left as it was. The kernel at the start and at the end comes from whole
    Jacobians, kN x P numbers: meant for small problems.

    Args:
        model: Maps inputs to outputs of shape (k, N), in float64; :class:`WideMLP`, or any module.
        inputs: What the model takes, float64.
        targets: Shape (k, N).
        steps: Steps to train.
        learning_rate: eta; half of :func:`critical_learning_rate` if None.
        weights: Task weights, shape (k,), not negative; 1 each if None.
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.
        record: Steps at which to record, 0 and ``steps`` always; every step if None.

    Returns:
        The recorded outputs, the kernel, and the settings that a prediction needs.

    Raises:
        ValueError: Shapes do not fit, or a number is out of range.
        TypeError: A parameter or a tensor is not float64, whose rounding would hide the error that
            is to be measured.
        FloatingPointError: Training diverged.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
        >>> y = torch.stack([torch.sin(3 * x[:, 0]), x[:, 0]])
        >>> run = simulate(WideMLP(1, 512, tasks=2), x, y, steps=50)
        >>> run.outputs.shape, run.error() < 0.05
        (torch.Size([51, 2, 4]), True)
    """
    parameters = {
        name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
    }
    for name, tensor in {**parameters, "inputs": inputs, "targets": targets}.items():
        if tensor.dtype != torch.float64:
            raise TypeError(
                f"{name} must be float64, found {tensor.dtype}; call model.double() and "
                "tensor.double()"
            )
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Found steps={steps}.")
    wanted = set(range(steps + 1) if record is None else record) | {0, steps}
    if min(wanted) < 0 or max(wanted) > steps:
        raise ValueError(f"record must be steps from 0 to {steps}, found {sorted(wanted)}")

    def outputs_at(values: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, values, (inputs,))
        return result

    with torch.no_grad():
        found = outputs_at(parameters)
    if targets.ndim != 2 or found.shape != targets.shape:
        raise ValueError(
            "the model's outputs and the targets must have one shape (k, N), found "
            f"{tuple(found.shape)} and {tuple(targets.shape)}"
        )
    kernel = _kernel(model, parameters, inputs)
    w = _check_weights(weights, len(targets), targets)
    if learning_rate is None:
        learning_rate = critical_learning_rate(kernel, weights=w, reduction=reduction) / 2
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive. Found learning_rate={learning_rate}.")

    recorded = {}
    for step in range(steps + 1):
        for p in parameters.values():
            p.requires_grad_(True)
        outputs = outputs_at(parameters)
        if step in wanted:
            recorded[step] = outputs.detach()
        if step == steps:
            break
        total = (w * task_losses(outputs, targets, reduction=reduction)).sum()
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(
                f"the loss is {float(total.detach())} at step {step} with "
                f"learning_rate={learning_rate:.3g}; the critical rate at the start was "
                f"{critical_learning_rate(kernel, weights=w, reduction=reduction):.3g}"
            )
        gradients = torch.autograd.grad(total, list(parameters.values()))
        parameters = {
            name: (p - learning_rate * g).detach()
            for (name, p), g in zip(parameters.items(), gradients, strict=True)
        }
    ends = {name: p.detach() for name, p in parameters.items()}
    drift = float((_kernel(model, ends, inputs) - kernel).norm() / kernel.norm())
    order = sorted(recorded)
    return Simulation(
        steps=torch.tensor(order),
        outputs=torch.stack([recorded[step] for step in order]),
        targets=targets,
        kernel=kernel,
        kernel_drift=drift,
        weights=w,
        learning_rate=learning_rate,
        reduction=reduction,
    )
