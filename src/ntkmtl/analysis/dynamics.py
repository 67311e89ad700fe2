r"""Training as a constant kernel predicts it.

k tasks with squared losses are trained on N samples by gradient descent on
:math:`\sum_i w_i \ell_i` (Eq. 12). As long as the extended NTK K of the outputs (Eq. 8) is
constant, one step changes the outputs f, stacked to a vector of length kN, by

.. math:: \Delta f = -\eta c \, K W (f - y), \qquad W = \mathrm{diag}(w_1 I_N, ..., w_k I_N),

where c depends on the loss: 1 for ``reduction="sum"``, the paper's :math:`\ell_i = \frac12 \sum_u
(f_{iu} - y_{iu})^2` (Eq. 19), and 2/N for ``reduction="mean"``, the mean of squares as in
``torch.nn.functional.mse_loss``. All functions here follow from this equation. K W is not
symmetric. But scaled residuals :math:`s = W^{1/2} (f - y)` evolve by the symmetric matrix
:math:`S = W^{1/2} K W^{1/2}`, so each eigencomponent of s decays independently:

- by :math:`(1 - \eta c \lambda)^t` after t steps of gradient descent (:func:`predict_descent`),
- by :math:`e^{-\eta c \lambda t}` under gradient flow (:func:`predict_flow`). This is Eq. 4 and 10
  if all weights are 1, the outputs start at 0 and the loss is a sum.

Proposition 3.3 has :math:`w_i w_j K_{ij}` where :math:`S` has :math:`\sqrt{w_i w_j} K_{ij}`. Its
left-hand side is the derivative of the scaled outputs :math:`w_i f_i` (Eq. 29), but its right-hand
side contains the residuals without the scale. If both are scaled, it holds for the loss
:math:`\sum_i w_i^2 \ell_i` with outputs and targets multiplied by w. So the weights of Eq. 12 are
the squares of those of the proposition, and they multiply eigenvalues of K_ii by :math:`w_i`, not
by :math:`w_i^2`.

A kernel has shape (N, N) for one task; (k, N, k, N), or (kN, kN) with the samples of the first task
first, for k tasks. Outputs and targets have shape (N,) or (k, N). Arithmetic is in float64. The
weights are assumed to apply to all parameters of the kernel, heads included. See
``docs/analysis/theory.md`` for measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ntkmtl.analysis._system import (
    Reduction,
    System,
    check_steps,
    predict_outputs,
    require_real,
    system_of,
    tasks_of,
)

__all__ = [
    "Components",
    "components",
    "critical_learning_rate",
    "predict_descent",
    "predict_flow",
    "task_losses",
]


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
    r"""Return the outputs after some steps of full-batch gradient descent with constant kernel.

    .. math:: W^{1/2} (f(t) - y) = V (1 - \eta c \Lambda)^t V^\top W^{1/2} (f(0) - y), \qquad
              W^{1/2} K W^{1/2} = V \Lambda V^\top.

    Exact for a model that is linear in its parameters; for a network as accurate as its kernel is
    constant. Descent is stable only below :func:`critical_learning_rate`.

    Args:
        kernel: Output kernel at the start, shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        steps: T numbers of steps, whole and not negative.
        learning_rate: The learning rate eta.
        weights: Task weights of Eq. 12, shape (k,), not negative; None for 1 each. The outputs of a
            task of weight 0 change only through the other tasks.
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.

    Returns:
        float64 outputs of shape (T, N) or (T, k, N).

    Raises:
        TypeError: An argument is not a tensor of real numbers.
        ValueError: Shapes do not match, the kernel is not symmetric positive semi-definite, or a
            number is out of range or not finite.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # Rates 1 / 2 and 1 / 4 at eta = 1 / 4.
        >>> y = torch.tensor([1.0, 1.0])
        >>> predict_descent(K, torch.zeros(2), y, [0, 1, 2], learning_rate=0.25)
        tensor([[0.0000, 0.0000],
                [0.5000, 0.2500],
                [0.7500, 0.4375]], dtype=torch.float64)
    """
    system, start, goal = system_of(kernel, initial, targets, weights)
    rates = system.rates(learning_rate, reduction)
    t = check_steps(steps, whole=True).to(rates.device)
    return predict_outputs(system, start, goal, t, rates, flow=False).reshape(
        len(t), *targets.shape
    )


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
    r"""Return the outputs under gradient flow with constant kernel (Eq. 4 and 10).

    .. math:: W^{1/2} (f(t) - y) = V e^{-\eta c \Lambda t} V^\top W^{1/2} (f(0) - y).

    Eq. 4 and 10 are the special case of outputs that start at 0, weights 1 and
    ``reduction="sum"``. As there, time is counted in steps of size ``learning_rate``. The result is
    the limit of :func:`predict_descent` for small steps.

    Args:
        kernel: Output kernel at the start, shape (N, N), (kN, kN) or (k, N, k, N).
        initial: Outputs at the start, shape (N,) or (k, N).
        targets: Same shape.
        times: T times, not negative.
        learning_rate: The learning rate eta; 1 for the time of Eq. 2.
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
    system, start, goal = system_of(kernel, initial, targets, weights)
    rates = system.rates(learning_rate, reduction)
    t = check_steps(times, whole=False).to(rates.device)
    return predict_outputs(system, start, goal, t, rates, flow=True).reshape(len(t), *targets.shape)


@dataclass(frozen=True)
class Components:
    r"""Residuals in the eigenbasis of :math:`W^{1/2} K W^{1/2}` (Eq. 5 and 11).

    Attributes:
        eigenvalues: Ascending, shape (kN,). Those within rounding errors of zero are set to 0.
        vectors: Eigenvectors as columns, shape (kN, kN).
        values: The components :math:`V^\top W^{1/2} (f - y)`, shape (T, kN). The weighted loss is c
            times half the sum of their squares.
    """

    eigenvalues: Tensor
    vectors: Tensor
    values: Tensor


def components(
    kernel: Tensor, outputs: Tensor, targets: Tensor, *, weights: Tensor | None = None
) -> Components:
    r"""Project measured or predicted residuals on the kernel's eigenvectors (Eq. 5 and 11).

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
        TypeError: An argument is not a tensor of real numbers.
        ValueError: Shapes do not match, a number is not finite, or the kernel is not symmetric
            positive semi-definite.

    Example:
        >>> import torch
        >>> K = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> found = components(K, torch.zeros(1, 2), torch.tensor([3.0, 4.0]))
        >>> found.eigenvalues, found.values.abs()
        (tensor([1., 2.], dtype=torch.float64), tensor([[4., 3.]], dtype=torch.float64))
    """
    require_real("outputs", outputs, finite=True)
    require_real("targets", targets)
    if outputs.ndim != targets.ndim + 1 or outputs.shape[1:] != targets.shape or not len(outputs):
        raise ValueError(
            f"outputs must have shape (T, *targets.shape) with targets of shape "
            f"{tuple(targets.shape)}, found {tuple(outputs.shape)}"
        )
    system, _, goal = system_of(kernel, outputs[0], targets, weights)
    residuals = outputs.detach().to(goal).reshape(len(outputs), -1) - goal.reshape(-1)
    return Components(
        system.eigenvalues, system.vectors, (residuals * system.root) @ system.vectors
    )


def critical_learning_rate(
    kernel: Tensor, *, weights: Tensor | None = None, reduction: Reduction = "sum"
) -> float:
    r"""Return the learning rate :math:`2 / (c \lambda_{max})`, above which descent diverges.

    The eigenvalue is that of :math:`W^{1/2} K W^{1/2}`. At half this rate the fastest component
    vanishes in one step.

    Args:
        kernel: Shape (k, N, k, N), or a square matrix: (N, N) of one task without ``weights``, or
            (kN, kN) of k tasks with k weights.
        weights: See :func:`predict_descent`.
        reduction: See :func:`predict_descent`.

    Returns:
        The learning rate; infinity for a kernel of zeros.

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
    system = System(kernel, tasks_of(kernel, weights), weights)
    return system.critical_rate(reduction)


def task_losses(outputs: Tensor, targets: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    r"""Return the unweighted loss of each task.

    Args:
        outputs: Shape (..., k, N).
        targets: Shape (k, N).
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.

    Returns:
        Shape (..., k).

    Raises:
        TypeError: An argument is not a tensor of real numbers.
        ValueError: Shapes do not match, or ``reduction`` is unknown.

    Example:
        >>> import torch
        >>> f, y = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])
        >>> task_losses(f, y), task_losses(f, y, reduction="mean")
        (tensor([2.5000]), tensor([2.5000]))
    """
    require_real("outputs", outputs)
    require_real("targets", targets)
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
