"""ReLoBRaLo: Eq. of section III by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.weighting import create


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softmax(*values: float) -> list[float]:
    parts = [math.exp(v) for v in values]
    return [p / sum(parts) for p in parts]


def test_without_lookback() -> None:
    # Step 1: all ratios are 1, so every weight is 1.
    # Step 2: ratios (1/2, 3/1) by T = 2; lambda = .9 * 1 + .1 * 2 softmax(.25, 1.5).
    # Step 3: ratios to step 2 (2/1, 3/3); lambda = .9 * that + .1 * 2 softmax(1, .5).
    weighting = create("relobralo", alpha=0.9, temperature=2.0, rho=1.0)
    assert weighting(losses=tensor(2.0, 1.0)).tolist() == [1.0, 1.0]
    second = [0.9 + 0.2 * s for s in softmax(0.25, 1.5)]
    assert weighting(losses=tensor(1.0, 3.0)).tolist() == pytest.approx(second, rel=1e-12)
    third = [0.9 * w + 0.2 * s for w, s in zip(second, softmax(1.0, 0.5), strict=True)]
    assert weighting(losses=tensor(2.0, 3.0)).tolist() == pytest.approx(third, rel=1e-12)


def test_lookback_replaces_the_memory_by_the_first_step() -> None:
    # rho = 0: lambda = .9 * 2 softmax(ratios to the first) + .1 * 2 softmax(ratios to the last).
    weighting = create("relobralo", alpha=0.9, rho=0.0)
    weighting(losses=tensor(2.0, 1.0))
    weighting(losses=tensor(1.0, 3.0))
    first, last = softmax(4 / 2, 3 / 1), softmax(4 / 1, 3 / 3)
    expected = [1.8 * f + 0.2 * s for f, s in zip(first, last, strict=True)]
    assert weighting(losses=tensor(4.0, 3.0)).tolist() == pytest.approx(expected, rel=1e-12)


def test_lookback_is_drawn_with_its_mean() -> None:
    weighting = create("relobralo", alpha=1.0, rho=0.8, seed=0)
    # With alpha = 1, weights change only where it looks back, here to ratios (1, growing).
    weighting(losses=tensor(1.0, 1.0))
    changes, before = 0, None
    for step in range(1000):
        after = weighting(losses=tensor(1.0, 1.0 + step / 1000)).tolist()
        changes += before is not None and after != before
        before = after
    assert 160 < changes < 240  # 200 of 1,000, standard deviation 13


def test_zero_losses_and_absent_tasks() -> None:
    weighting = create("relobralo", alpha=0.0, rho=1.0)
    weighting.prepare(3, torch.device("cpu"))
    weighting(losses=tensor(0.0, 1.0), tasks=torch.tensor([0, 2]))
    # Task 0 has no earlier loss above 0 and task 1 none at all: ratio 1 each.
    assert weighting(losses=tensor(5.0, 9.0), tasks=torch.tensor([0, 1])).tolist() == [1.0, 1.0]
    found = weighting(losses=tensor(5.0, 2.0), tasks=torch.tensor([0, 2])).tolist()
    assert found == pytest.approx([2 * s for s in softmax(1.0, 2.0)], rel=1e-12)


def test_settings() -> None:
    with pytest.raises(ValueError, match="rho must be at most 1"):
        create("relobralo", rho=1.5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        create("relobralo", temperature=0.0)


def test_priorities_are_its_set_point() -> None:
    x = torch.ones(2, requires_grad=True)
    balancer = Balancer("relobralo", priorities=[3.0, 1.0])
    assert balancer.backward([x[0].square(), x[1].square()]).weights.tolist() == [1.5, 0.5]
