"""The trimmed mean: values by hand, and TorchJD's."""

from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import TrimmedMean as TorchJDTrimmedMean

from ntkmtl import Balancer
from ntkmtl.weighting import create


def test_largest_and_smallest_are_left_out() -> None:
    # Entry 0: 2, 4, 6 stay of 1, 2, 4, 6, 9. Entry 1: -1, 0, 1 of -8, -1, 0, 1, 3.
    J = torch.tensor([[1.0, 0.0], [9.0, 1.0], [4.0, -8.0], [2.0, 3.0], [6.0, -1.0]])
    combined, kept = create("trimmed-mean").combine(J)
    assert combined.tolist() == [4, 0]
    assert kept.tolist() == pytest.approx([0, 1 / 10, 4 / 12, 2 / 5, 1])
    combined, _ = create("trimmed-mean", trim=2).combine(J)
    assert combined.tolist() == [4, 0]
    combined, kept = create("trimmed-mean", trim=0).combine(J)
    assert combined.tolist() == pytest.approx([22 / 5, -1])
    assert kept.tolist() == [1] * 5


def test_one_or_two_numbers_are_always_left() -> None:
    J = torch.tensor([[1.0], [5.0]])
    assert create("trimmed-mean", trim=3).combine(J)[0].tolist() == [3]
    assert create("trimmed-mean").combine(J[:1])[0].tolist() == [1]
    # Two of four: the median.
    assert create("trimmed-mean", trim=9).combine(torch.tensor([[1.0], [2.0], [8.0], [9.0]]))[
        0
    ].tolist() == [5]


def test_as_torchjd() -> None:
    J = torch.randn(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for trim in range(4):
        ours, _ = create("trimmed-mean", trim=trim).combine(J)
        torch.testing.assert_close(ours, TorchJDTrimmedMean(trim)(J))


def test_through_the_balancer() -> None:
    x = torch.ones(2, requires_grad=True)
    losses = [(weight * x).sum() for weight in (1.0, 2.0, 30.0)]
    Balancer("trimmed-mean").backward(losses)
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2]
    with pytest.raises(ValueError, match="trim must be at least 0"):
        create("trimmed-mean", trim=-1)
    with pytest.raises(ValueError, match="call combine"):
        create("trimmed-mean").weigh(None, None, torch.arange(2))
