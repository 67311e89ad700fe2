"""SoftAdapt: the three forms of section 3.1, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.weighting import create


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def second_step(**options: object) -> list[float]:
    weighting = create("softadapt", beta=0.5, **options)
    weighting(losses=tensor(1.0, 5.0, 2.0))
    return weighting(losses=tensor(3.0, 4.0, 2.0)).tolist()


def test_original() -> None:
    # s = (2, -1, 0), so e^{beta s} = (e, e^-.5, 1) with beta = 1/2.
    parts = [math.e, math.exp(-0.5), 1.0]
    assert second_step() == pytest.approx([p / sum(parts) for p in parts], rel=1e-12)


def test_normalized() -> None:
    # s / sum |s| = (2/3, -1/3, 0), times 1/2.
    parts = [math.exp(1 / 3), math.exp(-1 / 6), 1.0]
    found = second_step(variant="normalized")
    assert found == pytest.approx([p / sum(parts) for p in parts], rel=1e-12)


def test_loss_weighted() -> None:
    # Losses (3, 4, 2) times e^{beta s}.
    parts = [3 * math.e, 4 * math.exp(-0.5), 2.0]
    found = second_step(variant="loss-weighted")
    assert found == pytest.approx([p / sum(parts) for p in parts], rel=1e-12)


def test_the_first_step_and_a_task_at_its_first_labels_have_no_change() -> None:
    weighting = create("softadapt", beta=1.0)
    weighting.prepare(3, torch.device("cpu"))
    assert weighting(losses=tensor(7.0, 1.0), tasks=torch.tensor([0, 2])).tolist() == [0.5, 0.5]
    # Task 1 is new and task 0 was absent from nothing: s = (-1, 0).
    found = weighting(losses=tensor(6.0, 9.0), tasks=torch.tensor([0, 1])).tolist()
    assert found == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)], rel=1e-12)
    # Task 2 is back after a step without labels: its last loss was 1, s = (0, 2).
    found = weighting(losses=tensor(6.0, 3.0), tasks=torch.tensor([0, 2])).tolist()
    both = 1 + math.exp(2)
    assert found == pytest.approx([1 / both, math.exp(2) / both], rel=1e-12)


def test_settings() -> None:
    with pytest.raises(ValueError, match="variant must be one of original, normalized"):
        create("softadapt", variant="other")
    with pytest.raises(ValueError, match="beta must be"):
        create("softadapt", beta=math.inf)
    weighting = create("softadapt", variant="loss-weighted")
    with pytest.raises(ValueError, match="softadapt multiplies by losses, found a negative one"):
        weighting(losses=tensor(-1.0, 1.0))
    # A negative beta prefers what falls fastest.
    preferred = create("softadapt", beta=-1.0)
    preferred(losses=tensor(2.0, 2.0))
    assert preferred(losses=tensor(1.0, 2.0)).argmax() == 0


def test_priorities_are_its_set_point() -> None:
    x = torch.ones(2, requires_grad=True)
    balancer = Balancer("softadapt", priorities=[3.0, 1.0])
    assert balancer.backward([x[0].square(), x[1].square()]).weights.tolist() == [0.75, 0.25]
