"""Summaries of spectra against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ntkmtl.analysis import (
    condition_number,
    convergence_steps,
    effective_rank,
    extended_spectrum,
    imbalance,
    numerical_rank,
    participation_ratio,
    task_spectra,
)
from ntkmtl.kernel import ExtendedNTK


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_kernel(k: int, n: int, seed: int = 0) -> ExtendedNTK:
    rows = torch.randn(k * n, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ExtendedNTK((rows @ rows.T).reshape(k, n, k, n))


def test_task_spectra_are_numpys_and_begin_with_the_largest() -> None:
    kernel = random_kernel(3, 4)
    found = task_spectra(kernel)
    for i in range(3):
        expected = np.linalg.eigvalsh(kernel.values[i, :, i, :].numpy())[::-1]
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-9)
    torch.testing.assert_close(found[:, 0], kernel.max_eigenvalues(), rtol=1e-9, atol=0)


def test_extended_spectrum_is_that_of_the_whole_matrix() -> None:
    kernel = random_kernel(2, 3)
    matrix = np.block([[kernel.block(i, j).numpy() for j in range(2)] for i in range(2)])
    expected = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(extended_spectrum(kernel).numpy(), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="diagonal blocks only"):
        extended_spectrum(ExtendedNTK(blocks=kernel.blocks))


def test_effective_rank_and_participation_ratio() -> None:
    # p = (3/4, 1/4): H = log 4 - 3/4 log 3; participation 16 / 10.
    assert effective_rank(f64(3, 1)).item() == pytest.approx(4 / 3**0.75, rel=1e-12)
    assert participation_ratio(f64(3, 1)).item() == pytest.approx(1.6, rel=1e-12)
    both = torch.stack([f64(2, 2, 2), f64(5, 0, 0), f64(0, 0, 0)])
    torch.testing.assert_close(effective_rank(both), f64(3, 1, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(participation_ratio(both), f64(3, 1, 0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-24, 1e24, 1e300])
def test_ranks_do_not_depend_on_the_scale(scale: float) -> None:
    assert effective_rank(scale * f64(3, 1)).item() == pytest.approx(4 / 3**0.75, rel=1e-9)
    assert participation_ratio(scale * f64(3, 1)).item() == pytest.approx(1.6, rel=1e-9)
    assert condition_number(scale * f64(3, 1)) == pytest.approx(3, rel=1e-9)


def test_the_null_space_is_left_out_of_the_condition_number() -> None:
    spectrum = f64(8, 2, 8e-6, 7.9e-6, 0)
    assert condition_number(spectrum) == 4
    assert numerical_rank(spectrum) == 2
    assert condition_number(spectrum, floor=0) == pytest.approx(8 / 7.9e-6)
    assert numerical_rank(spectrum, floor=0) == 4
    assert math.isnan(condition_number(f64(0, 0)))
    assert numerical_rank(f64(0, 0)) == 0
    for function in (condition_number, numerical_rank):
        with pytest.raises(ValueError, match=r"floor must be in \[0, 1\), found 1"):
            function(spectrum, floor=1)


def test_imbalance_is_one_after_the_weights_of_equation_15() -> None:
    largest = random_kernel(4, 3).max_eigenvalues()
    assert imbalance(largest) == pytest.approx(float(largest.max() / largest.min()))
    weights = (largest.mean() / largest).sqrt()
    assert imbalance(weights.square() * largest) == pytest.approx(1, rel=1e-12)
    assert imbalance(f64(6, math.nan, 0, 2)) == 3
    assert math.isnan(imbalance(f64(math.nan, 0)))


def test_steps_of_outputs_are_those_of_gradient_flow_on_a_linear_model() -> None:
    # Eq. 5: with f = a theta and y = 0 the error falls as exp(-rate a^2 t).
    rate, a = 0.01, 3.0
    steps = convergence_steps(f64(a * a), rate, fraction=0.1).item()
    assert math.exp(-rate * a * a * steps) == pytest.approx(0.1, rel=1e-12)


def test_steps_of_losses_are_those_of_gradient_descent_on_squared_errors() -> None:
    """Descent of (theta a)^2 with a small step reaches a tenth of the loss in the predicted time,
    for n equal mini-batches as for one batch."""
    rate, a, theta = 1e-4, 2.0, 0.7
    loss, gradient = (a * theta) ** 2, 2 * a * a * theta
    for n in (1, 4):
        block = torch.full((1, n, n), gradient**2, dtype=torch.float64)
        predicted = convergence_steps(
            ExtendedNTK(blocks=block).max_eigenvalues(),
            rate,
            losses=f64(loss),
            minibatches=n,
        ).item()
        taken, position = 0, theta
        while (a * position) ** 2 > 0.1 * loss:
            position -= rate * 2 * a * a * position
            taken += 1
        assert predicted == pytest.approx(taken, rel=2e-3)


def test_weights_multiply_rates_and_zero_stops_a_task() -> None:
    largest, losses = f64(1, 1, 1, 0, math.nan), torch.ones(5, dtype=torch.float64)
    weights = f64(1, 2, 0, 1, 1)
    steps = convergence_steps(largest, 0.5, losses=losses, weights=weights, fraction=math.exp(-1))
    assert steps[:4].tolist() == [2, 1, math.inf, math.inf]
    assert steps[4].isnan()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"fraction": 1.0}, "fraction"), ({"learning_rate": 0.0}, "learning_rate")],
)
def test_invalid_arguments_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convergence_steps(f64(1), **{"learning_rate": 0.1, **options})
