"""More methods of the field: values worked out by hand, and independent implementations."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torchjd import aggregation, scalarization

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import Weighting, create
from ntkmtl.weighting._go4align import group_means

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kernel_of(gramian: Tensor | Sequence[Sequence[float]]) -> ExtendedNTK:
    gramian = torch.as_tensor(gramian, dtype=torch.float64)
    k = len(gramian)
    return ExtendedNTK(gramian.reshape(k, 1, k, 1))


def weigh(weighting: Weighting | str, gramian: Any, **given: Any) -> Tensor:
    if isinstance(weighting, str):
        weighting = create(weighting)
    return weighting(kernel_of(gramian), **given)


def gradients(k: int = 3, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, width, dtype=torch.float64, generator=generator)


def slopes(total: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Differentiate a written-out total by the losses."""
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(total(losses), losses)[0]


LOSSES = tensor(0.5, 4.0, 2.0)


# --------------------------------------------------------------------------- GLS, unit, fixed


def test_gls_by_hand() -> None:
    # (1 * 4 * 2) ** (1/3) = 2; d L / d l_i = L / (3 l_i) = (2/3, 1/6, 1/3).
    found = create("gls")(losses=tensor(1.0, 4.0, 2.0))
    torch.testing.assert_close(found, tensor(2 / 3, 1 / 6, 1 / 3), **EXACT)
    # A loss of zero is left out: sqrt(1 * 4) = 2; 2 / (2 * 1), 2 / (2 * 4).
    found = create("gls")(losses=tensor(0.0, 1.0, 4.0))
    torch.testing.assert_close(found, tensor(0.0, 1.0, 0.25), **EXACT)
    with pytest.raises(ValueError, match="negative"):
        create("gls")(losses=tensor(-1.0, 1.0))


@pytest.mark.parametrize("k", [1, 2, 40])
def test_gls_is_the_slope_of_torchjds_geometric_mean(k: int) -> None:
    losses = torch.rand(k, dtype=torch.float64) * 10 + 1e-3
    expected = slopes(scalarization.GeometricMean(), losses)
    torch.testing.assert_close(create("gls")(losses=losses), expected, **EXACT)


def test_unit_is_the_plain_sum() -> None:
    assert create("unit")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]


def test_fixed() -> None:
    assert create("fixed")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]
    for weights in ([0.5, 2.0, 0.0], (0.5, 2, 0), {"a": 0.5, "b": 2.0, "c": 0.0}):
        weighting = create("fixed", weights=weights)
        assert weighting(losses=LOSSES).tolist() == [0.5, 2.0, 0.0]
        # A task without labels takes its own weight along, not its position among the others.
        found = weighting(losses=LOSSES[[0, 2]], tasks=torch.tensor([0, 2]))
        assert found.tolist() == [0.5, 0.0]
    assert repr(create("fixed", weights=[1, 2])) == "FixedWeights(weights=[1.0, 2.0])"


def test_fixed_needs_one_weight_per_task() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 tasks"):
        create("fixed", weights=[1.0, 2.0])(losses=LOSSES)
    with pytest.raises(ValueError, match="2 weights for 3 tasks"):
        Balancer("fixed", tasks=3, weights=[1.0, 2.0])
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    Balancer("fixed", weights=[3.0, 0.5]).backward([p[0] ** 2, p[1] ** 2])
    assert p.grad is not None
    assert p.grad.tolist() == [6.0, 1.0]


# --------------------------------------------------------------------------- IMTL


def test_imtl_l_by_hand() -> None:
    # w_i = exp(s_i); d / d s_i of sum_i exp(s_i) l_i - s_i is exp(s_i) l_i - 1.
    weighting = create("imtl-l", tasks=3)
    (parameter,) = weighting.parameters()
    with torch.no_grad():
        parameter.copy_(tensor(0.0, math.log(0.25), math.log(2.0)))
    torch.testing.assert_close(
        weighting(losses=LOSSES), tensor(1.0, 0.25, 2.0), rtol=1e-6, atol=0.0
    )
    weighting.accumulate(LOSSES, torch.arange(3), 1.0)
    assert parameter.grad is not None
    torch.testing.assert_close(parameter.grad.double(), tensor(-0.5, 0.0, 3.0), rtol=0, atol=1e-6)
    weighting.accumulate(LOSSES[1:], torch.tensor([1, 2]), 2.0)
    torch.testing.assert_close(parameter.grad.double(), tensor(-0.5, 0.0, 9.0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="negative"):
        weighting(losses=-LOSSES)
    with pytest.raises(ValueError, match="made for 3 tasks, found 4"):
        weighting(losses=torch.ones(4))


def test_imtl_l_trains_as_torchjd_does() -> None:
    ours, theirs = create("imtl-l", tasks=3), scalarization.IMTLL(3)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (ours, theirs)]
    for _ in range(20):
        losses = torch.rand(3, dtype=torch.float64) * 3
        for optimizer in optimizers:
            optimizer.zero_grad()
        values = losses.clone().requires_grad_()
        theirs(values).backward()
        torch.testing.assert_close(ours(losses=losses), values.grad, rtol=1e-5, atol=1e-7)
        ours.accumulate(losses, torch.arange(3), 1.0)
        for optimizer in optimizers:
            optimizer.step()


def test_imtl_by_hand() -> None:
    # Scales (1, 1/3) make orthogonal gradients of norms 1 and 3 equally long: alpha = (1/2, 1/2),
    # so w = (1/2 * 1, 1/2 * 1/3).
    weighting = create("imtl")
    weighting.prepare(2, torch.device("cpu"))
    state = weighting.state_dict()
    state["values"] = tensor(0.0, math.log(1 / 3))
    weighting.load_state_dict(state)
    found = weigh(weighting, torch.diag(tensor(1.0, 9.0)))
    torch.testing.assert_close(found, tensor(1 / 2, 1 / 6), **EXACT)
    with pytest.raises(ValueError, match="negative"):
        weigh(weighting, torch.eye(2), losses=tensor(-1.0, 1.0))


def test_imtl_has_equal_projections_on_scaled_gradients_and_learns_the_scales() -> None:
    weighting = create("imtl", learning_rate=0.1)
    scales = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scales], lr=0.1)
    for seed in range(10):
        rows = gradients(3, 6, seed)
        losses = rows[:, 0].square() + 0.1
        weights = weigh(weighting, rows @ rows.T, losses=losses)
        # The paper's closed form, as a linear system: projections equal, alpha summing to 1.
        scaled = scales.detach().exp()[:, None] * rows
        units = scaled / scaled.norm(dim=1, keepdim=True)
        system = torch.cat([(units[:1] - units[1:]) @ scaled.T, torch.ones(1, 3).double()])
        alpha = torch.linalg.solve(system, tensor(0.0, 0.0, 1.0))
        torch.testing.assert_close(weights, alpha * scales.detach().exp(), rtol=1e-7, atol=1e-9)
        optimizer.zero_grad()
        (scales.exp() * losses - scales).sum().backward()
        optimizer.step()


# --------------------------------------------------------------------------- GradNorm


def test_gradnorm_by_hand() -> None:
    # Norms (3, 1), losses (2, 1) and then (1, 1). First step: r = (1, 1), targets 2, so the
    # weights move by 0.1 to (0.9, 1.1). Second: ratios (1/2, 1), mean 3/4, r = (2/3, 4/3), with
    # alpha = 1; G = (2.7, 1.1), mean 1.9; targets (1.27, 2.53): again down and up, and a step of
    # Adam whose gradients are all equal is 0.1 again.
    weighting = create("gradnorm", alpha=1.0, learning_rate=0.1)
    gramian = torch.diag(tensor(9.0, 1.0))
    expected = [(1.0, 1.0), (0.9, 1.1), (0.8, 1.2)]
    for losses, weights in zip([(2.0, 1.0), (1.0, 1.0), (1.0, 1.0)], expected, strict=True):
        found = weigh(weighting, gramian, losses=tensor(*losses))
        torch.testing.assert_close(found, tensor(*weights), rtol=1e-6, atol=0.0)
    with pytest.raises(ValueError, match="negative"):
        weigh(weighting, gramian, losses=tensor(-1.0, 1.0))


def test_gradnorm_rate_changes_the_sign() -> None:
    # Equal norms; task 1 fell to a quarter, task 0 not at all: r = (1.6, 0.4), so with alpha = 1
    # the target of task 0 is above its norm and that of task 1 below.
    weighting = create("gradnorm", alpha=1.0, learning_rate=0.1)
    weigh(weighting, torch.eye(2), losses=tensor(1.0, 1.0))
    weigh(weighting, torch.eye(2), losses=tensor(1.0, 0.25))
    found = weigh(weighting, torch.eye(2), losses=tensor(1.0, 0.25))
    assert found[0] > 1.0 > found[1]
    # With alpha = 0 rates do not matter.
    weighting = create("gradnorm", alpha=0.0, learning_rate=0.1)
    for losses in (tensor(1.0, 1.0), tensor(1.0, 0.25), tensor(1.0, 0.25)):
        assert weigh(weighting, torch.eye(2), losses=losses).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gradnorm_is_the_descent_of_algorithm_1(scale: float) -> None:
    alpha, learning_rate, k = 1.5, 0.05, 4
    weighting = create("gradnorm", alpha=alpha, learning_rate=learning_rate)
    weights = torch.ones(k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    first = None
    for seed in range(40):
        rows = gradients(k, 6, seed) * tensor(0.5, 1.0, 2.0, 3.0)[:, None]
        losses = torch.rand(k, dtype=torch.float64) + 0.1
        found = weigh(weighting, rows @ rows.T * scale, losses=losses)
        torch.testing.assert_close(found, weights.detach(), rtol=1e-6, atol=1e-9)
        first = losses if first is None else first
        norms = rows.norm(dim=1) / rows.square().sum(dim=1).mean().sqrt()
        sizes = weights * norms
        ratio = losses / first
        target = (sizes.mean() * (ratio / ratio.mean()) ** alpha).detach()
        optimizer.zero_grad()
        (sizes - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=1e-6)
            weights *= k / weights.sum()


def test_gradnorm_weights_stay_positive_and_keep_their_sum() -> None:
    weighting = create("gradnorm", learning_rate=0.5)
    for _ in range(20):
        found = weigh(weighting, torch.diag(tensor(1e4, 1.0, 1e-4)), losses=tensor(1.0, 1.0, 1.0))
        assert (found > 0).all()
        assert found.sum().item() == pytest.approx(3.0)


def test_gradnorm_with_losses_of_zero() -> None:
    weighting = create("gradnorm")
    for losses in (tensor(0.0, 0.0), tensor(0.0, 1.0), tensor(3.0, 0.0), tensor(1.0, 1.0)):
        assert weigh(weighting, torch.diag(tensor(1.0, 0.0)), losses=losses).isfinite().all()


# --------------------------------------------------------------------------- GO4Align


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_the_best_of_all_assignments(groups: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.exp(generator.normal(size=6) * 2)
    best, expected = math.inf, values
    if groups < 6:
        for labels in itertools.product(range(groups), repeat=6):
            label = np.array(labels)
            means = np.array([values[label == g].mean() for g in label])
            if (cost := ((values - means) ** 2).sum()) < best:
                best, expected = cost, means
    found = group_means(torch.from_numpy(values), groups)
    torch.testing.assert_close(found, torch.from_numpy(expected), **EXACT)


def test_groups_of_equal_numbers() -> None:
    assert group_means(tensor(2.0, 2.0, 2.0), 2).tolist() == [2.0, 2.0, 2.0]
    assert group_means(tensor(0.0, 0.0, 0.0), 2).tolist() == [0.0, 0.0, 0.0]
    assert group_means(tensor(3.0, 1.0, 3.0, 1.0), 3).tolist() == [3.0, 1.0, 3.0, 1.0]


def test_go4align_by_hand() -> None:
    # beta = log 2, losses (1, 1, 2): p is proportional to (1/2, 1/2, 1/4), so (2/5, 2/5, 1/5);
    # v = p 4 / l = (8/5, 8/5, 2/5). Two groups are those two, one is their mean 6/5.
    losses = tensor(1.0, 1.0, 2.0)
    found = create("go4align", groups=2, step_size=math.log(2.0))(losses=losses)
    torch.testing.assert_close(found, tensor(1.6, 1.6, 0.4), **EXACT)
    found = create("go4align", groups=1, step_size=math.log(2.0))(losses=losses)
    torch.testing.assert_close(found, tensor(1.2, 1.2, 1.2), **EXACT)


def test_go4align_is_the_published_recurrence() -> None:
    step_size, k, groups = 0.3, 5, 2
    weighting = create("go4align", groups=groups, step_size=step_size)
    indicators = np.full(k, 1 / k)
    generator = np.random.default_rng(0)
    for _ in range(6):
        losses = generator.uniform(0.1, 3.0, size=k)
        indicators = indicators * np.exp(-step_size * losses)
        indicators = indicators / indicators.sum()
        values = losses.sum() / losses * indicators
        expected = group_means(torch.from_numpy(values), groups)
        torch.testing.assert_close(weighting(losses=torch.from_numpy(losses)), expected, **EXACT)


def test_go4align_losses_of_zero() -> None:
    weighting = create("go4align")
    assert weighting(losses=tensor(0.0, 0.0)).tolist() == [0.0, 0.0]
    found = weighting(losses=tensor(0.0, 2.0))
    assert found[0] == 0.0
    assert found[1] > 0.0
    with pytest.raises(ValueError, match="negative"):
        weighting(losses=tensor(-1.0, 2.0))


# --------------------------------------------------------------------------- UPGrad, DualProj


def projected(rows: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Weights w >= u of least |J^T w|, by non-negative least squares over w - u."""
    return u + scipy.optimize.nnls(rows.T, -rows.T @ u)[0]


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e24])
@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_dual_cone_methods_solve_their_program(k: int, seed: int, scale: float) -> None:
    rows = gradients(k, k + 2, seed)
    gramian = rows @ rows.T * scale
    J = rows.numpy()
    mean = np.full(k, 1 / k)
    each = sum(projected(J, row) for row in np.diag(mean))
    options = {"regularization": 1e-12}
    found = weigh(create("upgrad", **options), gramian)
    torch.testing.assert_close(found, torch.from_numpy(each), rtol=1e-6, atol=1e-8)
    found = weigh(create("dualproj", **options), gramian)
    torch.testing.assert_close(found, torch.from_numpy(projected(J, mean)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
@pytest.mark.parametrize("seed", range(3))
def test_dual_cone_methods_do_not_conflict(name: str, seed: int) -> None:
    rows = gradients(4, 6, seed)
    gramian = rows @ rows.T
    found = weigh(name, gramian)
    assert (rows @ (found @ rows) >= -1e-3 * gramian.diagonal()).all()


def test_upgrad_by_hand() -> None:
    # g_1 = (1, 1), g_2 = (-1, 0). g_1 becomes (0, 1) = g_1 + g_2; g_2 becomes (-1/2, 1/2) =
    # g_2 + g_1 / 2. Their mean: ((1 + 1/2) g_1 + (1 + 1) g_2) / 2.
    found = weigh("upgrad", [[2.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(found, tensor(0.75, 1.0), rtol=0.0, atol=1e-3)


def test_dualproj_by_hand() -> None:
    # g_1 = (4, 0), g_2 = (-1, 1): the mean (3/2, 1/2) has product -1 with g_2 of squared norm 2;
    # adding g_2 / 2 makes it (1, 1).
    found = weigh("dualproj", [[16.0, -4.0], [-4.0, 2.0]])
    torch.testing.assert_close(found, tensor(0.5, 1.0), rtol=0.0, atol=2e-3)
    # No conflict: the mean.
    found = weigh("dualproj", [[16.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(found, tensor(0.5, 0.5), **EXACT)


# --------------------------------------------------------------------------- GradVac


def test_gradvac_by_hand() -> None:
    # First step, targets 0: gradient surgery. g_1 = (1, 1), g_2 = (-1, 0): g_1 + g_2, g_2 + g_1/2.
    weighting = create("gradvac")
    found = weigh(weighting, [[2.0, -1.0], [-1.0, 1.0]])
    torch.testing.assert_close(found, tensor(1.5, 2.0), **EXACT)
    # Cosines were -1/sqrt(2), so with beta = 1/2 both targets are t = -1/sqrt(8). Unit gradients
    # of cosine -1/2 are below: each gets the other times
    # t sqrt(3/4) / sqrt(7/8) + 1/2 = 1/2 - sqrt(3/28).
    found = weigh(weighting, [[1.0, -0.5], [-0.5, 1.0]])
    step = 0.5 - math.sqrt(3 / 28)
    torch.testing.assert_close(found, tensor(1 + step, 1 + step), **EXACT)
    # Targets are (t - 1/2) / 2, below a cosine of 0: the plain sum.
    torch.testing.assert_close(weigh(weighting, torch.eye(2)), tensor(1.0, 1.0), **EXACT)


def test_gradvac_reaches_its_target() -> None:
    rows = gradients(2, 4)
    weighting = create("gradvac", beta=1.0)
    weigh(weighting, rows @ rows.T)
    before = float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0))
    other = gradients(2, 4, seed=3)
    assert float(torch.nn.functional.cosine_similarity(other[0], other[1], dim=0)) < before
    weights = weigh(weighting, other @ other.T)
    for i, j in ((0, 1), (1, 0)):
        changed = other[i] + (weights[j] - 1) * other[j]
        found = float(torch.nn.functional.cosine_similarity(changed, other[j], dim=0))
        assert found == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_gradvac_equals_torchjd(k: int, beta: float) -> None:
    ours = create("gradvac", beta=beta, seed=7)
    theirs = aggregation.GradVacWeighting(beta=beta, eps=1e-14)
    torch.manual_seed(7)
    # Both draw one permutation per task in each step.
    for seed in range(8):
        rows = gradients(k, 4, seed)
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), rtol=1e-8, atol=1e-9)


# --------------------------------------------------------------------------- PCD


def test_pcd_by_hand() -> None:
    # Orthogonal units, tau = 3/4: d = (1, 3/4), rescaled from 5/4 to 1: (4/5, 3/5).
    options = {"tau": 0.75, "epsilon": 0.0}
    found = weigh(create("pcd", **options), torch.eye(2))
    torch.testing.assert_close(found, tensor(0.8, 0.6), **EXACT)
    # Gradients of norms 2 and 3: the same direction of units, of norm 2: (2/2, 2/3) times that.
    found = weigh(create("pcd", **options), torch.diag(tensor(4.0, 9.0)))
    torch.testing.assert_close(found, tensor(0.8, 0.4), **EXACT)
    # The other way round, where the second is primary.
    found = weigh(create("pcd", primary=1, **options), torch.diag(tensor(4.0, 9.0)))
    torch.testing.assert_close(found, tensor(0.9, 0.8), **EXACT)
    # Cosine 3/4 already: the primary gradient alone.
    found = weigh(create("pcd", **options), [[1.0, 0.8], [0.8, 1.0]])
    torch.testing.assert_close(found, tensor(1.0, 0.0), **EXACT)
    # No direction serves two opposite gradients: the primary gradient is left.
    found = weigh(create("pcd", **options), [[1, 0, 0], [0, 1, -1], [0, -1, 1]])
    torch.testing.assert_close(found, tensor(1.0, 0.0, 0.0), **EXACT)
    # The step is as long as the primary gradient.
    assert weigh("pcd", torch.diag(tensor(0.0, 1.0))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_pcd_equals_torchjd(k: int, tau: float) -> None:
    ours = create("pcd", tau=tau, beta=0.9, epsilon=0.0)
    theirs = aggregation.PCDWeighting(tau=tau, beta=0.9, eps=0.0)
    for seed in range(6):
        rows = gradients(k, 10, seed) * torch.arange(1, k + 1)[:, None]
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_pcd_is_the_nearest_direction_that_serves_all(seed: int) -> None:
    tau = 0.3
    rows = gradients(4, 6, seed)
    units = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    best = scipy.optimize.minimize(
        lambda d: ((d - units[0]) ** 2).sum() / 2,
        units.sum(axis=0),
        jac=lambda d: d - units[0],
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: units[1:] @ d - tau},
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    expected = torch.from_numpy(best / np.linalg.norm(best)) * rows[0].norm()
    found = weigh(create("pcd", tau=tau, epsilon=0.0), rows @ rows.T) @ rows
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_pcd_tasks_without_labels() -> None:
    weighting = create("pcd", tau=0.75, beta=0.5, epsilon=0.0)
    weigh(weighting, torch.diag(tensor(1.0, 4.0, 9.0)))
    # The primary task is missing: task 1 takes its place. Debiased averages of equal numbers are
    # these numbers, so units are as before.
    found = weigh(weighting, torch.diag(tensor(4.0, 9.0)), tasks=torch.tensor([1, 2]))
    torch.testing.assert_close(found, tensor(0.8, 0.4), **EXACT)
    state = weighting.state_dict()
    # beta = 1/2: averages (1/2) 1, (3/4) 4, (3/4) 9.
    torch.testing.assert_close(state["average"], tensor(0.5, 3.0, 6.75), **EXACT)
    assert state["updates"].tolist() == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="primary=3, but there are 3 tasks"):
        Balancer("pcd", tasks=3, primary=3)


# --------------------------------------------------------------------------- ConFIG


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_config_equals_torchjd(k: int, seed: int, scale: float) -> None:
    rows = gradients(k, 8, seed) * scale * torch.logspace(-2, 2, k, dtype=torch.float64)[:, None]
    found = weigh("config", rows @ rows.T) @ rows
    torch.testing.assert_close(found, aggregation.ConFIG()(rows), rtol=1e-8, atol=1e-10 * scale)
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (found / found.norm())
    torch.testing.assert_close(cosines, cosines.mean().expand(k), **EXACT)
    length = found.norm()
    torch.testing.assert_close(length, (rows @ found).sum() / length, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", ["twice", "zero", "more than entries"])
def test_config_of_dependent_gradients_equals_torchjd(kind: str) -> None:
    rows = gradients(4, 8)
    if kind == "twice":
        rows[3] = 2 * rows[0]
    elif kind == "zero":
        rows[1] = 0
    else:
        rows = gradients(6, 3)
    found = weigh("config", rows @ rows.T) @ rows
    torch.testing.assert_close(found, aggregation.ConFIG()(rows), rtol=1e-7, atol=1e-9)


def test_config_by_hand() -> None:
    # Orthogonal, norms 1 and 3: the direction is (1, 1) / sqrt(2) of units, the projections on it
    # sum to 4 / sqrt(2), so the gradient is 2 (u_1 + u_2): w = (2, 2/3).
    found = weigh("config", torch.diag(tensor(1.0, 9.0)))
    torch.testing.assert_close(found, tensor(2.0, 2 / 3), **EXACT)
    # Opposite: no direction serves both.
    assert weigh("config", [[1.0, -3.0], [-3.0, 9.0]]).tolist() == [0.0, 0.0]
    assert weigh("config", torch.zeros(2, 2)).tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------- CR-MOGM


def test_cr_mogm_by_hand() -> None:
    # imtl-g gives (3/4, 1/4), (1/2, 1/2), (1/4, 3/4); with alpha = 1/2: 3/4, 5/8, 7/16.
    weighting = create("cr-mogm", inner="imtl-g", alpha=0.5)
    for diagonal, first in (((1, 9), 3 / 4), ((1, 1), 5 / 8), ((9, 1), 7 / 16)):
        found = weigh(weighting, torch.diag(tensor(*diagonal)))
        torch.testing.assert_close(found, tensor(first, 1 - first), **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_cr_mogm_equals_torchjd(alpha: float) -> None:
    # Of IMTL-G: TorchJD's MGDA stops before it is there.
    ours = create("cr-mogm", inner="imtl-g", alpha=alpha)
    theirs = aggregation.CRMOGMWeighting(aggregation.IMTLGWeighting(), alpha=alpha)
    for seed in range(6):
        rows = gradients(4, 6, seed)
        found = weigh(ours, rows @ rows.T)
        torch.testing.assert_close(found, theirs(rows @ rows.T), **EXACT)


def test_cr_mogm_task_without_labels_keeps_its_average() -> None:
    weighting = create("cr-mogm", inner="imtl-g", alpha=0.5)
    weighting.prepare(3, torch.device("cpu"))
    weigh(weighting, torch.eye(2), tasks=torch.tensor([0, 2]))
    assert weighting.state_dict()["average"][1].isnan()
    # imtl-g: 1/3 each. Task 1 starts there, the others come from 1/2: 5/12.
    found = weigh(weighting, torch.eye(3), tasks=torch.arange(3))
    torch.testing.assert_close(found, tensor(5 / 12, 1 / 3, 5 / 12), **EXACT)
    weigh(weighting, torch.eye(1), tasks=torch.tensor([2]))
    torch.testing.assert_close(weighting.state_dict()["average"][:2], found[:2], **EXACT)


def test_cr_mogm_takes_names_and_weightings() -> None:
    rows = gradients()
    made = create("nash-mtl")
    for inner in ("nash-mtl", made):
        found = weigh(create("cr-mogm", inner=inner), rows @ rows.T)
        torch.testing.assert_close(found, weigh("nash-mtl", rows @ rows.T), **EXACT)
    balancer = Balancer("cr-mogm", inner="pcgrad", alpha=0.5)
    assert "weighting.inner.random" in balancer.state_dict()
    for other in ("ls", "graddrop", "ntkmtl"):
        with pytest.raises(ValueError, match="reads the Gramian"):
            create("cr-mogm", inner=other)
    with pytest.raises(ValueError, match="unknown method 'zzz'"):
        create("cr-mogm", inner="zzz")


# --------------------------------------------------------------------------- ExcessMTL


@pytest.mark.parametrize(("inner", "more"), [("consmtl", "heads"), ("pivrg", "scores")])
def test_cr_mogm_refuses_methods_that_are_more_than_their_weights(inner: str, more: str) -> None:
    with pytest.raises(ValueError, match=f"Found '{inner}', which also wants .*{more}"):
        create("cr-mogm", inner=inner)


def test_excess_mtl_by_hand() -> None:
    # One entry each: 3 and 4, then 4 and 3. E = g^2 / sqrt(sum g^2): (3, 4), then (16/5, 9/5).
    # The first is the start: equal weights. Then the exponents are (16/15, 9/20).
    weighting = create("excess-mtl", step_size=1.0)
    combined, weights = weighting.combine(torch.diag(tensor(3.0, 4.0)))
    torch.testing.assert_close(weights, tensor(0.5, 0.5), **EXACT)
    torch.testing.assert_close(combined, tensor(1.5, 2.0), **EXACT)
    combined, weights = weighting.combine(torch.diag(tensor(4.0, 3.0)))
    expected = torch.softmax(tensor(16 / 15, 9 / 20), dim=0)
    torch.testing.assert_close(weights, expected, **EXACT)
    torch.testing.assert_close(combined, expected * tensor(4.0, 3.0), **EXACT)


@pytest.mark.parametrize("step_size", [0.01, 1.0])
def test_excess_mtl_equals_torchjd(step_size: float) -> None:
    # Theirs with one step of warm-up has its start from the first step, as the published code.
    ours = create("excess-mtl", step_size=step_size)
    theirs = aggregation.ExcessMTLWeighting(robust_step_size=step_size, n_warmup_steps=1)
    for seed in range(8):
        rows = gradients(3, 6, seed) + 0.5
        combined, weights = ours.combine(rows)
        torch.testing.assert_close(weights, theirs(rows), rtol=1e-4, atol=0.0)
        torch.testing.assert_close(combined, weights @ rows, **EXACT)


def test_excess_mtl_warms_up_by_epochs() -> None:
    # Starts are the means over two epochs of one step: E = 3, then 16 / 5 or 9 / 5; means 3.1 and
    # 2.9.
    weighting = create("excess-mtl", step_size=1.0, warmup=2)
    for entry in (3.0, 4.0):
        _, weights = weighting.combine(torch.diag(tensor(entry, 7.0 - entry)))
        assert weights.tolist() == [0.5, 0.5]
        weighting.end_epoch()
    _, weights = weighting.combine(torch.diag(tensor(12.0, 12.0)))
    exponents = (144 / 13) / tensor((3 + 16 / 5) / 2, (4 + 9 / 5) / 2)
    torch.testing.assert_close(weights, torch.softmax(exponents, dim=0), **EXACT)


def test_excess_mtl_tasks_without_labels() -> None:
    weighting = create("excess-mtl", step_size=1.0)
    weighting.prepare(3, torch.device("cpu"))
    pair = torch.tensor([0, 2])
    for entry in (3.0, 4.0):
        rows = torch.diag(tensor(entry, 1.0, 7.0 - entry))[pair]
        _, weights = weighting.combine(rows, tasks=pair)
    torch.testing.assert_close(weights, torch.softmax(tensor(16 / 15, 9 / 20), dim=0), **EXACT)
    state = weighting.state_dict()
    assert not state["squares"][1].any()
    assert state["start"][1].isnan()
    assert state["log_weights"][1] == 0.0
    # The two kept the mass that they had: three thirds in all, one of them task 1's.
    shares = torch.softmax(state["log_weights"], dim=0)
    assert float(shares[1]) == pytest.approx(1 / 3)


def test_excess_mtl_adds_up_half_precision() -> None:
    """300 squares of 1 are 300; bfloat16 has no 257 and would stay at 256."""
    weighting = create("excess-mtl")
    rows = torch.eye(2, dtype=torch.bfloat16)
    for _ in range(300):
        combined, _ = weighting.combine(rows)
    assert combined.dtype == torch.bfloat16
    assert weighting.state_dict()["squares"].tolist() == [[300.0, 0.0], [0.0, 300.0]]


def test_excess_mtl_needs_the_same_entries() -> None:
    weighting = create("excess-mtl")
    weighting.combine(torch.ones(2, 6))
    with pytest.raises(ValueError, match="same 6 entries in every step, found 4"):
        weighting.combine(torch.ones(2, 4))
    with pytest.raises(ValueError, match="call combine"):
        weigh(weighting, torch.eye(2))


# --------------------------------------------------------------------------- all of them


STATEFUL = [
    "imtl",
    "gradnorm",
    "go4align",
    "gradvac",
    "pcd",
    "cr-mogm",
    "excess-mtl",
]


def take(weighting: Weighting, seed: int, tasks: Sequence[int]) -> Tensor:
    rows = gradients(len(tasks), 6, seed)
    losses = rows[:, 0].square() + 0.1
    at = torch.tensor(tasks)
    if weighting.requires == "jacobian":
        return weighting.combine(rows, losses, at)[1]
    if weighting.requires == "losses":
        return weighting(losses=losses, tasks=at)
    return weigh(weighting, rows @ rows.T, losses=losses, tasks=at)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_with_gaps_goes_through_a_file(name: str) -> None:
    first, second = create(name), create(name)
    for weighting in (first, second):
        weighting.prepare(4, torch.device("cpu"))
    for seed, tasks in enumerate([(0, 2), (0, 1, 2), (1,), (3, 0)]):
        assert take(first, seed, tasks).isfinite().all()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for seed, tasks in enumerate([(1, 3), (0, 1, 2, 3), (2, 0)], start=10):
        assert torch.equal(take(first, seed, tasks), take(second, seed, tasks))


@pytest.mark.parametrize("name", STATEFUL)
def test_others_do_not_see_a_task_without_labels(name: str) -> None:
    three, two = create(name), create(name)
    three.prepare(3, torch.device("cpu"))
    for seed in range(5):
        found, expected = take(three, seed, (0, 2)), take(two, seed, (0, 1))
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixed", {"weights": [1.0, -1.0]}),
        ("fixed", {"weights": [math.nan]}),
        ("imtl-l", {"tasks": 0}),
        ("imtl", {"learning_rate": 0.0}),
        ("gradnorm", {"alpha": -1.0}),
        ("gradnorm", {"learning_rate": math.inf}),
        ("go4align", {"groups": 0}),
        ("go4align", {"step_size": 0.0}),
        ("upgrad", {"regularization": -1e-4}),
        ("dualproj", {"regularization": -1.0}),
        ("gradvac", {"beta": 1.5}),
        ("pcd", {"tau": 2.0}),
        ("pcd", {"beta": 1.0}),
        ("pcd", {"epsilon": -1.0}),
        ("pcd", {"primary": -1}),
        ("cr-mogm", {"alpha": -0.1}),
        ("excess-mtl", {"step_size": 0.0}),
        ("excess-mtl", {"warmup": -1}),
    ],
)
def test_settings_out_of_range(name: str, options: dict[str, Any]) -> None:
    (setting,) = options
    with pytest.raises(ValueError, match=setting):
        create(name, **options)
