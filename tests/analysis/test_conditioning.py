"""Predicted numbers of steps against counted ones, and the effect of task weights."""

from __future__ import annotations

import math

import pytest
import torch
from linear_model import F64, WEIGHTS, kernel_of, linear_problem
from torch import Tensor

from ntkmtl.analysis import (
    component_steps,
    components,
    critical_learning_rate,
    predict_descent,
    task_losses,
    task_steps,
    weighting_effect,
)


def count_steps(losses: Tensor, tolerance: float) -> list[float]:
    """Steps after which a loss stays at or below a share of its start: the obvious way."""
    found = []
    for loss in losses.T.tolist():
        step = len(loss)
        while step and loss[step - 1] <= tolerance * loss[0]:
            step -= 1
        found.append(float(step) if step < len(loss) else math.inf)
    return found


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.003])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_task_steps_are_those_of_counting(tolerance: float, share: float) -> None:
    features, theta, targets = linear_problem(n=2)
    kernel = kernel_of(features)
    eta = share * critical_learning_rate(kernel, weights=WEIGHTS, reduction="mean")
    steps = list(range(4001))
    options = {"learning_rate": eta, "weights": WEIGHTS, "reduction": "mean"}
    outputs = predict_descent(kernel, features @ theta, targets, steps, **options)
    expected = count_steps(task_losses(outputs, targets), tolerance)
    assert all(math.isfinite(step) for step in expected)
    found = task_steps(kernel, features @ theta, targets, tolerance=tolerance, **options)
    assert found.tolist() == expected


def test_task_steps_count_the_last_crossing() -> None:
    """A task may be below its share for a while, and be pushed out again by another."""
    kernel = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)
    initial, targets = torch.zeros(2, 1, dtype=F64), torch.tensor([[1.0], [-0.5]], dtype=F64)
    outputs = predict_descent(kernel, initial, targets, range(400), learning_rate=0.1)
    losses = task_losses(outputs, targets)
    assert losses[:, 1].max() > 1.5 * losses[0, 1]
    found = task_steps(kernel, initial, targets, learning_rate=0.1, tolerance=0.3)
    assert found.tolist() == count_steps(losses, 0.3)
    first = int((losses[:, 0] <= 0.3 * losses[0, 0]).nonzero()[0, 0])
    assert first <= found[0]


def test_task_steps_of_tasks_that_never_converge() -> None:
    features, theta, targets = linear_problem()
    kernel, initial = kernel_of(features), features @ theta
    critical = critical_learning_rate(kernel)
    assert task_steps(kernel, initial, targets, learning_rate=1.01 * critical).isinf().all()
    weights = torch.tensor([1.0, 0.0, 1.0])
    found = task_steps(kernel, initial, targets, learning_rate=critical / 9, weights=weights)
    assert found.isinf().tolist() == [False, True, False]
    features, theta, targets = linear_problem(p=3)  # Three parameters for twelve targets.
    kernel = kernel_of(features)
    eta = critical_learning_rate(kernel) / 2
    assert task_steps(kernel, features @ theta, targets, learning_rate=eta).isinf().all()
    # Eigenvalues that are rounding are not eigenvalues.
    assert component_steps(kernel, learning_rate=eta).isinf().tolist() == [True] * 9 + [False] * 3
    effect = weighting_effect(kernel, features @ theta, targets)
    assert math.isinf(effect.before.condition_number)
    # A component that grows, from a start so small that the loss is below its share for long.
    kernel, start = torch.diag(torch.tensor([1.0, 2.1])), torch.zeros(2)
    found = task_steps(kernel, start, torch.tensor([1.0, 1e-6]), learning_rate=1.0)
    assert found.tolist() == [math.inf]
    # A task that is done at the start.
    kernel = torch.diag(torch.tensor([1.0, 1.0]))
    start, goal = torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])
    found = task_steps(kernel, start, goal, learning_rate=0.5, tolerance=0.2)
    assert found.tolist() == [0, 2]


def test_task_steps_over_a_long_time() -> None:
    """Far past the steps that could be counted: one component, in closed form."""
    rate = 1e-9
    found = task_steps(
        torch.tensor([[rate]], dtype=F64), torch.zeros(1, 1), torch.ones(1, 1), learning_rate=1.0
    )
    assert float(found) == pytest.approx(math.log(0.01) / (2 * math.log1p(-rate)), rel=1e-9)


def test_component_steps_are_those_of_counting() -> None:
    features, _, _ = linear_problem()
    kernel = kernel_of(features)
    eta = 0.8 * critical_learning_rate(kernel, weights=WEIGHTS, reduction="mean")
    found = component_steps(
        kernel, learning_rate=eta, tolerance=0.04, weights=WEIGHTS, reduction="mean"
    )
    matrix = kernel.reshape(12, 12) @ torch.diag(WEIGHTS.repeat_interleave(4)) * 2 / 4
    for value, steps in zip(
        torch.linalg.eigvals(matrix).real.sort().values.tolist(), found.tolist(), strict=True
    ):
        left, counted = 1.0, 0
        while left**2 > 0.04:
            left *= 1 - eta * value
            counted += 1
        assert steps == counted


def test_weights_halve_the_gap_in_logarithms_or_close_it() -> None:
    """Tasks that differ by a factor of their outputs alone: 9 and 1 in the kernel."""
    base = torch.diag(torch.tensor([4.0, 1.0], dtype=F64))
    kernel = torch.einsum("i,uv,ij->iujv", torch.tensor([9.0, 1.0], dtype=F64), base, torch.eye(2))
    initial = torch.zeros(2, 2, dtype=F64)
    targets = torch.tensor([[3.0, 3.0], [1.0, 1.0]], dtype=F64)
    # Eq. 15: lambda = 36 and 4, mean 20, weights sqrt(20 / 36) and sqrt(5).
    effect = weighting_effect(kernel, initial, targets)
    assert effect.before.condition_number == pytest.approx(36)
    assert effect.before.block_eigenvalues.tolist() == pytest.approx([36, 4])
    assert effect.after.weights.tolist() == pytest.approx([math.sqrt(20 / 36), math.sqrt(5)])
    assert effect.after.proposition_eigenvalues.tolist() == pytest.approx([20, 20])
    # What descent follows: 36 sqrt(20/36) against 4 sqrt(5), the square root of 9 apart.
    assert effect.after.block_eigenvalues.tolist() == pytest.approx([math.sqrt(720), math.sqrt(80)])
    assert effect.after.condition_number == pytest.approx(12)
    assert effect.after.critical_learning_rate == pytest.approx(2 / math.sqrt(720))
    closed = weighting_effect(kernel, initial, targets, exponent=1.0)
    assert closed.after.block_eigenvalues.tolist() == pytest.approx([20, 20])
    assert closed.after.condition_number == pytest.approx(4)  # That of one task.
    assert closed.after.task_steps[0] == closed.after.task_steps[1]
    ratios = [
        float(side.task_steps[1] / side.task_steps[0])
        for side in (effect.before, effect.after, closed.after)
    ]
    assert ratios[0] > ratios[1] > ratios[2] == 1
    # Without blocks between tasks, each is alone.
    assert torch.equal(effect.after.task_steps, effect.after.task_steps_alone)


def test_blocks_between_tasks_spread_eigenvalues() -> None:
    """Two like tasks, correlated by 0.8: 1.8 for what they share, 0.2 for what they dispute."""
    kernel = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    initial = torch.zeros(2, 1, dtype=F64)
    for sign, eigenvalue in ((1.0, 1.8), (-1.0, 0.2)):
        targets = torch.tensor([[1.0], [sign]], dtype=F64)
        effect = weighting_effect(kernel, initial, targets, learning_rate=0.1, tolerance=0.1)
        assert effect.before.condition_number == pytest.approx(9)
        expected = math.ceil(math.log(0.1) / (2 * math.log1p(-0.1 * eigenvalue)))
        assert effect.before.task_steps.tolist() == [expected] * 2
        assert effect.before.task_steps_alone.tolist() == [11, 11]  # 0.9 ** 22 < 0.1.


def test_given_weights_and_rate_are_used() -> None:
    features, theta, targets = linear_problem()
    kernel, initial = kernel_of(features), features @ theta
    effect = weighting_effect(
        kernel, initial, targets, weights=WEIGHTS, learning_rate=0.001, reduction="mean"
    )
    assert torch.equal(effect.after.weights, WEIGHTS)
    assert effect.before.learning_rate == effect.after.learning_rate == 0.001
    expected = task_steps(
        kernel, initial, targets, learning_rate=0.001, weights=WEIGHTS, reduction="mean"
    )
    assert torch.equal(effect.after.task_steps, expected)
    values = components(kernel, initial[None], targets, weights=WEIGHTS).eigenvalues
    assert effect.after.condition_number == pytest.approx(float(values[-1] / values[0]))
