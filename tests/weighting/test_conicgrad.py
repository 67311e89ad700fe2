"""conicgrad: values worked out by hand, and its optimality conditions."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch
from torch import Tensor

from ntkmtl.weighting import create
from ntkmtl.weighting._qp import cancellation, shortest_combination
from weighting.by_hand import close, on_simplex, tensor, weigh
from weighting.gramians import SCALES, SHAPES, gradients


def step(c: float, rows: Tensor) -> Tensor:
    return weigh(create("conicgrad", c=c), rows @ rows.T) @ rows


def test_within_the_cone_it_is_the_shortest_combination() -> None:
    # g_1 = (1, 0), g_2 = (0, 2): g_0 = (.5, 1), |g_0|^2 = 1.25. The shortest combination (.8, .4)
    # of weights (.8, .2) has the square .8 and the product 0.8 with g_0: a cosine of
    # .8 / sqrt(1.25 * .8) = .8. As long as g_0 it is 1.25 times as long: (1, .5).
    for c in (0.5, 0.8 - 1e-9):
        found = weigh(create("conicgrad", c=c), [[1.0, 0.0], [0.0, 4.0]])
        close(found, [1.0, 0.25])


def test_on_the_surface_of_the_cone() -> None:
    # The same gradients. u = (1, 2) / sqrt 5 and across it (2, -1) / sqrt 5; a = (1, 4) / sqrt 5
    # and h = (2, -2) / sqrt 5 on it. At c = 12/13 the step is 12/13 along and 5/13 across, toward
    # g_1, whose product is the smaller one as long as 1 + 2 tan < 4 - 2 tan, tan = 5/12 < 3/4:
    # d = sqrt 5 / 2 (12/13 u + 5/13 across) = (12 + 10, 24 - 5) / 26.
    found = weigh(create("conicgrad", c=12 / 13), [[1.0, 0.0], [0.0, 4.0]])
    close(found, [22 / 26, 19 / 52])


def test_where_no_direction_helps_all_the_worst_loses_least() -> None:
    # g_1 = (2, 0), g_2 = (-4, 2): g_0 = (-1, 1), a = (-1, 3) sqrt 2, h = (1, -1) sqrt 2 on (1, 1) /
    # sqrt 2. Within tan = 3/4 of the axis g_1 loses: d = sqrt 2 (.8 u + .6 (1, 1) / sqrt 2)
    # = (-.2, 1.4) = 1.3 g_1 + .7 g_2.
    rows = tensor([[2.0, 0.0], [-4.0, 2.0]])
    close(weigh(create("conicgrad", c=0.8), rows @ rows.T), [1.3, 0.7])


def test_a_task_that_is_done_and_one_that_would_get_worse() -> None:
    # g_1 = 0, so no worst product is above 0; g_2 = (4, 0), g_3 = (-2, 1): g_0 = (2, 1) / 3.
    # Across, on (-1, 2) / sqrt 5, g_3 has 4 / sqrt 5 and along -3 / sqrt 5: it needs a tangent of
    # 3/4, within 4/3. d = |g_0| (.8 u + .6 across) = (1.6 - .6, .8 + 1.2) / 3: at right angles to
    # g_3.
    rows = tensor([[0.0, 0.0], [4.0, 0.0], [-2.0, 1.0]])
    close(step(0.6, rows), [1 / 3, 2 / 3])


@pytest.mark.parametrize(
    "rows",
    [
        [[0.0, 0.0], [0.0, 1.0]],  # a task that is done, and none that gets worse
        [[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]],  # two that oppose each other
        [[2.0], [-1.0], [3.0]],  # one line
        [[3.0, 1.0]],
    ],
)
def test_the_mean_where_nothing_is_to_be_gained(rows: list[list[float]]) -> None:
    matrix = tensor(rows)
    close(step(0.5, matrix), matrix.mean(dim=0), 1e-12)


@pytest.mark.parametrize("rows", [[[0.0], [0.0]], [[1.0], [-1.0]]])
def test_without_a_mean_there_is_no_cone(rows: list[list[float]]) -> None:
    matrix = tensor(rows)
    assert weigh("conicgrad", matrix @ matrix.T).tolist() == [0.5, 0.5]


def test_at_a_cosine_of_one_it_is_the_mean() -> None:
    rows = gradients("random", "one", 5, 0)
    torch.testing.assert_close(step(1.0, rows), rows.mean(dim=0), rtol=1e-9, atol=0.0)


def test_the_step_does_not_jump_where_tasks_begin_to_conflict() -> None:
    # The shortest combination leaves the cone, and then the best worst product becomes negative.
    angles = torch.linspace(0.5, 3.0, 400, dtype=torch.float64)
    found = [step(0.7, tensor([[3.0, 0.0], [math.cos(a), math.sin(a)]])) for a in angles]
    products = [
        float(torch.minimum(d[0], d @ tensor(math.cos(a), math.sin(a))))
        for d, a in zip(found, angles, strict=True)
    ]
    assert products[0] > 0 > products[-1]
    jumps = (torch.stack(found).diff(dim=0)).norm(dim=1)
    assert float(jumps.max()) < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_no_weights_of_the_dual_show_a_better_worst_product(seed: int) -> None:
    # min over i of <g_i, d> is at most <g_w, d> for w on the simplex, and in the cone that is at
    # most |g_0| times |g_w| or, where g_w is outside, c a_w + s |h_w|.
    rows = gradients("random", "one", 2 + seed % 4, seed)
    c, mean = 0.8, rows.mean(dim=0)
    length = float(mean.norm())
    axis = mean / length
    worst = float((rows @ step(c, rows)).min())

    def bound(w: object) -> float:
        combined = torch.as_tensor(w) @ rows
        along = float(combined @ axis)
        if along >= c * float(combined.norm()):
            return length * float(combined.norm())
        return length * (c * along + math.sqrt(1 - c**2) * float((combined - along * axis).norm()))

    best = bound(on_simplex(bound, len(rows)))
    if worst > 0:
        assert worst == pytest.approx(best, rel=1e-5)
    else:
        assert best <= 1e-6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("c", [0.2, 0.9])
@pytest.mark.parametrize("k", [1, 2, 3, 11, 40])
def test_optimality_conditions(k: int, c: float, shape: str, scale: str) -> None:
    rows = gradients(shape, scale, k, k)
    gramian = rows @ rows.T
    uniform = torch.full((k,), 1 / k, dtype=torch.float64)
    weights = weigh(create("conicgrad", c=c), gramian)
    if cancellation(gramian, uniform) <= 1e-12:
        assert weights.tolist() == uniform.tolist()
        return
    size = float((weights.abs() * rows.norm(dim=1)).sum())
    mean, d = rows.mean(dim=0), weights @ rows
    length = float(mean.norm())
    rough = 1e-7 + 1e-9 * size / length
    assert float(d.norm()) == pytest.approx(length, rel=rough)
    axis, direction = mean / length, d / d.norm()
    assert float(axis @ direction) >= c - rough

    # Along u + v, v is as short as it can be for its worst product: a sum of the active tasks'
    # parts across, with weights that are not negative; within the cone, a sum of their gradients.
    along = rows @ axis
    parts = rows - along[:, None] * axis
    across = direction / float(axis @ direction) - axis
    products = along + parts @ across
    norms = rows.norm(dim=1)
    noise = 10 * rough * norms  # a long gradient's product is known less closely
    active = products - noise <= (products + noise).min()
    inside = float(axis @ direction) > c + rough
    shortest = shortest_combination(gramian)
    helps = cancellation(gramian, shortest) > 1e-12
    sums, target = (rows, direction) if inside and helps else (parts, across)
    columns = sums[active] / norms[active].clamp_min(1e-300)[:, None]
    _, residual = scipy.optimize.nnls(columns.T.numpy(), target.numpy())
    assert residual <= 100 * rough
