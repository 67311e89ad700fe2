"""Every method that solves something: its optimality conditions, on the gradients themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, create
from ntkmtl.weighting._qp import cancellation, shortest_combination
from weighting.gramians import SCALES, SHAPES, gradients

INDEPENDENT = ("random", "wide")
COUNTS = (2, 3, 11, 40)


def weigh(weighting: Weighting, rows: Tensor) -> Tensor:
    k = len(rows)
    return weighting(ExtendedNTK((rows @ rows.T).reshape(k, 1, k, 1)))


def unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", COUNTS)
def test_mgda_is_the_least_norm(k: int, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    shortest = weigh(create("mgda"), rows) @ rows
    # <g_i, d> >= |d|^2 for all i: the hull lies beyond the plane through its nearest point.
    slack = rows @ shortest - shortest @ shortest
    size = rows.norm(dim=1) * rows.norm(dim=1).min()
    assert bool((slack >= -1e-9 * size).all())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", COUNTS)
def test_dualproj_is_the_nearest_without_conflict(k: int, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    moved = weigh(create("dualproj", regularization=0.0), rows) - 1 / k
    assert float(moved.min()) >= -1e-15
    mean = rows.mean(dim=0)
    products = unit(rows) @ (mean + moved @ rows)
    # What the projection adds is a sum of terms that may cancel, and so is the mean.
    size = mean.norm() + (moved * rows.norm(dim=1)).sum() + 1e-6 * rows.norm(dim=1).mean()
    assert float(products.min()) >= -1e-9 * float(size)
    terms = moved * rows.norm(dim=1)
    assert bool((torch.minimum(products.abs(), terms) <= 1e-9 * size).all())


@pytest.mark.parametrize("scale", ["one", "tiny", "huge"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", COUNTS)
def test_upgrad_conflicts_with_none(k: int, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    weights = weigh(create("upgrad", regularization=0.0), rows)
    assert float(weights.min()) >= 0.0
    products = unit(rows) @ (weights @ rows)
    assert float(products.min()) >= -1e-9 * float((weights * rows.norm(dim=1)).sum())


@pytest.mark.parametrize("k", COUNTS)
def test_upgrad_is_the_mean_of_projections(k: int) -> None:
    rows = gradients("random", "one", k, k)
    found = weigh(create("upgrad", regularization=0.0), rows) @ rows
    # By Moreau: a projection onto the dual cone is what is left after the nearest point of the cone
    # of the opposite gradients, which non-negative least squares finds.
    left = [
        row.numpy() + rows.T.numpy() @ scipy.optimize.nnls(rows.T.numpy(), -row.numpy())[0]
        for row in rows
    ]
    expected = torch.from_numpy(np.mean(left, axis=0))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9 * float(rows.norm()))


@pytest.mark.parametrize("tau", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", COUNTS)
def test_pcd_is_the_nearest_that_serves_all(k: int, shape: str, tau: float) -> None:
    rows = gradients(shape, "one", k, k)
    rows = rows[rows.norm(dim=1) > 0]
    found = weigh(create("pcd", tau=tau, epsilon=0.0), rows)
    terms = found * rows.norm(dim=1)
    if len(rows) == 1:
        assert found.tolist() == [1.0]
        return
    if float(terms[0]) == 0.0:
        # The direction is zero, which takes that tau is and that nothing serves all but nothing.
        assert tau == 0.0
        assert not bool(found.any())
        return
    multipliers = terms[1:] / terms[0]
    assert float(multipliers.min()) >= 0.0
    units = unit(rows)
    direction = units[0] + multipliers @ units[1:]
    slack = units[1:] @ direction - tau
    if not bool(multipliers.any()) and float(slack.min()) < -1e-9:
        # No direction serves all: some combination of the others is zero, or nearly.
        others = units[1:] @ units[1:].T
        assert cancellation(others, shortest_combination(others)) <= 1e-6
        return
    size = 1.0 + float(multipliers.sum())
    assert float(slack.min()) >= -1e-9 * size
    assert bool((torch.minimum(slack.abs(), multipliers / size) <= 1e-9 * size).all())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("c", [0.05, 0.4, 0.9, 2.0])
@pytest.mark.parametrize("k", COUNTS)
def test_cagrad_is_the_best_of_its_ball(k: int, c: float, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    mean = rows.mean(dim=0)
    gramian = rows @ rows.T
    uniform = torch.full((k,), 1 / k, dtype=torch.float64)
    moved = weigh(create("cagrad", c=c), rows) - uniform
    terms = moved * rows.norm(dim=1)
    if cancellation(gramian, uniform) <= 1e-12:
        assert not bool(moved.any())
        return
    step = moved @ rows
    radius = c * float(mean.norm())
    size = float(mean.norm()) + float(terms.sum())
    # A Gramian knows the square of a sum of terms to rounding of the terms' squares.
    left = cancellation(gramian, moved)
    rough = 1e-9 + (1e-15 / left if left > 0 else 0.0)
    assert float(step.norm()) <= radius * (1 + rough)
    assert float(moved.min()) >= -1e-15
    products = rows @ (mean + step)
    norms = rows.norm(dim=1).clamp_min(1e-300)
    active = terms > 1e-9 * size
    if bool(active.any()):
        # All active tasks have the worst product; the shortest gradient's has the least rounding.
        worst = products[norms.where(active, torch.inf).argmin()]
        above = torch.where(norms > 1e-300, (products - worst) / norms, 0.0)
        assert float(above.min()) >= -1e-9 * size
        assert float(above[active].max()) <= 1e-9 * size
    if float(step.norm()) < radius * (1 - rough):
        # Within the ball: a combination of zero says that no worst product is above 0.
        assert cancellation(gramian, shortest_combination(gramian)) <= 1e-12
        assert bool((products >= -1e-9 * norms * size).all())


def test_cagrad_where_two_gradients_oppose_each_other() -> None:
    # <g_1, d> and <g_2, d> cannot both be positive, so d = (0, y), and the nearest such direction
    # to the mean (1/30, 1/3) has y = 1/3.
    rows = torch.tensor([[1.1, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = weigh(create("cagrad", c=0.4), rows) @ rows
    torch.testing.assert_close(
        found, torch.tensor([0.0, 1 / 3], dtype=torch.float64), rtol=0.0, atol=1e-12
    )
    # A ball of radius 1/60 that does not reach it: half the way.
    c = (1 / 60) / math.hypot(1 / 30, 1 / 3)
    found = weigh(create("cagrad", c=c), rows) @ rows
    torch.testing.assert_close(
        found, torch.tensor([1 / 60, 1 / 3], dtype=torch.float64), rtol=0.0, atol=1e-12
    )


def test_cagrad_of_a_task_that_is_done_stays_near_the_mean() -> None:
    # g_3 = 0: the mean of the others, which do not conflict, hurts none and is kept.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = weigh(create("cagrad"), rows)
    torch.testing.assert_close(
        found, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-12, atol=0.0
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", COUNTS)
def test_the_fair_allocation_solves_its_equation(
    k: int, shape: str, scale: str, alpha: float
) -> None:
    rows = gradients(shape, scale, k, k)
    weights = weigh(create("fairgrad", alpha=alpha), rows)
    assert bool((weights > 0).all())
    live = rows.norm(dim=1) > 0
    rows, weights = rows[live], weights[live]
    norms = rows.norm(dim=1)
    residual = rows @ (weights @ rows) - weights.pow(-1 / alpha)
    # Cosines below 1e-10 of the largest eigenvalue are raised to it.
    assert bool((residual.abs() <= 1e-9 * k * norms * (norms @ weights)).all())
    if alpha == 1.0:
        nash = weigh(create("nash-mtl"), rows)
        torch.testing.assert_close(nash, weights, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["imtl-g", "config"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", INDEPENDENT)
@pytest.mark.parametrize("k", COUNTS)
def test_equal_projections(k: int, shape: str, scale: str, name: str) -> None:
    rows = gradients(shape, scale, k, k)
    combined = weigh(create(name), rows) @ rows
    projections = unit(rows) @ combined
    size = float((weigh(create(name), rows).abs() * rows.norm(dim=1)).sum())
    assert float((projections - projections.mean()).abs().max()) <= 1e-9 * size
    if name == "config":
        # As long as the sum of the gradients' projections on its own direction.
        along = (rows @ combined).sum() / combined.norm()
        torch.testing.assert_close(combined.norm(), along, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", ["imtl-g", "config"])
@pytest.mark.parametrize("shape", ["dependent", "equal"])
@pytest.mark.parametrize("k", COUNTS)
def test_equal_projections_in_the_least_squares_sense(k: int, shape: str, name: str) -> None:
    rows = gradients(shape, "unlike", k, k)
    combined = weigh(create(name), rows) @ rows
    units = unit(rows)
    if float(combined.norm()) == 0.0:
        return
    # Normal equations: with U^+ 1 = s d, U^T (U s d - 1) = 0.
    ones = torch.ones(k, dtype=torch.float64)
    image, target = units @ combined, units.T @ ones
    factor = (target @ (units.T @ image)) / (units.T @ image).square().sum()
    error = units.T @ (factor * image) - target
    assert float(error.norm()) <= 1e-8 * float(target.norm())


@pytest.mark.parametrize("scale", ["one", "tiny", "huge"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "near"])
@pytest.mark.parametrize("k", COUNTS)
def test_aligned_mtl_has_equal_singular_values(k: int, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    found = weigh(create("aligned-mtl"), rows) @ rows
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    kept = values > 1e-6 * values.max()
    expected = values[kept].min() * (left[:, kept].sum(dim=0) @ right[kept])
    assert float((found - expected).norm()) <= 1e-8 * float(values.max())


@pytest.mark.parametrize(
    ("name", "shape", "scale", "k", "seed"),
    [
        ("cagrad", "near", "one", 2, 1001),
        ("cagrad", "near", "unlike", 2, 1099),
        ("cagrad", "near", "tiny", 2, 1141),
        ("fairgrad", "line", "unlike", 6, 1179),
        ("fairgrad", "near", "unlike", 3, 1310),
        ("fairgrad", "opposed", "unlike", 3, 1534),
        ("nash-mtl", "near", "tiny", 3, 1562),
    ],
)
def test_gradients_that_nearly_cancel_end_no_run(
    name: str, shape: str, scale: str, k: int, seed: int
) -> None:
    rows = gradients(shape, scale, k, seed)
    for matrix in (rows, rows.float().double()):
        weights = weigh(create(name), matrix)
        assert bool((weights > 0).all())
        assert bool(weights.isfinite().all())
