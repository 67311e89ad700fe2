"""Full-batch gradient descent, recorded for comparison with predictions of a constant kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from ntkmtl.analysis._system import Reduction, check_weights, require_real
from ntkmtl.analysis.dynamics import (
    critical_learning_rate,
    predict_descent,
    predict_flow,
    task_losses,
)

__all__ = ["Simulation", "WideMLP", "prediction_error", "simulate"]


def prediction_error(predicted: Tensor, measured: Tensor, targets: Tensor) -> float:
    """Return the largest error of a prediction, relative to the first residual.

    Args:
        predicted: Shape (T, N) or (T, k, N).
        measured: Same shape; the first row is the start of the training.
        targets: Shape (N,) or (k, N).

    Returns:
        The maximum over the T rows of the Euclidean distance, divided by that of the first measured
        row from the targets.

    Raises:
        TypeError: An argument is not a tensor of real numbers.
        ValueError: Shapes do not match, or training starts at the targets.

    Example:
        >>> import torch
        >>> measured = torch.tensor([[0.0], [1.0]])
        >>> prediction_error(torch.tensor([[0.0], [1.5]]), measured, torch.tensor([2.0]))
        0.25
    """
    for name, value in (("predicted", predicted), ("measured", measured), ("targets", targets)):
        require_real(name, value)
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
    r"""A fully connected network with k linear heads, for studying wide networks.

    In the NTK parametrization a layer is :math:`h' = \phi(\sigma_w W h / \sqrt{m} + \sigma_b b)`
    with m inputs and standard normal W and b. In the standard parametrization the scales are part
    of W and b: the initial function is exactly the same, but the kernel grows with the width. Task
    i's output is ``scales[i]`` times that of a linear head.

    With independent heads the blocks K_ij between tasks vanish as the width grows, and the blocks
    K_ii converge to ``scales[i] ** 2`` times one kernel. A positive ``head_correlation`` makes the
    initial heads similar, so that blocks between tasks remain.

    Args:
        inputs: Number of features of a sample.
        width: Number of units of each hidden layer.
        depth: Number of hidden layers.
        tasks: Number of tasks k.
        activation: ``"tanh"``, ``"relu"`` or ``"erf"``.
        parametrisation: ``"ntk"`` or ``"standard"``.
        scales: Factor of each task's outputs, k numbers; None for 1 each.
        head_correlation: Correlation of two heads' initial weights, 0 to 1.
        weight_scale: :math:`\sigma_w`.
        bias_scale: :math:`\sigma_b`.
        seed: Seed of the initial parameters.

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
        """Return the outputs of all tasks, shape (k, N), for inputs ``x`` of shape (N, inputs)."""
        last = len(self._multipliers) - 1
        for i, (by_weight, by_bias) in enumerate(self._multipliers):
            x = by_weight * (x @ self.layers[2 * i].T) + by_bias * self.layers[2 * i + 1]
            if i < last:
                x = self.activation(x)
        return self.scales[:, None] * x.T


@dataclass(frozen=True)
class Simulation:
    """A recorded training by gradient descent, with everything needed to predict it.

    Attributes:
        steps: Numbers of the recorded steps, shape (T,), from 0.
        outputs: Outputs at those steps, shape (T, k, N).
        targets: Shape (k, N).
        kernel: Output kernel at the start, shape (k, N, k, N).
        kernel_drift: Frobenius norm of the kernel's change over the training, relative to the norm
            of the kernel.
        weights: Task weights, shape (k,).
        learning_rate: The learning rate eta.
        reduction: Reduction of the loss, ``"sum"`` or ``"mean"``.
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
            flow: Predict gradient flow (Eq. 10) instead of gradient descent.
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


def _require_float64(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise TypeError(
                f"{name} must be float64, found {tensor.dtype}; call model.double() and "
                "tensor.double()"
            )


def _step(parameters: dict[str, Tensor], loss: Tensor, learning_rate: float) -> dict[str, Tensor]:
    """Return the parameters after one step of gradient descent."""
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {
        name: (p - learning_rate * g).detach()
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


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

    The model itself does not change. The kernels at the start and at the end are computed from
    whole Jacobians of kN x P numbers, so this is for small problems.

    Args:
        model: A float64 module from inputs to outputs of shape (k, N), such as :class:`WideMLP`.
        inputs: The model's input, float64.
        targets: Shape (k, N).
        steps: Number of training steps.
        learning_rate: The learning rate eta; None for half of :func:`critical_learning_rate`.
        weights: Task weights, shape (k,), not negative; None for 1 each.
        reduction: ``"sum"`` for half the sum of squares (Eq. 19), ``"mean"`` for the mean of
            squares.
        record: Steps to record, besides 0 and ``steps``; None for every step.

    Returns:
        The recorded outputs, the kernel, and the settings that a prediction needs.

    Raises:
        ValueError: Shapes do not match, or a number is out of range.
        TypeError: A parameter or a tensor is not float64. (Rounding errors of float32 would exceed
            the prediction errors.)
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
    _require_float64({**parameters, "inputs": inputs, "targets": targets})
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
    w = check_weights(weights, len(targets), targets)
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
        parameters = _step(parameters, total, learning_rate)
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
