"""Predicted training against gradient descent that was really run.

The oracle of a constant kernel is a model that is linear in its parameters, trained by autograd
with the losses written out. Wide networks must come near it as they grow wider.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ntkmtl.analysis import (
    WideMLP,
    component_steps,
    components,
    critical_learning_rate,
    predict_descent,
    predict_flow,
    prediction_error,
    simulate,
    task_losses,
    task_steps,
    weighting_effect,
)

F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-12}
WEIGHTS = torch.tensor([2.0, 0.3, 0.7], dtype=F64)
STEPS = [0, 1, 2, 3, 10, 40]


def linear_problem(k: int = 3, n: int = 4, p: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Features (k, n, p) of a linear model, its parameters at the start, and targets."""
    features = torch.randn(k, n, p, dtype=F64)
    features[0] *= 2  # The tasks differ in scale, so that their blocks do.
    return features, torch.randn(p, dtype=F64), torch.randn(k, n, dtype=F64)


def kernel_of(features: Tensor) -> Tensor:
    return torch.einsum("iup,jvp->iujv", features, features)


def descend(
    features: Tensor,
    theta: Tensor,
    targets: Tensor,
    steps: list[int],
    learning_rate: float,
    weights: Tensor,
    reduction: str,
) -> Tensor:
    """Gradient descent by autograd, the losses written out."""
    theta = theta.clone().requires_grad_()
    recorded = []
    for step in range(max(steps) + 1):
        if step in steps:
            recorded.append((features @ theta).detach())
        total = torch.zeros((), dtype=F64)
        for i in range(len(targets)):
            squares = [(features[i, u] @ theta - y) ** 2 for u, y in enumerate(targets[i])]
            loss = sum(squares) / 2 if reduction == "sum" else sum(squares) / len(squares)
            total = total + weights[i] * loss
        (gradient,) = torch.autograd.grad(total, theta)
        theta = (theta - learning_rate * gradient).detach().requires_grad_()
    return torch.stack(recorded)


def rate_for(kernel: Tensor, weights: Tensor | None, reduction: str) -> float:
    return 0.9 * critical_learning_rate(kernel, weights=weights, reduction=reduction)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("p", [20, 5], ids=["full-rank", "rank-5"])
@pytest.mark.parametrize(
    "weights", [torch.ones(3), WEIGHTS, torch.tensor([1.0, 0.0, 0.5])], ids=["1", "w", "zero"]
)
def test_descent_of_a_linear_model_is_predicted_exactly(
    weights: Tensor, p: int, reduction: str
) -> None:
    features, theta, targets = linear_problem(p=p)
    kernel, weights = kernel_of(features), weights.to(F64)
    eta = rate_for(kernel, weights, reduction)
    measured = descend(features, theta, targets, STEPS, eta, weights, reduction)
    for shape in ((3, 4, 3, 4), (12, 12)):
        predicted = predict_descent(
            kernel.reshape(shape),
            features @ theta,
            targets,
            STEPS,
            learning_rate=eta,
            weights=weights,
            reduction=reduction,
        )
        torch.testing.assert_close(predicted, measured, **EXACT)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_descent_of_one_task(reduction: str) -> None:
    features, theta, targets = linear_problem(k=1)
    kernel = kernel_of(features)[0, :, 0]
    eta = rate_for(kernel, None, reduction)
    measured = descend(features, theta, targets, STEPS, eta, torch.ones(1, dtype=F64), reduction)
    predicted = predict_descent(
        kernel, features[0] @ theta, targets[0], STEPS, learning_rate=eta, reduction=reduction
    )
    torch.testing.assert_close(predicted, measured[:, 0], **EXACT)


def test_descent_past_the_critical_rate_diverges_as_predicted() -> None:
    features, theta, targets = linear_problem()
    kernel = kernel_of(features)
    eta = 1.2 * critical_learning_rate(kernel, weights=WEIGHTS)
    measured = descend(features, theta, targets, STEPS, eta, WEIGHTS, "sum")
    predicted = predict_descent(
        kernel, features @ theta, targets, STEPS, learning_rate=eta, weights=WEIGHTS
    )
    assert float(measured[-1].abs().max()) > 100
    torch.testing.assert_close(predicted, measured, **EXACT)


# Each mutation is what the module would compute if one thing in it were otherwise.
Prediction = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def iterate(step: Tensor, initial: Tensor, targets: Tensor, eta: float) -> Tensor:
    """Outputs after repeated f <- f - eta M (f - y), at STEPS."""
    f, y, found = initial.reshape(-1), targets.reshape(-1), []
    for t in range(max(STEPS) + 1):
        if t in STEPS:
            found.append(f)
        f = f - eta * step @ (f - y)
    return torch.stack(found).reshape(len(STEPS), *targets.shape)


def library(
    predict: Callable[..., Tensor] = predict_descent,
    weights: Tensor | None = WEIGHTS,
    reduction: str = "mean",
) -> Prediction:
    return lambda kernel, initial, targets, eta: predict(
        kernel, initial, targets, STEPS, learning_rate=eta, weights=weights, reduction=reduction
    )


def by_hand(matrix: Callable[[Tensor, Tensor], Tensor]) -> Prediction:
    """A prediction from M(K, W), with the factor 2 / N of a mean."""

    def predict(kernel: Tensor, initial: Tensor, targets: Tensor, eta: float) -> Tensor:
        k, n = targets.shape
        full = torch.diag(WEIGHTS.repeat_interleave(n))
        return iterate(matrix(kernel.reshape(k * n, k * n), full) * 2 / n, initial, targets, eta)

    return predict


def from_zero(kernel: Tensor, initial: Tensor, targets: Tensor, eta: float) -> Tensor:
    return library()(kernel, torch.zeros_like(initial), targets, eta)


def sample_before_task(kernel: Tensor, initial: Tensor, targets: Tensor, eta: float) -> Tensor:
    k, n = targets.shape
    swapped = kernel.permute(1, 0, 3, 2).reshape(k * n, k * n)
    return library()(swapped, initial, targets, eta)


MUTATIONS: dict[str, Prediction] = {
    "weights dropped": library(weights=None),
    "W K instead of K W": by_hand(lambda K, W: W @ K),
    "w_i w_j K_ij on outputs as they are (Eq. 13 to the letter)": by_hand(lambda K, W: W @ K @ W),
    "sqrt(w_i w_j) K_ij on outputs as they are": by_hand(lambda K, W: W.sqrt() @ K @ W.sqrt()),
    "weights squared": library(weights=WEIGHTS.square()),
    "weights rooted": library(weights=WEIGHTS.sqrt()),
    "weights in another order": library(weights=WEIGHTS.flip(0)),
    "sum instead of mean": library(reduction="sum"),
    "1 / N instead of 2 / N": by_hand(lambda K, W: K @ W / 2),
    "1 / (kN) instead of 1 / N": by_hand(lambda K, W: K @ W / 3),
    "flow instead of steps": library(predict=predict_flow),
    "outputs start at 0 (Eq. 10 to the letter)": from_zero,
    "sample before task": sample_before_task,
    "blocks between tasks dropped": by_hand(
        lambda K, W: (
            torch.block_diag(*(K[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] for i in range(3))) @ W
        )
    ),
}


def error_on_a_linear_model(predict: Prediction) -> float:
    torch.manual_seed(1)
    features, theta, targets = linear_problem()
    kernel = kernel_of(features)
    eta = 0.5 * critical_learning_rate(kernel, weights=WEIGHTS, reduction="mean")
    measured = descend(features, theta, targets, STEPS, eta, WEIGHTS, "mean")
    return prediction_error(predict(kernel, features @ theta, targets, eta), measured, targets)


def test_the_check_passes_what_is_right() -> None:
    assert error_on_a_linear_model(library()) < 1e-12
    assert error_on_a_linear_model(by_hand(lambda K, W: K @ W)) < 1e-12


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_check_fails_what_is_wrong(mutation: str) -> None:
    assert error_on_a_linear_model(MUTATIONS[mutation]) > 0.1


def test_flow_is_the_matrix_exponential() -> None:
    features, theta, targets = linear_problem()
    kernel, initial = kernel_of(features), features @ theta
    for weights in (WEIGHTS, torch.tensor([1.0, 0.0, 0.5], dtype=F64)):
        for reduction, c in (("sum", 1.0), ("mean", 2 / 4)):
            generator = kernel.reshape(12, 12) @ torch.diag(weights.repeat_interleave(4)) * c
            for time in (0.0, 0.5, 3.7):
                left = torch.matrix_exp(-0.02 * time * generator) @ (initial - targets).flatten()
                found = predict_flow(
                    kernel,
                    initial,
                    targets,
                    [time],
                    learning_rate=0.02,
                    weights=weights,
                    reduction=reduction,
                )
                torch.testing.assert_close(found[0], targets + left.reshape(3, 4), **EXACT)


def test_flow_from_zero_is_equation_10() -> None:
    features, _, targets = linear_problem()
    kernel = kernel_of(features)
    gone = torch.eye(12, dtype=F64) - torch.matrix_exp(-0.01 * 7 * kernel.reshape(12, 12))
    found = predict_flow(kernel, torch.zeros_like(targets), targets, [7], learning_rate=0.01)
    torch.testing.assert_close(found[0], (gone @ targets.flatten()).reshape(3, 4), **EXACT)


def test_descent_in_ever_smaller_steps_is_flow() -> None:
    features, theta, targets = linear_problem()
    kernel, initial = kernel_of(features), features @ theta
    eta = rate_for(kernel, WEIGHTS, "sum")
    flow = predict_flow(kernel, initial, targets, [3], learning_rate=eta, weights=WEIGHTS)
    distances = [
        prediction_error(
            predict_descent(
                kernel, initial, targets, [3 * m], learning_rate=eta / m, weights=WEIGHTS
            ),
            flow,
            targets,
        )
        for m in (1000, 2000)
    ]
    assert distances[0] < 1e-2
    assert distances[0] / distances[1] == pytest.approx(2, rel=0.01)  # First order in the step.


def test_proposition_3_3_holds_for_squared_weights_and_scaled_outputs() -> None:
    """Eq. 13 with O_i = w_i f_i on both sides is descent on sum w_i^2 l_i."""
    features, theta, targets = linear_problem()
    w = WEIGHTS[:, None]
    scaled_kernel = kernel_of(features) * w[:, :, None, None] * w[None, None]
    eta = 0.9 * critical_learning_rate(scaled_kernel)
    scaled = predict_descent(
        scaled_kernel, w * (features @ theta), w * targets, STEPS, learning_rate=eta
    )
    squared = descend(features, theta, targets, STEPS, eta, WEIGHTS.square(), "sum")
    torch.testing.assert_close(scaled, w * squared, **EXACT)
    plain = descend(features, theta, targets, STEPS, eta, WEIGHTS, "sum")
    assert prediction_error(scaled, w * plain, w * targets) > 0.1


def test_unweighted_heads_add_their_own_kernel() -> None:
    """With weights on the shared parameters only, descent follows K_shared W + K_heads."""
    features, theta, targets = linear_problem(p=20)
    shared, heads = features[:, :, :14], torch.zeros(3, 4, 6, dtype=F64)
    for i in range(3):  # Two parameters are each task's own.
        heads[i, :, 2 * i : 2 * i + 2] = features[i, :, 14:16]
    model = torch.cat([shared, heads], 2)
    flat = kernel_of(shared).reshape(12, 12) @ torch.diag(WEIGHTS.repeat_interleave(4))
    step = flat + kernel_of(heads).reshape(12, 12)
    eta, values = 0.005, theta.clone()
    for _ in range(max(STEPS)):
        pulls = model * (model @ values - targets)[:, :, None]
        gradients = pulls.sum(1)
        gradients[:, :14] *= WEIGHTS[:, None]
        values = values - eta * gradients.sum(0)
    predicted = iterate(step, model @ theta, targets, eta)
    torch.testing.assert_close(predicted[-1], model @ values, **EXACT)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["1", "w"])
def test_components_of_a_linear_model_decay_each_at_its_rate(weights: Tensor | None) -> None:
    features, theta, targets = linear_problem()
    kernel = kernel_of(features)
    eta = rate_for(kernel, weights, "mean")
    used = torch.ones(3, dtype=F64) if weights is None else weights
    measured = descend(features, theta, targets, STEPS, eta, used, "mean")
    found = components(kernel, measured, targets, weights=weights)
    t = torch.tensor(STEPS, dtype=F64)[:, None]
    expected = (1 - eta * 2 / 4 * found.eigenvalues) ** t * found.values[0]
    torch.testing.assert_close(found.values, expected, **EXACT)
    # Eq. 11: the same of the flow, with the exponential.
    flow = predict_flow(
        kernel,
        measured[0],
        targets,
        t[:, 0],
        learning_rate=eta,
        weights=weights,
        reduction="mean",
    )
    expected = torch.exp(-eta * 2 / 4 * found.eigenvalues * t) * found.values[0]
    torch.testing.assert_close(
        components(kernel, flow, targets, weights=weights).values, expected, **EXACT
    )
    # The eigenvalues are those of K W, which is not symmetric.
    matrix = kernel.reshape(12, 12) @ torch.diag(used.repeat_interleave(4))
    torch.testing.assert_close(
        torch.linalg.eigvals(matrix).real.sort().values, found.eigenvalues, rtol=1e-9, atol=1e-9
    )
    # And the components hold the weighted loss.
    torch.testing.assert_close(
        found.values.square().sum(1) / 2, task_losses(measured, targets) @ used, **EXACT
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_critical_learning_rate_parts_convergence_from_divergence(reduction: str) -> None:
    features, theta, targets = linear_problem()
    kernel = kernel_of(features)
    critical = critical_learning_rate(kernel, weights=WEIGHTS, reduction=reduction)
    flat = kernel.reshape(12, 12)
    assert critical == critical_learning_rate(flat, weights=WEIGHTS, reduction=reduction)
    ends = [
        descend(features, theta, targets, [0, 400], share * critical, WEIGHTS, reduction)
        for share in (0.99, 1.01)
    ]
    top = components(kernel, ends[0], targets, weights=WEIGHTS).values[:, -1].abs()
    assert top[1] < 1e-3 * top[0]
    top = components(kernel, ends[1], targets, weights=WEIGHTS).values[:, -1].abs()
    assert top[1] > 1e3 * top[0]


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


def test_task_steps_of_tasks_that_never_get_there() -> None:
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
    # Eigenvalues that are rounding are no eigenvalues.
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


def test_weighting_halves_the_gap_or_closes_it() -> None:
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


def test_blocks_between_tasks_take_eigenvalues_from_each_other() -> None:
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


def circle(n: int = 6) -> tuple[Tensor, Tensor]:
    """Points on a circle and two functions of the angle."""
    angle = torch.arange(n, dtype=F64) * 2 * math.pi / n
    x = torch.stack([angle.cos(), angle.sin()], 1)
    return x, torch.stack([angle.cos() + 0.3, (angle + 0.5).cos() + 0.5 * (2 * angle).sin()])


TWO = torch.tensor([1.0, 0.4], dtype=F64)


@pytest.mark.parametrize("parametrisation", ["ntk", "standard"])
def test_error_falls_as_the_width_grows(parametrisation: str) -> None:
    """Theory bounds it by width ** -1/2; this is a fit over seeds, so the bound has some slack."""
    x, y = circle()
    widths = [64, 128, 256, 512, 1024]
    means = []
    for width in widths:
        logs = []
        for seed in range(4):
            model = WideMLP(2, width, tasks=2, parametrisation=parametrisation, seed=seed)
            run = simulate(
                model, x, y, steps=100, weights=TWO, record=range(0, 101, 5), reduction="mean"
            )
            assert (run.losses()[-1] / run.losses()[0]).max() < 0.1  # It did learn.
            logs.append(math.log(run.error()))
        means.append(sum(logs) / len(logs))
    centred = torch.tensor(widths, dtype=F64).log()
    centred = centred - centred.mean()
    slope = float(centred @ torch.tensor(means, dtype=F64) / centred.square().sum())
    assert slope < -0.45
    assert math.exp(means[-1]) < 0.005


def wide_run(**options: object) -> tuple[Tensor, Tensor, float, Tensor]:
    x, y = circle()
    model = WideMLP(2, 1024, tasks=2, scales=[2.0, 1.0], head_correlation=0.6, seed=3)
    run = simulate(model, x, y, steps=100, weights=TWO, reduction="mean", **options)  # type: ignore[arg-type]
    return run.kernel, run.targets, run.learning_rate, run.outputs


def test_weights_enter_a_wide_network_as_derived() -> None:
    kernel, targets, eta, outputs = wide_run()
    steps = range(len(outputs))

    def error(weights: Tensor | None, reduction: str = "mean", scale: float = 1.0) -> float:
        predicted = predict_descent(
            kernel,
            outputs[0],
            targets,
            steps,
            learning_rate=eta * scale,
            weights=weights,
            reduction=reduction,
        )
        return prediction_error(predicted, outputs, targets)

    right = error(TWO)
    assert right < 0.002
    wrong = {
        "dropped": error(None),
        "squared": error(TWO.square()),
        "rooted": error(TWO.sqrt()),
        "swapped": error(TWO.flip(0)),
        "half the factor": error(TWO, scale=0.5),
    }
    assert min(wrong.values()) > 0.05, wrong
    assert not error(TWO, reduction="sum") < 0.05  # It diverges.


def test_components_of_a_wide_network_decay_at_their_rates() -> None:
    kernel, targets, eta, outputs = wide_run()
    found = components(kernel, outputs, targets, weights=TWO)
    steps = torch.arange(len(outputs), dtype=F64)[:, None]
    expected = (1 - eta * 2 / 6 * found.eigenvalues) ** steps * found.values[0]
    scale = found.values[0].norm()
    assert float((found.values - expected).abs().max() / scale) < 0.01
    # Every other component's rate is far from each one's own: shifted by one, the check fails.
    shifted = (1 - eta * 2 / 6 * found.eigenvalues.roll(1)) ** steps * found.values[0]
    assert float((found.values - shifted).abs().max() / scale) > 0.1


def test_simulation_is_descent_written_out() -> None:
    """Against a loop over .backward() and the parameters themselves, and row-by-row Jacobians."""
    x, y = circle()
    model = WideMLP(2, 5, depth=2, tasks=2, activation="erf", scales=[1.0, 3.0], seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = simulate(
        model, x, y, steps=7, learning_rate=0.02, weights=TWO, reduction="mean", record=[3]
    )
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert run.steps.tolist() == [0, 3, 7]

    rows = []
    for value in model(x).flatten():
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    J = torch.stack(rows)
    torch.testing.assert_close(run.kernel.reshape(12, 12), J @ J.T, **EXACT)

    outputs = []
    for _ in range(8):
        found = model(x)
        outputs.append(found.detach())
        model.zero_grad()
        sum(w * ((f - t) ** 2).mean() for w, f, t in zip(TWO, found, y, strict=True)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.02 * p.grad
    torch.testing.assert_close(run.outputs, torch.stack(outputs)[[0, 3, 7]], **EXACT)
    torch.testing.assert_close(
        run.losses()[2], ((outputs[7] - y) ** 2).mean(1), rtol=1e-9, atol=0.0
    )
    assert run.kernel_drift > 1e-3  # Five units are not wide.
    assert 0.01 < run.error() < 1


def test_wide_mlp_is_one_function_in_both_parametrisations() -> None:
    x, y = circle()
    ntk, standard = (
        WideMLP(2, 40, depth=2, tasks=2, parametrisation=name, seed=5)
        for name in ("ntk", "standard")
    )
    torch.testing.assert_close(ntk(x), standard(x), **EXACT)
    # The heads' kernel grows with the width only where their weights are not divided by its root.
    tops = [
        critical_learning_rate(
            simulate(
                WideMLP(2, width, parametrisation=name), x, y[:1], steps=1, learning_rate=1e-6
            ).kernel
        )
        for name in ("ntk", "standard")
        for width in (200, 800)
    ]
    assert tops[0] / tops[1] == pytest.approx(1, rel=0.2)
    assert tops[2] / tops[3] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_heads_are_standard_normal_and_correlated_as_asked(correlation: float) -> None:
    weights = WideMLP(2, 20_000, tasks=2, head_correlation=correlation).layers[2].detach()
    expected = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=F64)
    torch.testing.assert_close(weights @ weights.T / 20_000, expected, rtol=0.0, atol=0.03)


def test_blocks_between_independent_heads_vanish_with_width() -> None:
    x, y = circle()

    def cross(width: int, correlation: float) -> float:
        model = WideMLP(2, width, tasks=2, head_correlation=correlation, scales=[3.0, 1.0])
        kernel = simulate(model, x, y, steps=1, learning_rate=1e-6).kernel
        ratio = kernel[0, :, 0].trace() / kernel[1, :, 1].trace()
        assert float(ratio) == pytest.approx(9, rel=0.3)
        return float(
            kernel[0, :, 1].norm() / (kernel[0, :, 0].norm() * kernel[1, :, 1].norm()).sqrt()
        )

    assert cross(4096, 0.0) < 0.05 < 0.2 < cross(4096, 0.9)


def test_bad_input_is_named() -> None:
    K, f = torch.eye(4, dtype=F64), torch.zeros(2, 2, dtype=F64)
    predict = predict_descent
    with pytest.raises(ValueError, match=r"kernel must have shape .* k = 2, found \(3, 3\)"):
        predict(torch.eye(3), f, f, [1], learning_rate=1)
    with pytest.raises(ValueError, match=r"found \(4,\)"):
        predict(torch.ones(4), f, f, [1], learning_rate=1)
    with pytest.raises(ValueError, match=r"2 x 2 outputs, found targets of shape \(2, 3\)"):
        predict(K, torch.zeros(2, 3), torch.zeros(2, 3), [1], learning_rate=1)
    with pytest.raises(ValueError, match="one shape"):
        predict(K, f, f[0], [1], learning_rate=1)
    with pytest.raises(ValueError, match="symmetric"):
        predict(torch.triu(torch.ones(4, 4)), f, f, [1], learning_rate=1)
    with pytest.raises(ValueError, match="positive semi-definite"):
        predict(-K, f, f, [1], learning_rate=1)
    with pytest.raises(ValueError, match="NaN"):
        predict(K * math.nan, f, f, [1], learning_rate=1)
    with pytest.raises(ValueError, match="whole numbers"):
        predict(K, f, f, [0.5], learning_rate=1)
    with pytest.raises(ValueError, match="not negative"):
        predict_flow(K, f, f, [-0.5], learning_rate=1)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        predict(K, f, f, [1], learning_rate=0)
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\), found \(3,\)"):
        predict(K, f, f, [1], learning_rate=1, weights=torch.ones(3))
    for bad in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, math.nan]), torch.zeros(2)):
        with pytest.raises(ValueError, match="weights must be finite"):
            predict(K, f, f, [1], learning_rate=1, weights=bad)
    with pytest.raises(ValueError, match="reduction must be"):
        predict(K, f, f, [1], learning_rate=1, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        task_steps(K, f, f, learning_rate=1, tolerance=1.0)
    with pytest.raises(ValueError, match="outputs must have shape"):
        components(K, f, f)
    with pytest.raises(ValueError, match="reduction must be"):
        task_losses(f, f, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the kernel is zero"):
        weighting_effect(0 * K, f, f + 1)
    with pytest.raises(ValueError, match="nothing to learn"):
        prediction_error(f[None], f[None], f)
    assert math.isinf(critical_learning_rate(0 * K))


def test_bad_simulations_are_named() -> None:
    x, y = circle()
    model = WideMLP(2, 8, tasks=2)
    with pytest.raises(TypeError, match=r"inputs must be float64, found torch\.float32"):
        simulate(model, x.float(), y, steps=1)
    with pytest.raises(ValueError, match=r"found \(2, 6\) and \(1, 6\)"):
        simulate(model, x, y[:1], steps=1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        simulate(model, x, y, steps=0)
    with pytest.raises(ValueError, match="record must be steps from 0 to 3"):
        simulate(model, x, y, steps=3, record=[4])
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        simulate(model, x, y, steps=3, learning_rate=-1)
    relu = WideMLP(2, 8, tasks=2, activation="relu")  # Tanh would only saturate.
    with pytest.raises(FloatingPointError, match=r"the critical rate at the start was"):
        simulate(relu, x, y, steps=3000, learning_rate=1e3)
    for options, match in (
        ({"width": 0}, "at least 1"),
        ({"activation": "sine"}, "tanh, relu, erf"),
        ({"parametrisation": "mup"}, "'ntk' or 'standard'"),
        ({"head_correlation": 1.5}, "in \\[0, 1\\]"),
        ({"scales": [1.0]}, "scales must be 2 numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            WideMLP(**{"inputs": 2, "width": 8, "tasks": 2, **options})  # type: ignore[arg-type]


def test_the_page_shows_the_numbers_that_were_measured() -> None:
    root = Path(__file__).parents[2]
    path = root / "scripts" / "make_theory_figures.py"
    spec = importlib.util.spec_from_file_location("make_theory_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = root / "docs" / "images"
    numbers = json.loads((folder / "theory-numbers.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "analysis" / "theory.md").read_text(encoding="utf-8")
    for name, block in module.tables(numbers).items():
        begin, end = (f"<!-- measured {name}: {side} -->" for side in ("begin", "end"))
        assert page.partition(begin)[2].partition(end)[0].strip() == block
    # What the page says of them in words.
    assert all(row["slope"] < -0.5 for row in numbers["width"])
    for row in numbers["weighting"]:
        for predicted, measured in zip(row["steps_predicted"], row["steps_measured"], strict=True):
            assert predicted == pytest.approx(measured, rel=0.02, abs=1)
    for picture in ("losses", "width", "components", "weighting"):
        assert (folder / f"theory-{picture}.png").stat().st_size > 10_000
