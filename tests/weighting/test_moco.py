"""moco: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ntkmtl.weighting import create
from weighting.by_hand import (
    PATTERNS,
    close,
    random,
    simplex_oracle,
    tensor,
)


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
