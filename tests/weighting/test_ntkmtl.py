"""ntkmtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import create
from ntkmtl.weighting._ntkmtl import eigenvalue_weights
from weighting.by_hand import (
    EXACT,
    tensor,
    weigh,
)


@pytest.mark.parametrize("name", ["ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "ntkmtl-auto"])
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
    # The zero is the one exception; its neighbor is not.
    smallest = eigenvalue_weights(tensor([1.0, 5e-324]))
    torch.testing.assert_close(smallest[1].log(), tensor([-math.log(10e-324) / 2])[0])
    assert eigenvalue_weights(tensor([1.0, 0.0])).tolist() == [math.sqrt(0.5), 1.0]
    assert eigenvalue_weights(tensor([1e308, 5e-324]), 1.0)[1] == 1.0  # beyond float64
    assert eigenvalue_weights(tensor([1.7e308, 1.7e308])).tolist() == [1.0, 1.0]


def test_ntkmtl_of_eigenvalues_that_are_not_finite() -> None:
    for bad in (math.nan, math.inf):
        assert bool(eigenvalue_weights(tensor([1.0, bad])).isnan().all())
