"""pivrg: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create
from weighting.by_hand import close, kernel_of_gradients, random, tensor, through_a_file


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
