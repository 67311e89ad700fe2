"""Learning-rate annealing by gradient norms: values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create


def kernel(*norms: float) -> ExtendedNTK:
    """Gradients that are at right angles, of these lengths."""
    squares = torch.tensor(norms, dtype=torch.float64).square()
    return ExtendedNTK(torch.diag(squares).reshape(len(norms), 1, len(norms), 1))


def test_two_steps() -> None:
    # Norms 1, 2, 5: hat = 8 / (1, 2, 5); lambda = .9 + .1 hat = (1.7, 1.3, 1.06).
    # Norms 4, 2, 2: hat = 8 / (4, 2, 2) = (2, 4, 4); .9 lambda + .1 hat.
    weighting = create("lra")
    first = weighting(kernel(1.0, 2.0, 5.0))
    assert first.tolist() == pytest.approx([1.7, 1.3, 1.06], rel=1e-12)
    second = weighting(kernel(4.0, 2.0, 2.0))
    assert second.tolist() == pytest.approx([1.73, 1.57, 1.354], rel=1e-12)


def test_in_the_long_run_gradients_are_equally_long() -> None:
    weighting, lengths = create("lra", alpha=0.5), torch.tensor([1e-3, 1.0, 40.0]).double()
    for _ in range(60):
        weights = weighting(kernel(*lengths.tolist()))
    torch.testing.assert_close(weights * lengths, lengths.sum().expand(3), rtol=1e-12, atol=0)


def test_a_gradient_that_vanishes_and_an_absent_task_keep_their_weights() -> None:
    weighting = create("lra", alpha=0.5)
    weighting.prepare(3, torch.device("cpu"))
    # hat of tasks 0 and 2: 4 / 1 and 4 / 3.
    found = weighting(kernel(1.0, 3.0), tasks=torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([2.5, 7 / 6], rel=1e-12)
    # Task 0 vanishes and keeps 2.5; task 1 is new, hat 1.
    assert weighting(kernel(0.0, 3.0), tasks=torch.tensor([0, 1])).tolist() == [2.5, 1.0]


def test_through_the_balancer() -> None:
    x: Tensor = torch.ones(2, requires_grad=True)
    # Gradients of x0^2 and 3 x1^2 at 1: 2 and 6, hat = (4, 4/3).
    out = Balancer("lra", alpha=0.0, priorities=[1.0, 3.0]).backward(
        [x[0].square(), 3 * x[1].square()]
    )
    assert out.weights.tolist() == pytest.approx([2.0, 2.0], rel=1e-6)
    with pytest.raises(ValueError, match="alpha must be below 1"):
        create("lra", alpha=1.0)
