"""Quadratic programs in a Gramian: optimality conditions, and SciPy as an independent solver."""

from __future__ import annotations

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ntkmtl.weighting import _qp
from ntkmtl.weighting._qp import cancellation, nonnegative_qp, shortest_combination
from weighting.gramians import SCALES, SHAPES, gradients


def violation(gramian: Tensor, linear: Tensor, x: Tensor) -> float:
    """Return by how much x misses the optimality conditions, over the terms that each one sums."""
    norms = gramian.diagonal().sqrt()
    slack = gramian @ x - linear
    # Cauchy-Schwarz bounds each product.
    terms = norms * (norms @ x) + linear.abs()
    relative = torch.where(terms > 0, slack / terms, 0.0)
    share = torch.where(norms * x > 0, norms * x / (norms * x).max(), 0.0)
    return float(torch.minimum(relative, share).abs().max())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(seed=st.integers(0, 2**31), k=st.sampled_from([2, 3, 5, 11, 40]))
def test_optimality_of_projections(shape: str, scale: str, seed: int, k: int) -> None:
    rows = gradients(shape, scale, k, seed)
    gramian = rows @ rows.T
    # Of the mean, and of a few gradients, onto the directions that hurt none: q = -G u.
    linear = -torch.cat([gramian[:4], gramian.mean(dim=0)[None]])
    found = nonnegative_qp(gramian, linear)
    assert bool((found >= 0).all())
    for q, x in zip(linear, found, strict=True):
        assert violation(gramian, q, x) <= 1e-9


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(seed=st.integers(0, 2**31), k=st.sampled_from([2, 3, 5, 11, 40]))
def test_optimality_of_the_shortest_combination(shape: str, scale: str, seed: int, k: int) -> None:
    rows = gradients(shape, scale, k, seed)
    gramian = rows @ rows.T
    w = shortest_combination(gramian)
    assert bool((w >= 0).all())
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
    # No gradient's product with it is below its own squared norm, and those that are part of it
    # have that product: G w - w^T G w is the slack.
    norms = gramian.diagonal().sqrt()
    least = w @ gramian @ w
    terms = norms * (norms @ w) + least
    slack = torch.where(terms > 0, (gramian @ w - least) / terms, 0.0)
    share = w * norms / (w * norms).max() if bool((w * norms > 0).any()) else 0.0 * w
    live = norms > 0
    assert float(slack.min()) >= -1e-9
    assert float(torch.minimum(slack, share)[live].abs().max()) <= 1e-9


@pytest.mark.parametrize("shape", ["random", "dependent", "equal", "opposed", "zero"])
def test_a_hundred_tasks(shape: str) -> None:
    rows = gradients(shape, "unlike", 100, 0)
    gramian = rows @ rows.T
    q = -gramian.mean(dim=0)
    assert violation(gramian, q, nonnegative_qp(gramian, q)) <= 1e-9
    w = shortest_combination(gramian)
    assert float((gramian @ w - w @ gramian @ w).min()) >= -1e-9 * float(gramian.diagonal().max())


@pytest.mark.parametrize("seed", range(10))
def test_the_least_norm_is_that_of_another_solver(seed: int) -> None:
    # Non-negative least squares on the gradients themselves: the point of their cone, with a last
    # entry of 1, that is nearest to (0, ..., 0, 1).
    rows = (
        gradients("random", "one", 6, seed) * torch.logspace(-1, 1, 6, dtype=torch.float64)[:, None]
    )
    system = torch.cat([rows, torch.ones(6, 1, dtype=torch.float64)], dim=1).T.numpy()
    right = torch.cat([torch.zeros(8), torch.ones(1)]).double().numpy()
    expected = torch.from_numpy(scipy.optimize.nnls(system, right)[0])
    expected /= expected.sum()
    found = shortest_combination(rows @ rows.T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_the_least_norm_of_forty_long_gradients() -> None:
    # Norms within a factor of about 3, nearly orthogonal: Frank-Wolfe's direction is off by 0.15.
    torch.manual_seed(100)
    rows = torch.randn(40, 5000, dtype=torch.float64)
    rows = rows * torch.exp(0.3 * torch.randn(40, 1, dtype=torch.float64))
    system = torch.cat([rows, torch.ones(40, 1, dtype=torch.float64) * 100.0], dim=1).T.numpy()
    right = torch.cat([torch.zeros(5000), torch.full((1,), 100.0)]).double().numpy()
    expected = torch.from_numpy(scipy.optimize.nnls(system, right)[0])
    expected = expected / expected.sum() @ rows
    found = shortest_combination(rows @ rows.T) @ rows
    assert float((found - expected).norm() / expected.norm()) <= 1e-8


def test_equal_gradients_share_alike() -> None:
    # Any shares are optimal; rounding decides the last digits.
    one = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(shortest_combination(one), one[0] / 3, rtol=1e-2, atol=0.0)
    # (1, 0) twice, (0, 1): the weights of the first two sum to 1/2.
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(shortest_combination(rows @ rows.T), expected, rtol=1e-2, atol=0.0)


def test_gradients_that_vanish_share_the_shortest_combination() -> None:
    gramian = torch.diag(torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))
    assert shortest_combination(gramian).tolist() == [0.5, 0.0, 0.5]
    assert shortest_combination(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0.5, 0.5]


def test_rounding_in_float32_is_no_obstacle() -> None:
    # A Gramian of dependent gradients that was made in float32 has eigenvalues of -1e-7.
    for seed in range(20):
        rows = gradients("dependent", "one", 11, seed).float()
        gramian = (rows @ rows.T).double()
        w = shortest_combination(gramian)
        assert float((gramian @ w - w @ gramian @ w).min()) >= -1e-5


def test_one_entry_at_a_time_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [gradients("random", "unlike", k, k) for k in (2, 5, 11, 40)]
    grams = [rows @ rows.T for rows in cases]
    expected = [shortest_combination(g) for g in grams]
    monkeypatch.setattr(_qp, "_PATIENCE", -1)
    for gramian, w in zip(grams, expected, strict=True):
        torch.testing.assert_close(shortest_combination(gramian), w, rtol=1e-8, atol=1e-14)


def test_what_is_not_solved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    indefinite = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]]).double()
    with pytest.raises(RuntimeError, match=r"no Gramian of gradients.*eigenvalue -0"):
        shortest_combination(indefinite)
    bad = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)
    for matrix, linear in ((one, bad), (torch.diag(bad), one[0]), (one * torch.inf, one[0])):
        with pytest.raises(ValueError, match="needs finite numbers"):
            nonnegative_qp(matrix, linear)
        if matrix is not one:
            with pytest.raises(ValueError, match="needs finite numbers"):
                shortest_combination(matrix)
    monkeypatch.setattr(_qp, "_solve", lambda unit, right, ridge, free: torch.zeros_like(right))
    with pytest.raises(RuntimeError, match="quadratic program of 2 gradients was not solved"):
        nonnegative_qp(torch.eye(2, dtype=torch.float64), torch.tensor([5.0, 5.0]).double())


def test_a_program_without_a_minimum_ends_in_a_cancelling_combination() -> None:
    # g and -g, both with q = 1: x grows along (1, 1), where they cancel.
    gramian = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    x = nonnegative_qp(gramian, torch.ones(2, dtype=torch.float64))
    assert float(x.min()) > 1e6
    assert cancellation(gramian, x) <= 1e-12


def test_several_programs_with_one_matrix_are_as_each_by_itself() -> None:
    rows = gradients("random", "unlike", 11, 1)
    gramian = rows @ rows.T
    together = nonnegative_qp(gramian, -gramian)
    for q, x in zip(-gramian, together, strict=True):
        torch.testing.assert_close(nonnegative_qp(gramian, q), x, rtol=1e-9, atol=0.0)
