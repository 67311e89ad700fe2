"""Predicted numbers of steps until convergence, and how task weights change them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkmtl.analysis._system import (
    Reduction,
    System,
    predict_outputs,
    require_real,
    system_of,
    tasks_of,
)
from ntkmtl.weighting._ntkmtl import eigenvalue_weights

__all__ = [
    "Conditioning",
    "WeightingEffect",
    "component_steps",
    "task_steps",
    "weighting_effect",
]


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
    r"""Return the steps of descent until each eigencomponent's loss falls below a tolerance.

    This is the least t with :math:`(1 - \eta c \lambda)^{2t} \le` ``tolerance``, as the loss is
    quadratic in the residual.

    Args:
        kernel: See :func:`critical_learning_rate`.
        learning_rate: eta.
        tolerance: Share of the initial loss that may remain, between 0 and 1.
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
    system = System(kernel, tasks_of(kernel, weights), weights)
    return _steps_until(system.rates(learning_rate, reduction), math.log(tolerance) / 2)


def _steps_until(rates: Tensor, log_share: float | Tensor) -> Tensor:
    """Return the least whole t with t log|1 - rate| <= log_share < 0, infinity if there is none."""
    log = torch.where(rates < 1, torch.log1p(-rates.clamp_max(1.0)), (1.0 - rates).abs().log())
    # Slightly less, so that rounding adds no step if t is a whole number.
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
    r"""Return the steps of descent after which each task's loss stays below a tolerance.

    With nonzero blocks between tasks, a task's loss may rise before it falls; the last crossing of
    the tolerance counts. It is searched among the first 256 steps one by one, then at steps 1 %
    apart, and refined by bisection.

    Args:
        kernel: Shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        learning_rate: eta.
        tolerance: Share of the task's initial loss that may remain, between 0 and 1.
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        float64 of shape (k,). Infinity for a task that never gets below the tolerance, for a task
        of weight 0, and for all tasks at or above the critical learning rate.

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
    system, start, goal = system_of(kernel, initial, targets, weights)
    return _task_steps(system, start, goal, system.rates(learning_rate, reduction), tolerance)


def _task_steps(
    system: System, initial: Tensor, targets: Tensor, rates: Tensor, tolerance: float
) -> Tensor:
    bounds = (initial - targets).square().sum(1) * tolerance
    result = torch.full_like(bounds, math.inf)
    # A task that starts at its targets needs no step.
    result[bounds == 0] = 0.0
    asked = (system.weights > 0) & (bounds > 0)
    if bool(rates[-1] >= 2) or not bool(asked.any()):
        return result

    # At the horizon every component is below its share of the smallest bound.
    start = system.vectors.T @ (system.root * (initial - targets).reshape(-1))
    limit = (system.weights * bounds)[asked].min() / len(rates)
    shares = (limit / start.square()).log() / 2
    waits = _steps_until(rates, shares.clamp_max(-1e-300))
    waits = waits[torch.isfinite(waits) & (shares < 0)]
    horizon = int(min(float(waits.max()) if len(waits) else 1.0, 2.0**53))

    def losses(steps: Tensor) -> Tensor:
        outputs = predict_outputs(system, initial, targets, steps, rates, flow=False)
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
    r"""Conditioning of a weighted problem, and predicted steps.

    Attributes:
        weights: Shape (k,).
        block_eigenvalues: :math:`w_i \lambda_i`, the largest eigenvalue of each task's block of
            :math:`W^{1/2} K W^{1/2}`, shape (k,). It determines the task's speed under Eq. 12.
        proposition_eigenvalues: :math:`w_i^2 \lambda_i`, the largest eigenvalue of each block in
            Prop. 3.3 as printed, shape (k,). Eq. 14 makes them equal.
        condition_number: Largest over smallest eigenvalue of :math:`W^{1/2} K W^{1/2}`; infinity if
            the smallest is zero within rounding errors.
        critical_learning_rate: :math:`2 / (c \lambda_{max})`.
        learning_rate: The learning rate of the predictions.
        task_steps: Steps until each task's loss stays below the tolerance, shape (k,).
        task_steps_alone: The same with blocks between tasks set to zero, as if the tasks shared no
            parameter. Shape (k,).
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
    r"""Predict how task weights change conditioning and each task's steps (Eq. 11 to 15).

    The weights of Eq. 15 with exponent 1/2 make the eigenvalues :math:`w_i^2 \lambda_i` of
    Prop. 3.3 equal. Under the loss of Eq. 12 block i's largest eigenvalue is
    :math:`w_i \lambda_i`. So these weights reduce the ratio of two tasks' speeds to its square
    root; exponent 1 reduces it to 1.

    If blocks between tasks are zero, each task has its own eigenvalues and converges at its own
    rate. Otherwise a component may belong to several tasks, and one task's loss depends on the
    others'. Compare ``task_steps_alone``, which ignores these blocks.

    Args:
        kernel: Shape (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (k, N).
        targets: Same shape.
        weights: Shape (k,), not negative; None for those of Eq. 15 from this kernel's blocks.
        exponent: Exponent of Eq. 15, if ``weights`` is None.
        learning_rate: The learning rate eta for both; None for half the critical rate of each, so
            that the steps reflect the conditioning only.
        tolerance: Share of a task's initial loss that may remain, between 0 and 1.
        reduction: See :func:`predict_descent`.

    Returns:
        The problem with all weights 1, and with the weights.

    Raises:
        ValueError: See :func:`predict_descent`; or the kernel is zero and ``learning_rate`` None.

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
    require_real("targets", targets)
    if targets.ndim != 2:
        raise ValueError(f"targets must have shape (k, N), found {tuple(targets.shape)}")
    plain, start, goal = system_of(kernel, initial, targets, None)
    k, n = plain.tasks, plain.samples
    blocks = plain.kernel.reshape(k, n, k, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    tops = torch.linalg.eigvalsh(blocks)[:, -1].clamp_min(0.0)
    if weights is None:
        weights = eigenvalue_weights(tops, exponent)
    apart = torch.block_diag(*blocks.unbind())
    _check_tolerance(tolerance)

    def condition(system: System) -> Conditioning:
        critical = system.critical_rate(reduction)
        if learning_rate is None and math.isinf(critical):
            raise ValueError("the kernel is zero: nothing is learned; look at the network")
        eta = critical / 2 if learning_rate is None else learning_rate
        lam = system.eigenvalues
        alone = System(apart, k, system.weights)
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

    return WeightingEffect(condition(plain), condition(System(plain.kernel, k, weights)))
