"""Two stages of fixed weights."""

from __future__ import annotations

import math

import pytest
import torch

from ntkmtl import Balancer
from ntkmtl.weighting import create

LOSSES = torch.ones(2, dtype=torch.float64)


def test_the_swap_is_at_a_step() -> None:
    weighting = create("stage-swap", first=[1, 100], second=[1000, 100], switch_step=2)
    found = [weighting(losses=LOSSES).tolist() for _ in range(4)]
    assert found == [[1, 100], [1, 100], [1000, 100], [1000, 100]]
    assert list(weighting.needs()) == []


def test_the_swap_is_at_an_epoch_and_in_the_state() -> None:
    options = {"first": [1, 100], "second": [1000, 100], "switch_epoch": 1}
    weighting = create("stage-swap", **options)
    assert [what for what, _ in weighting.needs()] == ["end_epoch"]
    assert weighting(losses=LOSSES).tolist() == [1, 100]
    weighting.end_epoch()
    resumed = create("stage-swap", **options)
    resumed.load_state_dict(weighting.state_dict())
    for each in (weighting, resumed):
        assert each(losses=LOSSES).tolist() == [1000, 100]


def test_weights_by_name_and_priorities() -> None:
    x = torch.ones(2, requires_grad=True)
    swap = create(
        "stage-swap",
        first={"forces": 100, "energy": 1},
        second={"energy": 10, "forces": 1},
        switch_step=1,
    )
    balancer = Balancer(swap, priorities={"energy": 3})
    for expected in ([1.5, 50.0], [15.0, 0.5]):
        losses = {"energy": x[0].square(), "forces": x[1].square()}
        assert balancer.backward(losses).weights.tolist() == expected
    with pytest.raises(ValueError, match="the tasks are"):
        Balancer("stage-swap", first={"a": 1.0}, second=[1, 2], switch_step=1).backward(losses)


def test_settings() -> None:
    assert create("stage-swap")(losses=LOSSES).tolist() == [1, 1]
    with pytest.raises(ValueError, match="when it begins"):
        create("stage-swap", second=[1, 2])
    with pytest.raises(ValueError, match="when it begins"):
        create("stage-swap", switch_step=3)
    with pytest.raises(ValueError, match="not both"):
        create("stage-swap", second=[1, 2], switch_step=1, switch_epoch=1)
    with pytest.raises(ValueError, match="not negative"):
        create("stage-swap", first=[1, -1], second=[1, 2], switch_step=1)
    with pytest.raises(ValueError, match="finite"):
        create("stage-swap", first=[1, math.nan], second=[1, 2], switch_step=1)
    with pytest.raises(ValueError, match="must not be negative"):
        create("stage-swap", first=[1, 1], second=[1, 2], switch_step=-1)
