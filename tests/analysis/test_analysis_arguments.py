"""Wrong arguments of functions of kernels and their eigenvalues are errors in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ntkmtl import ExtendedNTK
from ntkmtl.analysis import (
    Recorder,
    components,
    critical_learning_rate,
    group_tasks,
    predict_descent,
    predict_flow,
    prediction_error,
    task_losses,
    task_steps,
    weighting_effect,
)
from ntkmtl.analysis.kernels import (
    condition_number,
    convergence_steps,
    effective_rank,
    extended_spectrum,
    imbalance,
    numerical_rank,
    participation_ratio,
    task_spectra,
)

OF_EIGENVALUES = [
    condition_number,
    effective_rank,
    imbalance,
    numerical_rank,
    participation_ratio,
]


@pytest.mark.parametrize("function", OF_EIGENVALUES)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "must be a tensor of real numbers"),
        (torch.tensor([1j]), TypeError, "must be a tensor of real numbers"),
        (torch.zeros(0), ValueError, r"found \(0,\)"),
        (torch.tensor(1.0), ValueError, r"found \(\)"),
        (torch.tensor([2.0, -1.0]), ValueError, r"not negative, found \[-1\.0\]"),
        (torch.tensor([-1.0, -2.0]), ValueError, r"not negative, found \[-1\.0, -2\.0\]"),
        (torch.tensor([math.inf, 1.0]), ValueError, r"are finite .* found \[inf\]"),
    ],
)
def test_eigenvalues(function: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(value)


@pytest.mark.parametrize("function", OF_EIGENVALUES)
def test_unknown_eigenvalues(function: Any) -> None:
    values = torch.tensor([math.nan, 4.0, 2.0])
    if function is imbalance:
        assert function(values) == 2.0
        return
    with pytest.raises(ValueError, match="are finite"):  # numerical_rank of NaN was 0
        function(values)


@pytest.mark.parametrize("function", OF_EIGENVALUES)
def test_zeros_that_were_rounded_below_zero(function: Any) -> None:
    """``torch.linalg.eigvalsh`` returns such; the effective rank was 0 with one of them."""
    clean = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)
    rounded = torch.tensor([4.0, 2.0, -1e-16], dtype=torch.float64)
    assert float(function(rounded)) == float(function(clean)) > 0


@pytest.mark.parametrize("function", [condition_number, imbalance, numerical_rank])
def test_one_spectrum_at_a_time(function: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(n,\), found \(2, 2\)"):
        function(torch.tensor([[4.0, 2.0], [8.0, 8.0]]))


LARGEST = torch.tensor([4.0, 1.0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"largest": [4.0, 1.0]}, TypeError, "eigenvalues must be a tensor"),
        ({"largest": torch.tensor([4.0, -1.0])}, ValueError, r"not negative, found \[-1\.0\]"),
        ({"losses": [1.0, 1.0]}, TypeError, "losses must be a tensor"),
        ({"losses": torch.ones(3)}, ValueError, r"losses .* \(2,\), found \(3,\)"),
        # These would be broadcast to a matrix.
        ({"losses": torch.ones(2, 1)}, ValueError, r"losses .* \(2,\), found \(2, 1\)"),
        ({"weights": torch.ones(2, 1)}, ValueError, r"weights .* \(2,\), found \(2, 1\)"),
        ({"weights": [1.0, 1.0]}, TypeError, "weights must be a tensor"),
        ({"losses": LARGEST, "minibatches": 0}, ValueError, "at least 1.*found 0"),
        ({"losses": LARGEST, "minibatches": torch.ones(3)}, ValueError, "one number or one per"),
    ],
)
def test_steps_to_converge(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convergence_steps(**{"largest": LARGEST, "learning_rate": 0.1, **options})


def test_steps_of_tasks_that_do_not_converge() -> None:
    """A negative weight climbs, and there is no fraction of a negative loss."""
    climbing = convergence_steps(LARGEST, 0.1, weights=torch.tensor([-1.0, 1.0]))
    assert climbing[0] == math.inf
    assert 0 < climbing[1] < math.inf
    negative = convergence_steps(LARGEST, 0.1, losses=torch.tensor([-1.0, 1.0]))
    assert negative.isnan().tolist() == [True, False]
    rows = convergence_steps(
        torch.tensor([[4.0, 1.0], [math.nan, math.nan]]),
        0.1,
        losses=torch.ones(2, 2),
        minibatches=torch.tensor([[4.0], [math.nan]]),
        weights=torch.ones(2),
    )
    assert rows.isnan().tolist() == [[False, False], [True, True]]


K = torch.eye(4).reshape(2, 2, 2, 2)
START, GOAL = torch.zeros(2, 2), torch.ones(2, 2)
NAN = torch.full((2, 2), math.nan)
RATE = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: predict_descent([[1.0]], START, GOAL, [1], **RATE), TypeError, "kernel must be"),
        (lambda: predict_descent(K.to(torch.cfloat), START, GOAL, [1], **RATE), TypeError,
         "kernel .* real numbers, found torch.complex64"),
        (lambda: predict_descent(K, [[0.0]], GOAL, [1], **RATE), TypeError, "initial must be"),
        (lambda: predict_descent(K, START, [[0.0]], [1], **RATE), TypeError, "targets must be"),
        (lambda: predict_descent(K, START, GOAL, ["a"], **RATE), TypeError, "steps must be a list"),
        (lambda: predict_descent(K, START, GOAL, [-1], **RATE), ValueError, r"found \[-1\]"),
        (lambda: predict_flow(K, NAN, GOAL, [1], **RATE), ValueError, "initial must be finite"),
        (lambda: predict_flow(K, START, GOAL, [1], weights=[1.0, 1.0], **RATE), TypeError,
         "weights must be a tensor"),
        # The steps of a task whose error is NaN were infinite.
        (lambda: task_steps(K, NAN, GOAL, **RATE), ValueError, "initial must be finite"),
        (lambda: task_steps(K, START, NAN, **RATE), ValueError, "targets must be finite"),
        (lambda: weighting_effect(K, NAN, GOAL), ValueError, "initial must be finite"),
        (lambda: weighting_effect(K, START, [[1.0]]), TypeError, "targets must be a tensor"),
        (lambda: components(K, NAN[None], GOAL), ValueError, "outputs must be finite"),
        (lambda: components(K, [START], GOAL), TypeError, "outputs must be a tensor"),
        (lambda: critical_learning_rate([[1.0]]), TypeError, "kernel must be a tensor"),
        (lambda: task_losses([[1.0]], GOAL), TypeError, "outputs must be a tensor"),
        (lambda: prediction_error([[1.0]], GOAL, START), TypeError, "predicted must be a tensor"),
    ],
)  # fmt: skip
def test_predictions(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("function", [task_spectra, extended_spectrum])
def test_kernels(function: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an ntkmtl\.ExtendedNTK"):
        function(torch.eye(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        function(ExtendedNTK(torch.full((2, 3, 2, 3), math.nan)))


def test_groups() -> None:
    with pytest.raises(TypeError, match=r"as kernel\.affinity\(\) is"):
        group_tasks([[1.0, 0.0], [0.0, 1.0]])  # type: ignore[arg-type]
    for groups in (1.5, True, "2"):
        with pytest.raises(TypeError, match="groups must be a whole number"):
            group_tasks(torch.eye(3), groups)  # type: ignore[arg-type]


def test_recorders() -> None:
    for options in ({"every": "2"}, {"every": None}, {"every": True}, {"minibatches": 1.5}):
        with pytest.raises(TypeError, match="must be a whole number"):
            Recorder(**options)
    with pytest.raises(TypeError, match="a state of a Recorder is a dict"):
        Recorder().load_state_dict(None)  # type: ignore[arg-type]
