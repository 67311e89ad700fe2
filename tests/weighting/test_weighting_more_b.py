"""MoDo, SDMGrad, MoCo, DB-MTL, PIVRG and LDC-MTL: values by hand, and slow transcriptions."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torchjd.aggregation import MoDoWeighting, SDMGradWeighting

from kernel.oracle import Case, flat_gradient, make_case
from ntkmtl import Balancer, ExtendedNTK, NonFiniteError
from ntkmtl.weighting import Weighting, create, spec
from ntkmtl.weighting._independent import independent_products
from ntkmtl.weighting._simplex import project_onto_simplex

EXACT = {"rtol": 1e-9, "atol": 1e-14}
OF_ENTRIES = ("moco", "db-mtl")
OF_PAIRS = ("modo", "sdmgrad")
OURS = (*OF_PAIRS, *OF_ENTRIES, "pivrg", "ldc-mtl")


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: Any, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-14)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def kernel_of_products(products: Any, own: float = 100.0) -> ExtendedNTK:
    """Two mini-batches with given products between them; those within one must not be read."""
    products = tensor(products)
    values = products[:, None, :, None].repeat(1, 2, 1, 2)
    values[:, [0, 1], :, [0, 1]] = own
    return ExtendedNTK(values)


def kernel_of_gradients(gradients: Tensor) -> ExtendedNTK:
    """From gradients of shape (k, n, P)."""
    return ExtendedNTK(torch.einsum("iup,jvp->iujv", gradients, gradients))


def through_a_file(first: Weighting, second: Weighting) -> None:
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))


# --------------------------------------------------------------------------- the simplex


def simplex_oracle(vector: Sequence[float]) -> np.ndarray:
    """Nearest point by bisection on the threshold of max(v - t, 0), whose sum falls with t."""
    v = np.asarray(vector, dtype=np.float64)
    low, high = v.min() - 1.0, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - high, 0)


@pytest.mark.parametrize("k", [1, 2, 3, 11, 40])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 10.0])
def test_projection_onto_the_simplex(k: int, scale: float) -> None:
    for seed in range(5):
        v = random(k, seed=seed) * scale
        found = project_onto_simplex(v)
        np.testing.assert_allclose(found.numpy(), simplex_oracle(v.tolist()), atol=1e-12)
        close(project_onto_simplex(v + 3.0), found)  # only differences matter


def test_projection_of_numbers_of_any_size() -> None:
    # In plain arithmetic the 1 is lost beside these, and what is left sums to 0.
    assert project_onto_simplex(tensor([-1e24, -2e24, -3e24])).tolist() == [1.0, 0.0, 0.0]
    assert project_onto_simplex(tensor([1e24, 1e24])).tolist() == [0.5, 0.5]
    assert project_onto_simplex(tensor([0.0, -1e-24])).tolist() == [0.5, 0.5]
    assert project_onto_simplex(tensor([0.2, 0.3, 0.5])).tolist() == pytest.approx([0.2, 0.3, 0.5])


# --------------------------------------------------------------------------- independent samples


def test_products_of_different_minibatches_only() -> None:
    # Task i, mini-batch u: numbers g = [[1, 2, 4], [3, 5, -1]]. Pairs u != v:
    # task 0: 2 (1 2 + 1 4 + 2 4) / 6 = 14 / 3; task 1: 2 (15 - 3 - 5) / 6 = 7 / 3;
    # between: 1 (5 - 1) + 2 (3 - 1) + 4 (3 + 5) = 40, by 6.
    gradients = tensor([[1.0, 2.0, 4.0], [3.0, 5.0, -1.0]])[:, :, None]
    found = independent_products(kernel_of_gradients(gradients), "modo")
    close(found, [[14 / 3, 40 / 6], [40 / 6, 7 / 3]])


def test_products_count_by_shares_of_samples() -> None:
    # Task 0 has a quarter of its labels in mini-batch 0, task 1 all. Task 0 with itself:
    # both orders of (0, 1), each 1/4 * 3/4. Between: only (task 0 in 1, task 1 in 0).
    # Task 1 with itself has no pair.
    gradients = tensor([[2.0, 6.0], [5.0, 0.0]])[:, :, None]
    kernel = kernel_of_gradients(gradients).with_shares(tensor([[0.25, 0.75], [1.0, 0.0]]))
    close(independent_products(kernel, "modo"), [[12.0, 30.0], [30.0, 0.0]])


def test_products_are_free_of_the_bias_of_a_gramian() -> None:
    # Gradients (1, 0) and (0, 1) with noise of variance 1 in 10 directions, halved batches.
    mean = torch.eye(2, 10, dtype=torch.float64)[:, None]
    draws = mean + random(4000, 2, 2, 10)
    kernels = [kernel_of_gradients(draw) for draw in draws]
    unbiased = torch.stack([independent_products(kernel, "modo") for kernel in kernels]).mean(0)
    biased = torch.stack([kernel.gramian() for kernel in kernels]).mean(0)
    torch.testing.assert_close(unbiased, torch.eye(2, dtype=torch.float64), rtol=0, atol=0.2)
    torch.testing.assert_close(biased.diagonal(), tensor([6.0, 6.0]), rtol=0, atol=0.3)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_there_must_be_pairs(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} multiplies.*set minibatches to 2 or more"):
        create(name)(kernel_of_gradients(random(3, 1, 4)))
    with pytest.raises(ValueError, match="diagonal blocks only"):
        create(name)(ExtendedNTK(blocks=torch.ones(3, 2, 2)))
    case = make_case()
    z = case.features()
    balancer = Balancer(name, source="representation", pooling="blockwise")
    with pytest.raises(ValueError, match="set pooling='pooled' or 'kernel', or source='exact'"):
        balancer.backward(case.losses(z), features=z)
    assert all(p.grad is None for p in case.parameters)
    assert Balancer(name, source="representation").pooling == "pooled"
    with pytest.raises(ValueError, match="no ema"):
        Balancer(name, ema=0.5)


# --------------------------------------------------------------------------- MoDo


def test_modo_by_hand() -> None:
    # lambda <- P(lambda - .1 diag(2, 1) lambda) from (.5, .5):
    # (.4, .45) + .075; (.38, .4725) + .07375; (.363, .491625) + .0726875.
    modo = create("modo", rho=0.0)
    kernel = kernel_of_products([[2.0, 0.0], [0.0, 1.0]])
    close(modo(kernel), [0.475, 0.525])
    close(modo(kernel), [0.45375, 0.54625])
    close(modo(kernel), [0.4356875, 0.5643125])


def test_modo_pulls_to_equal_weights() -> None:
    # With rho = 1 the matrix is diag(2, 1) for these products, and one task alone has weight 1.
    close(create("modo", rho=1.0)(kernel_of_products([[1.0, 0.0], [0.0, 0.0]])), [0.475, 0.525])
    # A large step ends on a corner: (.5, .5) - (5, .5) and then (0, 1) - (0, 1).
    modo = create("modo", rho=0.0, gamma=1.0)
    kernel = kernel_of_products([[10.0, 0.0], [0.0, 1.0]])
    assert modo(kernel).tolist() == [0.0, 1.0]
    # (0, 0), and half of the missing 1 each.
    assert modo(kernel).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_modo_is_torchjds_on_the_same_products(seed: int) -> None:
    modo, peer = create("modo", gamma=0.2, rho=0.3), MoDoWeighting(gamma=0.2, rho=0.3)
    for step in range(6):
        gradients = random(4, 2, 6, seed=10 * seed + step)
        products = gradients[:, 0] @ gradients[:, 1].T
        # The two orders in which the samples could have been drawn.
        expected = peer((products + products.T) / 2)
        close(modo(kernel_of_gradients(gradients)), expected)


def test_modo_on_halves_of_a_batch_is_the_original_on_two_batches() -> None:
    # lambda by products of the two halves' gradients, then the mean of both under it.
    case, fresh = make_case(), make_case()
    balancer = Balancer("modo", gamma=0.05)
    z = case.features()
    out = balancer.backward(case.losses(z), features=z)
    rows = fresh.rows(fresh.features())
    halves = [
        torch.stack([flat_gradient(row[part].mean(), fresh.shared) for row in rows])
        for part in (slice(0, 4), slice(4, 7))
    ]
    products = halves[0] @ halves[1].T
    products = (products + products.T) / 2
    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    slope = products @ start + 0.1 * start
    expected = simplex_oracle((start - 0.05 * slope).tolist())
    close(out.weights, expected)
    mean = (4 * halves[0] + 3 * halves[1]) / 7
    found = torch.cat([p.grad.flatten() for p in case.shared if p.grad is not None])
    close(found, out.weights @ mean)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_task_without_labels_keeps_its_share(name: str) -> None:
    weighting, pair = create(name), create(name)
    weighting.prepare(3, torch.device("cpu"))
    two = torch.tensor([0, 2])
    for seed in range(3):
        gradients = random(2, 2, 5, seed=seed)
        found = weighting(kernel_of_gradients(gradients), tasks=two)
        close(found, pair(kernel_of_gradients(gradients)))
    state = weighting.state_dict()["weights"]
    assert float(state[1]) == 1 / 3
    assert float(state.sum()) == pytest.approx(1.0)
    # When it comes back all three go on from there.
    start = create(name)
    start.load_state_dict({"weights": state.clone()})
    three = kernel_of_gradients(random(3, 2, 5, seed=9))
    close(weighting(three), start(three))


def test_a_task_whose_share_is_zero_may_come_alone() -> None:
    modo = create("modo", gamma=1.0, rho=0.0)
    modo(kernel_of_products([[10.0, 0.0], [0.0, 1.0]]))
    assert modo.state_dict()["weights"].tolist() == [0.0, 1.0]
    alone = modo(kernel_of_products([[10.0]]), tasks=torch.tensor([0]))
    assert alone.tolist() == [1.0]
    found = modo(kernel_of_products([[0.0, 0.0], [0.0, 0.0]]))
    close(found, [1 / 3, 2 / 3])


# --------------------------------------------------------------------------- SDMGrad


def test_sdmgrad_by_hand() -> None:
    # Mean root of the diagonal (2 + 1) / 2: A = diag(4, 1) / 2.25. With lambda = 1, w + u:
    # (1, 1): velocity (16/9, 4/9), w = (.5, .5) - .1 velocity + 1/9 = (13/30, 17/30).
    # (14/15, 16/15): velocity (8/9 + 224/135, 2/9 + 64/135) = (344/135, 94/135),
    # w = (13/30, 17/30) - .1 velocity + 73/450 = (46/135, 89/135).
    sdmgrad = create("sdmgrad", lambda_=1.0, learning_rate=0.1, iterations=2)
    found = sdmgrad(kernel_of_products([[4.0, 0.0], [0.0, 1.0]]))
    close(found, [(46 / 135 + 0.5) / 2, (89 / 135 + 0.5) / 2])
    close(sdmgrad.state_dict()["weights"], [46 / 135, 89 / 135])


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_sdmgrad_is_torchjds_on_the_same_products(seed: int, lambda_: float) -> None:
    settings = {"momentum": 0.5, "lambda_": lambda_}
    # Short steps: the published ones, of length 10, make much of rounding.
    sdmgrad = create("sdmgrad", learning_rate=0.5, **settings)
    peer = SDMGradWeighting(lr=0.5, n_iter=20, **settings)
    for step in range(5):
        gradients = random(4, 2, 6, seed=10 * seed + step) + 1.0
        products = gradients[:, 0] @ gradients[:, 1].T
        expected = peer((products + products.T) / 2)
        # TorchJD adds 1e-8 to the scale.
        close(sdmgrad(kernel_of_gradients(gradients)), expected, 1e-6)


def test_sdmgrad_without_pull_is_mgda() -> None:
    # Without noise and with a short step: the shortest convex combination, w_1 = b / (a + b).
    sdmgrad = create("sdmgrad", lambda_=0.0, learning_rate=0.3, iterations=500)
    close(sdmgrad(kernel_of_products([[1.0, 0.0], [0.0, 3.0]])), [0.75, 0.25])


def test_sdmgrad_where_noise_outweighs_the_gradients() -> None:
    # A negative entry of the diagonal counts as 0: scale (2 / 2)^2 = 1.
    settings = {"lambda_": 0.0, "learning_rate": 0.1, "iterations": 1}
    found = create("sdmgrad", **settings)(kernel_of_products([[4.0, 0.0], [0.0, -3.0]]))
    # (.5, .5) - .1 (2, -1.5) = (.3, .65), and .025 more each.
    close(found, [0.325, 0.675])
    sdmgrad = create("sdmgrad", **settings)
    sdmgrad(kernel_of_products([[4.0, 0.0], [0.0, 1.0]]))
    before = sdmgrad.state_dict()["weights"].clone()
    for products in ([[0.0, 0.0], [0.0, 0.0]], [[-1.0, 2.0], [2.0, -1.0]]):
        close(sdmgrad(kernel_of_products(products)), before)
    assert torch.equal(sdmgrad.state_dict()["weights"], before)


@pytest.mark.parametrize("exponent", [-24, 24])
def test_sdmgrad_does_not_depend_on_the_scale(exponent: int) -> None:
    gradients = random(3, 2, 5)
    plain = create("sdmgrad")(kernel_of_gradients(gradients))
    kernel = kernel_of_gradients(gradients) / 10.0**-exponent
    close(create("sdmgrad")(kernel), plain, 1e-6)


# --------------------------------------------------------------------------- MoCo


def test_moco_of_the_authors_code_by_hand() -> None:
    # Gradients of length 5 and 2 scaled to their losses 2 and 1: h = (1.2, 1.6), (0, 1).
    # t = 1: y = h / 2; Y Y^T = [[1, .4], [.4, .25]]; lambda - .1 (.7, .325) = (.43, .4675).
    moco = create("moco")
    jacobian, losses = tensor([[3.0, 4.0], [0.0, 2.0]]), tensor([2.0, 1.0])
    combined, weights = moco.combine(jacobian, losses)
    first = 1 / (1 + math.exp(0.4675 - 0.43))
    close(weights, [first, 1 - first])
    close(combined, [0.6 * first, 0.8 * first + 0.5 * (1 - first)])
    # t = 2: beta = .5 / sqrt(2), gamma = .1 / sqrt(2); y moves by the share beta towards h.
    combined, weights = moco.combine(jacobian, losses)
    size = 0.5 + 0.5 * 0.5 / math.sqrt(2)  # y = size h, and Y Y^T = size^2 [[4, 1.6], [1.6, 1]]
    slope = [
        size**2 * (4.0 * first + 1.6 * (1 - first)),
        size**2 * (1.6 * first + 1.0 * (1 - first)),
    ]
    gamma = 0.1 / math.sqrt(2)
    difference = first - gamma * slope[0] - (1 - first) + gamma * slope[1]
    second = 1 / (1 + math.exp(-difference))
    close(weights, [second, 1 - second])
    close(combined, [1.2 * size * second, size * (1.6 * second + 1 - second)])


def test_moco_of_the_paper_by_hand() -> None:
    # beta = .5, gamma = .1, no decay. Step 1: y = (1, 0), (0, 2);
    # lambda = (.5, .5) - .1 (.5, 2) = (.45, .3), and .125 more each.
    moco = create("moco", beta_sigma=0.0, gamma_sigma=0.0, normalize=False, simplex="projection")
    moco.prepare(2, torch.device("cpu"))
    combined, weights = moco.combine(tensor([[2.0, 0.0], [0.0, 4.0]]))
    close(weights, [0.575, 0.425])
    close(combined, [0.575, 0.85])
    # Step 2: y = (.5, 0), (0, 3); (.575, .425) - .1 (.14375, 3.825) + .1984375.
    combined, weights = moco.combine(tensor([[0.0, 0.0], [0.0, 4.0]]))
    close(weights, [0.7590625, 0.2409375])
    close(combined, [0.37953125, 0.7228125])
    # Step 3, task 1 alone: y_1 = (.5, 3.5); task 0 keeps its y and its weight.
    combined, weights = moco.combine(tensor([[1.0, 4.0]]), None, torch.tensor([1]))
    assert weights.tolist() == [1.0]
    close(combined, [0.5, 3.5])
    close(moco.state_dict()["weights"], [0.7590625, 0.2409375])
    # Step 4: y = (.75, 0), (.25, 1.75): Y Y^T = [[.5625, .1875], [.1875, 3.125]].
    combined, weights = moco.combine(tensor([[1.0, 0.0], [0.0, 0.0]]))
    v = [
        0.7590625 - 0.1 * (0.5625 * 0.7590625 + 0.1875 * 0.2409375),
        0.2409375 - 0.1 * (0.1875 * 0.7590625 + 3.125 * 0.2409375),
    ]
    expected = [x + (1 - sum(v)) / 2 for x in v]
    close(weights, expected)
    close(combined, [0.75 * expected[0] + 0.25 * expected[1], 1.75 * expected[1]])


class SlowMoCo:
    """The formula, task by task, in NumPy."""

    def __init__(self, tasks: int, width: int, **settings: Any) -> None:
        self.s = settings
        self.y = np.zeros((tasks, width))
        self.lam = np.full(tasks, 1 / tasks)
        self.updates = np.zeros(tasks)
        self.t = 0

    def step(self, g: np.ndarray, losses: np.ndarray, here: list[int]) -> Any:
        s = self.s
        self.t += 1
        for row, loss, i in zip(g, losses, here, strict=True):
            self.updates[i] += 1
            h = row * loss / np.sqrt((row**2).sum()) if s["normalize"] else row
            self.y[i] -= s["beta"] / self.updates[i] ** s["beta_sigma"] * (self.y[i] - h)
        mass = sum(self.lam[i] for i in here)
        lam = np.array([self.lam[i] / mass for i in here])
        slope = np.zeros(len(here))
        for a, i in enumerate(here):
            for b, j in enumerate(here):
                slope[a] += (self.y[i] @ self.y[j] + s["rho"] * (i == j)) * lam[b]
        v = lam - s["gamma"] / self.t ** s["gamma_sigma"] * slope
        if s["simplex"] == "softmax":
            lam = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
        else:
            lam = simplex_oracle(v.tolist())
        for value, i in zip(lam, here, strict=True):
            self.lam[i] = mass * value
        return sum(value * self.y[i] for value, i in zip(lam, here, strict=True)), lam


PATTERNS = ([0, 1, 2], [0, 2], [0, 1, 2], [1], [1, 2], [0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("simplex", ["softmax", "projection"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_moco_is_its_formula(sigma: float, normalize: bool, simplex: str) -> None:
    settings = {
        "beta": 0.7,
        "beta_sigma": sigma,
        "gamma": 0.05,
        "gamma_sigma": sigma / 2,
        "rho": 0.2,
        "normalize": normalize,
        "simplex": simplex,
    }
    moco, slow = create("moco", **settings), SlowMoCo(3, 5, **settings)
    moco.prepare(3, torch.device("cpu"))
    for number, here in enumerate(PATTERNS):
        jacobian = random(len(here), 5, seed=number)
        losses = random(len(here), seed=100 + number).abs()
        expected, lam = slow.step(jacobian.numpy(), losses.numpy(), here)
        combined, weights = moco.combine(jacobian, losses, torch.tensor(here))
        close(weights, lam)
        close(combined, expected)


def test_moco_in_the_published_form_does_not_depend_on_the_length_of_gradients() -> None:
    plain, other = create("moco"), create("moco")
    for seed in range(3):
        jacobian, losses = random(3, 4, seed=seed), random(3, seed=seed + 50).abs()
        units = tensor([1e-12, 1.0, 1e12])[:, None]
        expected, weights = plain.combine(jacobian, losses)
        found, same = other.combine(jacobian * units, losses)
        close(same, weights)
        close(found, expected)


def test_moco_of_a_vanishing_gradient() -> None:
    moco = create("moco")
    combined, weights = moco.combine(tensor([[0.0, 0.0], [1.0, 0.0]]), tensor([3.0, 1.0]))
    assert combined.isfinite().all()
    # y = (0, 0), (.5, 0): lambda - .1 (0, .125).
    first = 1 / (1 + math.exp(-0.0125))
    close(weights, [first, 1 - first])


def test_moco_needs_losses_to_scale_to() -> None:
    with pytest.raises(ValueError, match="pass losses"):
        create("moco").combine(torch.ones(2, 3))


# --------------------------------------------------------------------------- DB-MTL


def test_db_mtl_by_hand() -> None:
    db = create("db-mtl", beta=0.5)
    db.prepare(2, torch.device("cpu"))
    # Averages (1.5, 2) and (0, .5), of lengths 2.5 and .5.
    combined, weights = db.combine(tensor([[3.0, 4.0], [0.0, 1.0]]))
    close(weights, [1.0, 5.0])
    close(combined, [1.5, 4.5])
    # (.75, 1) and (3, 4): 1.25 and 5.
    combined, weights = db.combine(tensor([[0.0, 0.0], [6.0, 7.5]]))
    close(weights, [4.0, 1.0])
    close(combined, [6.0, 8.0])
    # Task 1 alone; its average becomes zero, and adds nothing.
    combined, weights = db.combine(tensor([[-3.0, -4.0]]), None, torch.tensor([1]))
    assert weights.tolist() == [1.0]
    close(combined, [0.0, 0.0])
    # Task 0 goes on from (.75, 1): (3, 4) and (0, 1).
    combined, weights = db.combine(tensor([[5.25, 7.0], [0.0, 2.0]]))
    close(weights, [1.0, 5.0])
    close(combined, [3.0, 9.0])


def test_db_mtl_decay_by_hand() -> None:
    # beta / t = .5, .25, with t counted for each task: 4 -> 2, 3.5; then .5 / 3.
    db = create("db-mtl", beta=0.5, beta_sigma=1.0)
    four = tensor([[4.0]])
    assert db.combine(four)[0].tolist() == [2.0]
    assert db.combine(four)[0].tolist() == [3.5]
    close(db.combine(four)[0], [3.5 / 6 + 4.0 * 5 / 6])


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9])
def test_db_mtl_is_its_formula(beta: float, sigma: float) -> None:
    db = create("db-mtl", beta=beta, beta_sigma=sigma)
    db.prepare(3, torch.device("cpu"))
    average, updates = np.zeros((3, 5)), np.zeros(3)
    for number, here in enumerate(PATTERNS):
        jacobian = random(len(here), 5, seed=number) * 10.0 ** random(len(here), 1, seed=number)
        for row, i in zip(jacobian.numpy(), here, strict=True):
            updates[i] += 1
            average[i] = row + beta / updates[i] ** sigma * (average[i] - row)
        lengths = [math.sqrt((average[i] ** 2).sum()) for i in here]
        expected = sum(
            max(lengths) / length * average[i] for length, i in zip(lengths, here, strict=True)
        )
        combined, weights = db.combine(jacobian, None, torch.tensor(here))
        close(combined, expected)
        close(weights, [max(lengths) / length for length in lengths])


def test_db_mtl_balances_log_losses_unless_told_otherwise() -> None:
    assert spec("db-mtl").defaults["log_losses"] is True
    for log_losses in (None, True, False):
        case, fresh = make_case(), make_case()
        balancer = Balancer("db-mtl", log_losses=log_losses)
        assert balancer.log_losses == (log_losses is not False)
        z = case.features()
        out = balancer.backward(case.losses(z), features=z)
        losses = fresh.losses(fresh.features())
        slopes = torch.stack([loss.detach() for loss in losses]) ** -1
        if balancer.log_losses:
            losses = [loss.log() for loss in losses]
        else:
            slopes = torch.ones(3)
        rows = torch.stack([flat_gradient(loss, fresh.shared) for loss in losses])
        lengths = rows.norm(dim=1)
        close(out.weights, lengths.max() / lengths * slopes)
        found = torch.cat([p.grad.flatten() for p in case.shared if p.grad is not None])
        close(found, 0.1 * (lengths.max() / lengths) @ rows)
        # Heads follow the loss that is balanced, unweighted.
        grads = torch.autograd.grad(sum(losses), list(fresh.heads.parameters()))
        for p, g in zip(case.heads.parameters(), grads, strict=True):
            close(p.grad, g)
    assert not Balancer("moco").log_losses


def test_a_loss_that_is_not_finite_has_no_logarithm() -> None:
    for value in (math.inf, math.nan, -math.inf):
        case = make_case()
        z = case.features()
        losses = case.losses(z)
        losses[1] = losses[1] * value
        with pytest.raises(NonFiniteError, match="loss of task 1"):
            Balancer("db-mtl").backward(losses, features=z)
        assert all(p.grad is None for p in case.parameters)
    case = make_case()
    z = case.features()
    losses = [loss.float() for loss in case.losses(z)]
    losses[1] = losses[1] * math.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert Balancer("db-mtl").backward(losses, features=z, scaler=scaler).skipped


# --------------------------------------------------------------------------- tracked gradients


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_no_kernel_holds_what_they_read(name: str) -> None:
    with pytest.raises(ValueError, match="entry by entry"):
        create(name)(kernel_of_gradients(random(2, 1, 3)))


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_gradients_must_be_of_the_same_parameters(name: str) -> None:
    weighting = create(name)
    weighting.combine(random(2, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"had 4 entries and now have 5.*source='exact'"):
        weighting.combine(random(2, 5), torch.ones(2))


@pytest.mark.parametrize("name", OF_ENTRIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_steps_are_not_lost_in_low_precision(name: str, dtype: torch.dtype) -> None:
    # 2 ** -10 of the way each time: in bfloat16, which has 8 bits, an average would not move.
    settings = {"beta": 2.0**-10, "beta_sigma": 0.0} if name == "moco" else {"beta": 1 - 2.0**-10}
    weighting = create(name, **settings)
    rows, ones = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype), torch.ones(2)
    for _ in range(1000):
        combined, _ = weighting.combine(rows, ones)
    assert combined.dtype == dtype
    expected = 1 - (1 - 2.0**-10) ** 1000
    tracked = weighting.state_dict()["tracked"]
    assert tracked.dtype == torch.float32
    assert tracked.diagonal().tolist() == pytest.approx([expected, expected], rel=1e-3)


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_a_gradient_scale_that_changes_is_not_tracked(name: str) -> None:
    results = []
    for scales in (None, [4096.0, 512.0, 2.0**30]):
        case = make_case()
        balancer = Balancer(name)
        steps = []
        for step in range(3):
            scaler = None
            if scales is not None:
                scaler = torch.amp.GradScaler("cpu", init_scale=scales[step])
            z = case.features()
            out = balancer.backward(case.losses(z), features=z, scaler=scaler)
            with torch.no_grad():
                for p in case.parameters:
                    assert p.grad is not None
                    p -= 0.1 * p.grad / (1.0 if scales is None else scales[step])
                    p.grad = None
            steps.append(out.weights)
        results.append((torch.stack(steps), [p.detach() for p in case.parameters]))
    (plain, parameters), (scaled, others) = results
    close(scaled, plain, 1e-7)
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_the_same_with_shared_parameters_and_a_scaler(name: str) -> None:
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        case = make_case()
        balancer = Balancer(name, shared=case.shared)
        balancer.backward(case.losses(case.features()), scaler=scaler)
        size = 1.0 if scaler is None else 1024.0
        grads.append([p.grad / size for p in case.parameters if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------------- PIVRG


def orthogonal(*norms: float) -> ExtendedNTK:
    return ExtendedNTK(torch.diag(tensor(norms)).reshape(len(norms), 1, len(norms), 1))


def test_pivrg_by_hand() -> None:
    # Range 20 > 10 log 2: T = 20 / log 2, so p is proportional to 2 ** (score / 20), and of mean 1.
    # Orthogonal gradients: w_i a_i = sqrt(p_i / w_i), hence w = p ** (1/3) a ** (-2/3).
    pivrg = create("pivrg")
    pivrg.observe([30.0, 10.0, 20.0])
    p = np.array([2.0, 1.0, math.sqrt(2)]) * 3 / (3 + math.sqrt(2))
    close(pivrg(orthogonal(1.0, 8.0, 27.0)), p ** (1 / 3) * [1.0, 1 / 4, 1 / 9])
    # Range 5 < 10 log 2: T = 10. Tasks that perform alike count alike.
    pivrg.observe([3.0, -2.0, 3.0])
    p = np.exp([0.3, -0.2, 0.3])
    p *= 3 / p.sum()
    close(pivrg(orthogonal(1.0, 1.0, 1.0)), p ** (1 / 3))
    # Two tasks alone: the range is theirs.
    p = np.array([math.exp(0.5), 1.0]) * 2 / (math.exp(0.5) + 1)
    close(pivrg(orthogonal(1.0, 1.0), tasks=torch.tensor([0, 1])), p ** (1 / 3))


def test_pivrg_is_fairgrad_until_it_is_told_of_performance() -> None:
    gradients = random(4, 1, 6)
    kernel = kernel_of_gradients(gradients)
    fairgrad = create("fairgrad", alpha=2.0)(kernel)
    pivrg = create("pivrg")
    close(pivrg(kernel), fairgrad)
    pivrg.observe([7.0] * 4)
    close(pivrg(kernel), fairgrad)


@pytest.mark.parametrize("seed", range(6))
def test_pivrg_is_the_published_least_squares_problem(seed: int) -> None:
    gradients = random(4, 1, 6, seed=seed)
    scores = 40 * random(4, seed=seed + 100)
    pivrg = create("pivrg", bound=1.8, min_temperature=20.0)
    pivrg.observe(scores)
    found = pivrg(kernel_of_gradients(gradients)).numpy()
    a = (gradients[:, 0] @ gradients[:, 0].T).numpy()
    s = scores.numpy()
    temperature = max((s.max() - s.min()) / math.log(1.8), 20.0)
    p = 4 * np.exp((s - s.max()) / temperature) / np.exp((s - s.max()) / temperature).sum()
    assert p.max() / p.min() <= 1.8 * (1 + 1e-12)
    np.testing.assert_allclose(a @ found, np.sqrt(p / found), rtol=1e-9)
    published = scipy.optimize.least_squares(
        lambda x: a @ x - np.sqrt(p / x), np.full(4, 0.25), bounds=(0, np.inf)
    )
    np.testing.assert_allclose(found, published.x, rtol=1e-3)


def test_pivrg_scores() -> None:
    pivrg = create("pivrg")
    pivrg.prepare(3, torch.device("cpu"))
    for wrong in ([1.0, 2.0], [[1.0, 2.0, 3.0]], 1.0):
        with pytest.raises(ValueError, match="one score for each of 3 tasks"):
            pivrg.observe(wrong)
    with pytest.raises(ValueError, match="finite"):
        pivrg.observe([1.0, math.inf, 2.0])
    pivrg.observe([1.0, 2.0, math.nan])
    assert pivrg.state_dict()["scores"].tolist() == [1.0, 2.0, 0.0]
    pivrg.observe(torch.tensor([math.nan, 4.0, 5.0]))
    assert pivrg.state_dict()["scores"].tolist() == [1.0, 4.0, 5.0]


def test_pivrg_says_when_it_is_not_told_of_performance() -> None:
    balancer = Balancer("pivrg", tasks=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.end_epoch()  # the scores of the first epoch may come now
        told = Balancer("pivrg", tasks=2)
        told.end_epoch()
        told.weighting.observe([1.0, 2.0])
        told.end_epoch()
    with pytest.warns(UserWarning, match="FairGrad with alpha=2 until") as found:
        balancer.end_epoch()
    assert found[0].filename == __file__  # the line of the caller, not one of the library
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.end_epoch()


def test_pivrg_state_goes_through_a_file() -> None:
    first, second = create("pivrg"), create("pivrg")
    first.observe([5.0, 60.0])
    through_a_file(first, second)
    kernel = orthogonal(1.0, 2.0)
    assert torch.equal(first(kernel), second(kernel))


# --------------------------------------------------------------------------- LDC-MTL


def test_ldc_mtl_by_hand() -> None:
    # W = 1: equal shares. Losses 1 < 4 > 2: signs -1, +1; the middle one gains twice.
    sigma = 1 / (1 + math.exp(-1))
    losses = tensor([1.0, 4.0, 2.0])
    ldc = create("ldc-mtl")
    bend = 0.01 * sigma
    close(ldc(losses=losses), [1 / 3 - bend, 1 / 3 + 2 * bend, 1 / 3 - bend])
    close(create("ldc-mtl", penalty=0.1, tau="one")(losses=losses), [0.7 / 3, 1.6 / 3, 0.7 / 3])
    # d total / d W_i = sigma (1 - sigma) (l_i / (3 sigma) + .01 (s_i - s_{i-1}) l_i).
    ldc.accumulate(losses, torch.arange(3), 2.0)
    (router,) = ldc.parameters()
    slope = 2 * sigma * (1 - sigma)
    expected = [
        slope * (1 / (3 * sigma) - 0.01),
        slope * (4 / (3 * sigma) + 0.08),
        slope * (2 / (3 * sigma) - 0.02),
    ]
    assert router.grad is not None
    close(router.grad, expected, 1e-6)


def test_ldc_mtl_weights_may_be_negative() -> None:
    # Three equal shares; a loss below both its neighbours loses 2 * .2.
    found = create("ldc-mtl", penalty=0.2, tau="one")(losses=tensor([2.0, 1.0, 2.0]))
    close(found, [1 / 3 + 0.2, 1 / 3 - 0.4, 1 / 3 + 0.2])


def ldc_total(router: Tensor, losses: Tensor, penalty: float, tau: str) -> Tensor:
    """What the published training loops descend, as one differentiable number."""
    weights = torch.sigmoid(router)
    scaled = weights * losses if tau == "sigma" else losses
    gaps = [(scaled[i] - scaled[i + 1]).abs() for i in range(len(losses) - 1)]
    return (weights * losses).sum() / weights.sum().detach() + penalty * sum(gaps)


@pytest.mark.parametrize("tau", ["sigma", "one"])
@pytest.mark.parametrize("seed", range(4))
def test_ldc_mtl_is_the_gradient_of_its_total(seed: int, tau: str) -> None:
    ldc = create("ldc-mtl", penalty=0.3, tau=tau, tasks=5)
    (router,) = ldc.parameters()
    with torch.no_grad():
        router.copy_(random(5, seed=seed))
    for here in ([0, 1, 2, 3, 4], [0, 2, 3], [4]):
        at = torch.tensor(here)
        losses = random(len(here), seed=seed + 10).abs().requires_grad_()
        own = router.detach().double()[at].requires_grad_()
        expected, on_router = torch.autograd.grad(ldc_total(own, losses, 0.3, tau), [losses, own])
        close(ldc(losses=losses.detach(), tasks=at), expected)
        router.grad = None
        ldc.accumulate(losses.detach(), at, 1.0)
        assert router.grad is not None
        torch.testing.assert_close(router.grad[at], on_router.float(), rtol=1e-5, atol=1e-7)
        absent = [i for i in range(5) if i not in here]
        assert not router.grad[absent].any()


def test_ldc_mtl_trains_its_router_beside_the_model() -> None:
    # Against the published loop: one optimiser, one backward pass of the total.
    results = []
    for by_balancer in (True, False):
        case = make_case()
        balancer = Balancer("ldc-mtl", penalty=0.05, tasks=3)
        own = nn.Parameter(torch.ones(3))
        learned = list(balancer.parameters()) if by_balancer else [own]
        optimizer = torch.optim.Adam([*case.parameters, *learned], lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            losses = case.losses(case.features())
            if by_balancer:
                balancer.backward(losses)
            else:
                ldc_total(own, torch.stack(losses), 0.05, "sigma").backward()
            optimizer.step()
        results.append([p.detach().double() for p in [*case.parameters, *learned]])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ldc_mtl_bad_input() -> None:
    ldc = create("ldc-mtl", tasks=2)
    with pytest.raises(ValueError, match="made for 2 tasks, found position 2"):
        ldc(losses=torch.ones(3))
    with pytest.raises(ValueError, match="the state has 3 tasks, this method 2"):
        ldc.load_state_dict({"router": torch.ones(3)})
    empty = create("ldc-mtl")
    assert empty.state_dict() == {"router": None}
    empty.load_state_dict({"router": None})
    through_a_file(create("ldc-mtl", tasks=2), empty)
    assert empty.state_dict()["router"].tolist() == [1.0, 1.0]


# --------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("modo", "gamma", 0.0),
        ("modo", "rho", -0.1),
        ("sdmgrad", "lambda_", -1.0),
        ("sdmgrad", "learning_rate", 0.0),
        ("sdmgrad", "momentum", 1.0),
        ("sdmgrad", "iterations", 0),
        ("moco", "beta", 1.5),
        ("moco", "beta", 0.0),
        ("moco", "beta_sigma", -1.0),
        ("moco", "gamma", math.inf),
        ("moco", "gamma_sigma", -0.5),
        ("moco", "rho", -1.0),
        ("moco", "simplex", "sparsemax"),
        ("db-mtl", "beta", 1.0),
        ("db-mtl", "beta", math.nan),
        ("db-mtl", "beta_sigma", -1.0),
        ("pivrg", "bound", 1.0),
        ("pivrg", "min_temperature", 0.0),
        ("ldc-mtl", "penalty", -0.1),
        ("ldc-mtl", "tau", "two"),
        ("ldc-mtl", "tasks", 0),
    ],
)
def test_settings_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be.*Found"):
        create(name, **{option: value})


def training(name: str, scale: float, steps: int = 4, **options: Any) -> tuple[list[Any], Case]:
    """A few steps in float32, with one label missing in the second."""
    case = make_case()
    case.trunk.float()
    case.heads.float()
    case.inputs = tuple(x.float() for x in case.inputs)
    case.targets = case.targets.float()
    balancer = Balancer(name, tasks=3, **options)
    weights = []
    for step in range(steps):
        z = case.features()
        losses: list[Tensor | None] = [scale * loss for loss in case.losses(z)]
        if step == 1:
            losses[1] = None
        out = balancer.backward(losses, features=z)
        weights.append(out.weights.tolist())
        with torch.no_grad():
            for p in [*case.parameters, *balancer.parameters()]:
                if p.grad is not None:
                    assert p.grad.isfinite().all()
                    p -= 0.01 * p.grad / p.grad.norm().clamp_min(1e-30)
                    p.grad = None
    return weights, case


@pytest.mark.parametrize("name", OURS)
def test_the_same_numbers_every_time(name: str) -> None:
    first, case = training(name, 1.0)
    second, other = training(name, 1.0)
    assert first == second
    for p, q in zip(case.parameters, other.parameters, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("exponent", [-12, 12])
@pytest.mark.parametrize("name", OURS)
def test_losses_of_any_scale(name: str, exponent: int) -> None:
    weights, case = training(name, 10.0**exponent)
    assert np.isfinite(weights).all()
    assert weights[1][1] == 0
    assert all(p.isfinite().all() for p in case.parameters)
    if name in ("sdmgrad", "ldc-mtl"):  # the same at every scale
        plain, _ = training(name, 1.0, steps=1)
        assert weights[0] == pytest.approx(plain[0], rel=1e-3)
    if name in ("db-mtl", "pivrg"):  # weights of losses; the published PIVRG scales as l ** (-4/3)
        power = -1.0 if name == "db-mtl" else -4 / 3
        plain, _ = training(name, 1.0, steps=1)
        expected = [w * (10.0**exponent) ** power for w in plain[0]]
        assert weights[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("source", ["representation", "exact"])
def test_weights_may_be_reused_between_kernels(name: str, source: str) -> None:
    weights, _ = training(name, 1.0, source=source, every=2)
    assert weights[2] == weights[3]
    assert weights[1][::2] == weights[0][::2]
