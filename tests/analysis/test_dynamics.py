"""Predictions for a constant kernel against gradient descent on a linear model.

The oracle is trained by autograd with the losses written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from linear_model import EXACT, F64, WEIGHTS, descend, kernel_of, linear_problem, rate_for
from torch import Tensor

from ntkmtl.analysis import (
    components,
    critical_learning_rate,
    predict_descent,
    predict_flow,
    prediction_error,
    task_losses,
    task_steps,
    weighting_effect,
)

STEPS = [0, 1, 2, 3, 10, 40]


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
def test_descent_converges_below_the_critical_learning_rate_and_diverges_above(
    reduction: str,
) -> None:
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
