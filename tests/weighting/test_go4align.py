"""go4align: values worked out by hand, and independent implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ntkmtl.weighting import create
from ntkmtl.weighting._go4align import group_means
from weighting.by_hand import (
    EXACT,
    tensor,
)


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_the_best_of_all_assignments(groups: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.exp(generator.normal(size=6) * 2)
    best, expected = math.inf, values
    if groups < 6:
        for labels in itertools.product(range(groups), repeat=6):
            label = np.array(labels)
            means = np.array([values[label == g].mean() for g in label])
            if (cost := ((values - means) ** 2).sum()) < best:
                best, expected = cost, means
    found = group_means(torch.from_numpy(values), groups)
    torch.testing.assert_close(found, torch.from_numpy(expected), **EXACT)


def test_groups_of_equal_numbers() -> None:
    assert group_means(tensor(2.0, 2.0, 2.0), 2).tolist() == [2.0, 2.0, 2.0]
    assert group_means(tensor(0.0, 0.0, 0.0), 2).tolist() == [0.0, 0.0, 0.0]
    assert group_means(tensor(3.0, 1.0, 3.0, 1.0), 3).tolist() == [3.0, 1.0, 3.0, 1.0]


def test_go4align_by_hand() -> None:
    # beta = log 2, losses (1, 1, 2): p is proportional to (1/2, 1/2, 1/4), so (2/5, 2/5, 1/5);
    # v = p 4 / l = (8/5, 8/5, 2/5). Two groups are those two, one is their mean 6/5.
    losses = tensor(1.0, 1.0, 2.0)
    found = create("go4align", groups=2, step_size=math.log(2.0))(losses=losses)
    torch.testing.assert_close(found, tensor(1.6, 1.6, 0.4), **EXACT)
    found = create("go4align", groups=1, step_size=math.log(2.0))(losses=losses)
    torch.testing.assert_close(found, tensor(1.2, 1.2, 1.2), **EXACT)


def test_go4align_is_the_published_recurrence() -> None:
    step_size, k, groups = 0.3, 5, 2
    weighting = create("go4align", groups=groups, step_size=step_size)
    indicators = np.full(k, 1 / k)
    generator = np.random.default_rng(0)
    for _ in range(6):
        losses = generator.uniform(0.1, 3.0, size=k)
        indicators = indicators * np.exp(-step_size * losses)
        indicators = indicators / indicators.sum()
        values = losses.sum() / losses * indicators
        expected = group_means(torch.from_numpy(values), groups)
        torch.testing.assert_close(weighting(losses=torch.from_numpy(losses)), expected, **EXACT)


def test_go4align_losses_of_zero() -> None:
    weighting = create("go4align")
    assert weighting(losses=tensor(0.0, 0.0)).tolist() == [0.0, 0.0]
    found = weighting(losses=tensor(0.0, 2.0))
    assert found[0] == 0.0
    assert found[1] > 0.0
    with pytest.raises(ValueError, match="negative"):
        weighting(losses=tensor(-1.0, 2.0))
