"""Methods that read the kernel: values worked out by hand, and independent solvers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torchjd.aggregation import FairGradWeighting

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, create
from ntkmtl.weighting._ntkmtl import eigenvalue_weights
from ntkmtl.weighting._pcgrad import PCGrad

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kernel_of(gramian: Tensor | Sequence[Sequence[float]]) -> ExtendedNTK:
    gramian = torch.as_tensor(gramian, dtype=torch.float64)
    k = len(gramian)
    return ExtendedNTK(gramian.reshape(k, 1, k, 1))


def weigh(weighting: Weighting | str, gramian: Tensor | Sequence[Sequence[float]]) -> Tensor:
    if isinstance(weighting, str):
        weighting = create(weighting)
    return weighting(kernel_of(gramian))


def gradients(k: int = 3, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, width, dtype=torch.float64, generator=generator)


def on_simplex(objective: object, k: int) -> np.ndarray:
    """Minimise over the simplex with SciPy's SLSQP from several starts."""
    best = None
    for start in [np.full(k, 1 / k), *np.eye(k) * 0.8 + 0.2 / k]:
        found = scipy.optimize.minimize(
            objective,
            start,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if best is None or found.fun < best.fun:
            best = found
    return best.x


# --------------------------------------------------------------------------- NTKMTL


@pytest.mark.parametrize("name", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk"])
def test_ntkmtl(name: str) -> None:
    # Eq. 15: lambda = (9, 1, 2), mean 4: w = (sqrt(4/9), sqrt(4/1), sqrt(4/2)).
    blocks = torch.diag_embed(tensor([[9.0, 1.0], [1.0, 0.5], [2.0, 2.0]]))
    found = create(name)(ExtendedNTK(blocks=blocks))
    torch.testing.assert_close(found, tensor([2 / 3, 2.0, math.sqrt(2)]), **EXACT)


def test_ntkmtl_reads_eigenvalues_and_not_traces() -> None:
    # [[2, 1], [1, 2]] has eigenvalues 3 and 1; [[5, 4], [4, 5]] has 9 and 1: mean 6.
    blocks = tensor([[[2.0, 1.0], [1.0, 2.0]], [[5.0, 4.0], [4.0, 5.0]]])
    found = create("ntkmtl")(ExtendedNTK(blocks=blocks))
    torch.testing.assert_close(found, tensor([math.sqrt(2), math.sqrt(6 / 9)]), **EXACT)


@pytest.mark.parametrize(
    ("exponent", "expected"), [(0.0, [1, 1, 1]), (0.25, None), (1.0, [4 / 9, 4, 2])]
)
def test_ntkmtl_exponent(exponent: float, expected: list[float] | None) -> None:
    if expected is None:
        expected = [(4 / 9) ** 0.25, 4**0.25, 2**0.25]
    found = weigh(create("ntkmtl", exponent=exponent), torch.diag(tensor([9.0, 1.0, 2.0])))
    torch.testing.assert_close(found, tensor(expected), **EXACT)


def test_ntkmtl_published_numerator_is_the_sum() -> None:
    # Trace 12: w = sqrt(12 / lambda).
    found = weigh(create("ntkmtl", published=True), torch.diag(tensor([9.0, 1.0, 2.0])))
    torch.testing.assert_close(found, (12 / tensor([9.0, 1.0, 2.0])).sqrt(), **EXACT)


def test_ntkmtl_vanishing_eigenvalues() -> None:
    # Treated as the mean: weight 1; the mean itself counts the zero: (8 + 0) / 2 = 4.
    found = weigh("ntkmtl", torch.diag(tensor([8.0, 0.0])))
    torch.testing.assert_close(found, tensor([math.sqrt(0.5), 1.0]), **EXACT)
    assert weigh("ntkmtl", torch.zeros(3, 3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("exponent", [0.5, 0.75, 1.0])
def test_ntkmtl_of_eigenvalues_of_any_ratio(exponent: float, published: bool) -> None:
    # Eq. 15 in exact arithmetic, for losses times 1e-12, 1 and 1e12 and beyond.
    for exponents in ([24, 0, 0], [-24, 0, 24], [24, 24, -24], [-150, 0, 150], [-300, -300, 0]):
        values = [2.0 * 10.0**e for e in exponents]
        exact = [Fraction(v) for v in values]
        numerator = sum(exact) / (1 if published else len(exact))
        logarithms = [math.log(numerator.numerator) - math.log(numerator.denominator)] * len(exact)
        expected = [exponent * (n - math.log(v)) for n, v in zip(logarithms, values, strict=True)]
        found = eigenvalue_weights(tensor(values), exponent, published)
        torch.testing.assert_close(found.log(), tensor(expected), rtol=1e-12, atol=1e-12)


def test_ntkmtl_weights_fall_as_the_eigenvalue_grows() -> None:
    # Without a step anywhere between the smallest number and the largest.
    logarithms = torch.linspace(-740.0, 700.0, 2881, dtype=torch.float64)
    weights = torch.stack([eigenvalue_weights(tensor([1.0, float(x.exp())])) for x in logarithms])
    steps = weights.log().diff(dim=0)
    assert bool((steps[:, 1] <= 1e-12).all())
    assert bool((steps.abs() <= 0.26).all())  # half of the steps of 0.5 in the logarithm
    # The zero is the one exception; its neighbour is not.
    smallest = eigenvalue_weights(tensor([1.0, 5e-324]))
    torch.testing.assert_close(smallest[1].log(), tensor([-math.log(10e-324) / 2])[0])
    assert eigenvalue_weights(tensor([1.0, 0.0])).tolist() == [math.sqrt(0.5), 1.0]
    assert eigenvalue_weights(tensor([1e308, 5e-324]), 1.0)[1] == 1.0  # beyond float64
    assert eigenvalue_weights(tensor([1.7e308, 1.7e308])).tolist() == [1.0, 1.0]


def test_ntkmtl_of_eigenvalues_that_are_not_finite() -> None:
    for bad in (math.nan, math.inf):
        assert bool(eigenvalue_weights(tensor([1.0, bad])).isnan().all())


# --------------------------------------------------------------------------- MGDA


@pytest.mark.parametrize(
    ("gramian", "expected"),
    [
        # Algorithm 1 of the paper, with a = |g_1|^2, b = |g_2|^2, c = <g_1, g_2>:
        # c >= a: all on the shorter one.
        ([[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ([[9.0, 2.0], [2.0, 1.0]], [0.0, 1.0]),
        ([[1.0, 1.0], [1.0, 4.0]], [1.0, 0.0]),
        # Otherwise w_1 = (b - c) / (a + b - 2 c).
        ([[1.0, 0.0], [0.0, 3.0]], [3 / 4, 1 / 4]),
        ([[2.0, 1.0], [1.0, 4.0]], [3 / 4, 1 / 4]),
        ([[2.0, -1.0], [-1.0, 4.0]], [5 / 8, 3 / 8]),
        # Opposite: the combination vanishes.
        ([[1.0, -2.0], [-2.0, 4.0]], [2 / 3, 1 / 3]),
        # A gradient of zero is the shortest combination by itself.
        ([[0.0, 0.0], [0.0, 4.0]], [1.0, 0.0]),
    ],
)
def test_mgda_of_two_tasks(gramian: list[list[float]], expected: list[float]) -> None:
    for scale in (1e-12, 1.0, 1e12):
        found = weigh("mgda", tensor(gramian) * scale)
        torch.testing.assert_close(found, tensor(expected), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mgda_of_three_tasks(seed: int) -> None:
    rows = gradients(seed=seed) * tensor([1.0, 2.0, 0.5])[:, None]
    gramian = rows @ rows.T
    G = gramian.numpy()
    best = on_simplex(lambda w: w @ G @ w, 3)
    found = weigh("mgda", gramian)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (found >= 0).all()
    norm, least = float(found @ gramian @ found), float(best @ G @ best)
    assert norm == pytest.approx(least, rel=1e-6, abs=1e-12)
    assert norm <= least + 1e-14


# --------------------------------------------------------------------------- PCGrad


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pcgrad_of_two_tasks(scale: float) -> None:
    # g_1 - (c / b) g_2 + g_2 - (c / a) g_1 where c < 0, the plain sum otherwise.
    found = weigh("pcgrad", tensor([[2.0, -1.0], [-1.0, 4.0]]) * scale)
    torch.testing.assert_close(found, tensor([1 + 1 / 2, 1 + 1 / 4]), **EXACT)
    found = weigh("pcgrad", tensor([[2.0, 1.0], [1.0, 4.0]]) * scale)
    torch.testing.assert_close(found, tensor([1.0, 1.0]), **EXACT)


def test_pcgrad_projects_in_random_order() -> None:
    rows = tensor([[1.0, 0.0], [-1.0, 0.4], [-1.0, -3.0]])

    def surgery(order: Sequence[Sequence[int]]) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for i, others in enumerate(order):
            g = rows[i].clone()
            for j in others:
                if g @ rows[j] < 0:
                    g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
            total += g
        return total

    both = [((1, 2), (2, 1)), ((0, 2), (2, 0)), ((0, 1), (1, 0))]
    possible = [surgery([a, b, c]) for a in both[0] for b in both[1] for c in both[2]]
    weighting = create("pcgrad", seed=0)
    seen = set()
    for _ in range(40):
        combined = weigh(weighting, rows @ rows.T) @ rows
        distances = [float((combined - p).norm()) for p in possible]
        assert min(distances) < 1e-9
        seen.add(round(float(combined[0]), 6))
    assert len(seen) > 1


# --------------------------------------------------------------------------- GradDrop


def test_pcgrad_leaves_all_global_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are drawn on the CPU, also where the network is on a GPU with dropout."""
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reset.append)
    before = torch.get_rng_state()
    create("pcgrad", seed=0)(ExtendedNTK(torch.eye(3).reshape(3, 1, 3, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert reset == []


@pytest.mark.parametrize("k", [1, 2, 7])
def test_pcgrad_draws_every_order(k: int) -> None:
    orders = PCGrad(seed=0)._orders(k).tolist()
    for i, order in enumerate(orders):
        assert sorted(order) == [j for j in range(k) if j != i]


def test_graddrop_keeps_one_sign_per_entry() -> None:
    jacobian = tensor([[3.0, -1.0, 2.0, 0.0], [-1.0, -2.0, 2.0, 0.0], [1.0, 1.0, 0.5, 0.0]])
    positive = jacobian.clamp_min(0).sum(dim=0)
    negative = jacobian.clamp_max(0).sum(dim=0)
    weighting = create("graddrop", seed=0)
    draws = torch.stack([weighting.combine(jacobian)[0] for _ in range(2000)])
    assert ((draws == positive) | (draws == negative)).all()
    # Purity P = (1 + sum / sum of absolutes) / 2 = (4/5, 1/4, 1, -): probability of positive.
    kept = (draws == positive).double().mean(dim=0)
    torch.testing.assert_close(kept[:3], tensor([4 / 5, 1 / 4, 1.0]), rtol=0.0, atol=0.05)


def test_graddrop_reports_the_share_that_was_kept() -> None:
    jacobian = tensor([[3.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    combined, kept = create("graddrop", seed=1).combine(jacobian)
    for row, share in zip(jacobian, kept, strict=True):
        same = (row.sign() == combined.sign()) * row.abs()
        expected = same.sum() / row.abs().sum() if row.any() else 1.0
        assert float(share) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="entry by entry"):
        weigh("graddrop", torch.eye(2))


# --------------------------------------------------------------------------- CAGrad


def cagrad_oracle(gramian: Tensor, c: float) -> Tensor:
    """Dual of the paper's Eq. 5: min over the simplex of g_w . g_0 + sqrt(phi) |g_w|."""
    G = gramian.numpy()
    k = len(G)
    mean = np.full(k, 1 / k)
    root_phi = c * np.sqrt(mean @ G @ mean)
    w = on_simplex(lambda w: w @ G @ mean + root_phi * np.sqrt(w @ G @ w + 1e-30), k)
    return torch.from_numpy(mean + root_phi / np.sqrt(w @ G @ w) * w)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_cagrad_without_room_is_the_mean(scale: float) -> None:
    rows = gradients()
    found = weigh(create("cagrad", c=0.0), rows @ rows.T * scale)
    torch.testing.assert_close(found, torch.full((3,), 1 / 3, dtype=torch.float64), **EXACT)


def test_cagrad_of_two_equally_long_orthogonal_gradients() -> None:
    # By symmetry w = (1/2, 1/2) and g_w = g_0: the update is (1 + c) g_0.
    found = weigh("cagrad", torch.eye(2))
    torch.testing.assert_close(found, tensor([0.7, 0.7]), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_cagrad_solves_the_dual(k: int, c: float, seed: int) -> None:
    rows = gradients(k, seed=seed)
    gramian = rows @ rows.T
    expected = cagrad_oracle(gramian, c)
    found = weigh(create("cagrad", c=c), gramian)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],  # one gradient vanishes
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1e-5]],  # or almost
        [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # two cancel
        [[1.0, 0.2, 0.0], [-1.0, 0.3, 0.1], [0.4, 1.0, -0.2]],
    ],
)
@pytest.mark.parametrize("c", [0.0, 0.4])
def test_cagrad_stays_within_its_ball(rows: list[list[float]], c: float) -> None:
    # Eq. 4: |d - g_0| <= c |g_0|. In particular d is not zero where g_0 is not, as c < 1.
    matrix = tensor(rows)
    mean = matrix.mean(dim=0)
    update = weigh(create("cagrad", c=c), matrix @ matrix.T) @ matrix
    assert float((update - mean).norm()) <= c * float(mean.norm()) * (1.0 + 1e-12) + 1e-15


# --------------------------------------------------------------------------- IMTL-G


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_imtl_g_has_equal_projections(k: int, scale: float) -> None:
    rows = gradients(k, 8) * math.sqrt(scale)
    weights = weigh("imtl-g", rows @ rows.T)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-9)
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ (weights @ rows)
    torch.testing.assert_close(projections, projections.mean().expand(k), rtol=1e-9, atol=0.0)


def test_imtl_g_by_hand() -> None:
    # Orthogonal: w_i proportional to 1 / |g_i|: (1, 1/3) / (4/3).
    torch.testing.assert_close(
        weigh("imtl-g", [[1.0, 0.0], [0.0, 9.0]]), tensor([0.75, 0.25]), **EXACT
    )


# --------------------------------------------------------------------------- Nash-MTL, FairGrad


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_nash_mtl_solves_its_equation(k: int, scale: float, seed: int) -> None:
    rows = gradients(k, k + 5, seed)
    gramian = rows @ rows.T * scale
    weights = weigh("nash-mtl", gramian)
    assert (weights > 0).all()
    torch.testing.assert_close(gramian @ weights, 1 / weights, rtol=1e-9, atol=0.0)


def test_nash_mtl_of_orthogonal_gradients() -> None:
    # |g_i|^2 w_i = 1 / w_i: w_i = 1 / |g_i|.
    found = weigh("nash-mtl", torch.diag(tensor([4.0, 0.25, 1e-8, 1e8])))
    torch.testing.assert_close(found, tensor([0.5, 2.0, 1e4, 1e-4]), **EXACT)


def test_nash_mtl_of_two_equally_long_gradients() -> None:
    # (1 + c) w = 1 / w: w = 1 / sqrt(1 + c), for the cosine c.
    for cosine in (-0.9, -0.5, 0.0, 0.5, 0.9):
        found = weigh("nash-mtl", [[1.0, cosine], [cosine, 1.0]])
        expected = torch.full((2,), 1 / math.sqrt(1 + cosine), dtype=torch.float64)
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_nash_mtl_maximises_the_product_of_utilities(seed: int) -> None:
    # The bargaining solution: of all updates of a given length, the one that maximises
    # sum_i log <g_i, d>.
    rows = gradients(3, 4, seed)
    R = rows.numpy()
    direction = (weigh("nash-mtl", rows @ rows.T) @ rows).numpy()
    unit = direction / np.linalg.norm(direction)

    def utility(d: np.ndarray) -> float:
        return float(np.log(np.maximum(R @ d / np.linalg.norm(d), 1e-300)).sum())

    generator = np.random.default_rng(seed)
    for size in (1e-3, 1e-1, 1.0):
        for step in generator.normal(size=(50, 4)):
            assert utility(unit + size * step) <= utility(unit) + 1e-12


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("k", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_fairgrad_solves_its_equation(k: int, alpha: float, seed: int) -> None:
    rows = gradients(k, k + 5, seed)
    gramian = rows @ rows.T
    weights = weigh(create("fairgrad", alpha=alpha), gramian)
    assert (weights > 0).all()
    torch.testing.assert_close(gramian @ weights, weights.pow(-1 / alpha), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["nash-mtl", "fairgrad"])
@pytest.mark.parametrize("seed", range(5))
def test_fair_allocation_of_unlike_gradients(name: str, seed: int) -> None:
    # Norms over six orders of magnitude, as raw regression targets have.
    rows = gradients(11, 20, seed) * torch.logspace(-3, 3, 11, dtype=torch.float64)[:, None]
    gramian = rows @ rows.T
    weights = weigh(name, gramian)
    power = {"nash-mtl": 1.0, "fairgrad": 0.5}[name]
    torch.testing.assert_close(gramian @ weights, weights.pow(-power), rtol=1e-6, atol=0.0)


def test_fairgrad_of_orthogonal_gradients() -> None:
    # |g|^2 w = w^(-1/2): w = |g|^(-4/3); 8^(-2/3) = 1/4, 27^(-2/3) = 1/9.
    found = weigh("fairgrad", torch.diag(tensor([1.0, 8.0, 27.0])))
    torch.testing.assert_close(found, tensor([1.0, 1 / 4, 1 / 9]), **EXACT)


def test_fairgrad_with_alpha_1_is_nash_mtl() -> None:
    rows = gradients()
    torch.testing.assert_close(
        weigh(create("fairgrad", alpha=1.0), rows @ rows.T),
        weigh("nash-mtl", rows @ rows.T),
        **EXACT,
    )


@pytest.mark.parametrize("seed", range(3))
def test_fairgrad_agrees_with_torchjd(seed: int) -> None:
    rows = gradients(seed=seed)
    expected = FairGradWeighting(alpha=2.0)(rows @ rows.T)
    torch.testing.assert_close(weigh("fairgrad", rows @ rows.T), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["nash-mtl", "fairgrad"])
def test_fair_allocation_with_a_vanishing_gradient(name: str) -> None:
    rows = gradients()
    rows[1] = 0
    rest = rows[[0, 2]]
    found = weigh(name, rows @ rows.T)
    inner = weigh(name, rest @ rest.T)
    torch.testing.assert_close(found[[0, 2]], inner, **EXACT)
    # As a task by itself with the mean m of the squared norms: m w = w^(-1 / alpha).
    mean = (rest * rest).sum() / 3
    alone = mean ** {"nash-mtl": -1 / 2, "fairgrad": -2 / 3}[name]
    torch.testing.assert_close(found[1], alone, **EXACT)
    assert weigh(name, torch.zeros(2, 2)).tolist() == [1.0, 1.0]


def test_a_vanishing_gradient_does_not_take_the_weight_of_a_tiny_one() -> None:
    # Squared norms 1, 1e-24 and 0: mean 1/3, so the last weighs as one of norm sqrt(1/3).
    found = weigh("nash-mtl", torch.diag(tensor([1.0, 1e-24, 0.0])))
    torch.testing.assert_close(found, tensor([1.0, 1e12, math.sqrt(3)]), **EXACT)
    found = weigh("ntkmtl-x", torch.diag(tensor([1.0, 1e-24, 0.0])))
    assert found[2] == 1.0


# --------------------------------------------------------------------------- Aligned-MTL


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_aligned_mtl_makes_singular_values_equal(k: int, scale: float, mode: str) -> None:
    # G = U S V^T has the aligned form s U V^T; its rows are summed.
    rows = gradients(k, 8) * math.sqrt(scale)
    left, values, right = np.linalg.svd(rows.numpy(), full_matrices=False)
    size = {
        "min": values.min(),
        "median": np.sort(values)[(k - 1) // 2],
        "rmse": np.sqrt((values**2).mean()),
    }[mode]
    expected = torch.from_numpy(size * (left @ right).sum(axis=0))
    found = weigh(create("aligned-mtl", scale_mode=mode), rows @ rows.T) @ rows
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12 * math.sqrt(scale))


def test_aligned_mtl_of_orthogonal_gradients() -> None:
    # All norms become the smallest, 1: w = 1 / |g|.
    found = weigh("aligned-mtl", torch.diag(tensor([1.0, 4.0, 100.0])))
    torch.testing.assert_close(found, tensor([1.0, 0.5, 0.1]), **EXACT)


# --------------------------------------------------------------------------- dependence in float32


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["imtl-g", "imtl", "aligned-mtl", "config"])
def test_what_rounding_leaves_of_a_dependence_is_no_direction(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 500, dtype=torch.float64, generator=generator)
    rows = torch.stack([rows[0], 3 * rows[1], 0.5 * rows[0] + 0.7 * rows[1]])
    single = rows.float().double()  # dependent up to rounding only
    assert 0 < float(torch.linalg.eigvalsh(single @ single.T)[0]) < 1e-10
    losses = torch.ones(3)
    expected = create(name)(kernel_of(rows @ rows.T), losses=losses) @ rows
    found = create(name)(kernel_of(single @ single.T), losses=losses) @ single
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * float(expected.norm()))
    assert float(found.norm()) > 0.1 * float(rows.norm(dim=1).min())


def test_small_gradients_are_not_taken_for_rounding() -> None:
    # Norms 1 and 1e-5: eigenvalues are 1e10 apart, cosines are not.
    gramian = tensor([[1.0, 2e-6], [2e-6, 1e-10]])
    found = weigh("imtl-g", gramian)
    torch.testing.assert_close(found[1] / found[0], torch.tensor(1e5, dtype=torch.float64))
    lengths = weigh("aligned-mtl", torch.diag(tensor([1.0, 1e-10])))
    torch.testing.assert_close(lengths, tensor([1e-5, 1.0]), **EXACT)


def test_impartial_weights_of_the_same_gradient_twice() -> None:
    # Unit gradients u, u and v, orthogonal: C^+ 1 = (1/2, 1/2, 1); norms 1, 2 and 4.
    gramian = tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 16.0]])
    torch.testing.assert_close(weigh("imtl-g", gramian), tensor([0.5, 0.25, 0.25]), **EXACT)


def test_impartial_weights_of_a_gradient_that_is_zero() -> None:
    # 1 / 3 for the middle one; the others, (3/4, 1/4) by themselves, share the rest.
    gramian = torch.diag(tensor([1.0, 0.0, 9.0]))
    torch.testing.assert_close(weigh("imtl-g", gramian), tensor([1 / 2, 1 / 3, 1 / 6]), **EXACT)
    torch.testing.assert_close(weigh("imtl-g", 0 * gramian), tensor([1 / 3] * 3), **EXACT)
    assert weigh("imtl-g", [[1.0, -1.0], [-1.0, 1.0]]).tolist() == [0.0, 0.0]


def test_aligned_mtl_of_the_same_gradient_twice() -> None:
    # G = 1 1^T has one direction, (1, 1) / sqrt(2), which stays as it is.
    torch.testing.assert_close(
        weigh("aligned-mtl", [[1.0, 1.0], [1.0, 1.0]]), tensor([1.0, 1.0]), **EXACT
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "spread"), [(8.0, 3.0), (16.0, 3.0), (50.0, 1.0)])
def test_fair_weights_of_a_large_alpha(alpha: float, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (spread * torch.randn(40, 1, dtype=torch.float64, generator=generator))
    rows = scales * torch.randn(40, 200, dtype=torch.float64, generator=generator)
    gramian = rows @ rows.T
    weights = weigh(create("fairgrad", alpha=alpha), gramian)
    size = gramian.abs() @ weights
    assert bool(((gramian @ weights - weights.pow(-1 / alpha)).abs() <= 1e-9 * size).all())
