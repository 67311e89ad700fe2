"""States of weightings: through a file, and beside tasks without labels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ntkmtl.weighting import Weighting, create
from weighting.by_hand import (
    EXACT,
    gradients,
    weigh,
)

STATEFUL = [
    "imtl",
    "gradnorm",
    "go4align",
    "gradvac",
    "pcd",
    "cr-mogm",
    "excess-mtl",
]


def take(weighting: Weighting, seed: int, tasks: Sequence[int]) -> Tensor:
    rows = gradients(len(tasks), 6, seed)
    losses = rows[:, 0].square() + 0.1
    at = torch.tensor(tasks)
    if weighting.requires == "jacobian":
        return weighting.combine(rows, losses, at)[1]
    if weighting.requires == "losses":
        return weighting(losses=losses, tasks=at)
    return weigh(weighting, rows @ rows.T, losses=losses, tasks=at)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_with_gaps_goes_through_a_file(name: str) -> None:
    first, second = create(name), create(name)
    for weighting in (first, second):
        weighting.prepare(4, torch.device("cpu"))
    for seed, tasks in enumerate([(0, 2), (0, 1, 2), (1,), (3, 0)]):
        assert take(first, seed, tasks).isfinite().all()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for seed, tasks in enumerate([(1, 3), (0, 1, 2, 3), (2, 0)], start=10):
        assert torch.equal(take(first, seed, tasks), take(second, seed, tasks))


@pytest.mark.parametrize("name", STATEFUL)
def test_others_do_not_see_a_task_without_labels(name: str) -> None:
    three, two = create(name), create(name)
    three.prepare(3, torch.device("cpu"))
    for seed in range(5):
        found, expected = take(three, seed, (0, 2)), take(two, seed, (0, 1))
        torch.testing.assert_close(found, expected, **EXACT)
