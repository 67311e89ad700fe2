"""sdmgrad: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import SDMGradWeighting

from ntkmtl.weighting import create
from weighting.by_hand import (
    close,
    kernel_of_gradients,
    kernel_of_products,
    random,
)


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
