"""fixed: values worked out by hand, and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    LOSSES,
)


def test_fixed() -> None:
    assert create("fixed")(losses=LOSSES).tolist() == [1.0, 1.0, 1.0]
    forms = ([0.5, 2.0, 0.0], (0.5, 2, 0), {"a": 0.5, "b": 2.0, "c": 0.0})
    for weights in (*forms, torch.tensor(forms[0]), np.array(forms[0])):
        weighting = create("fixed", weights=weights)
        assert weighting(losses=LOSSES).tolist() == [0.5, 2.0, 0.0]
        # A task without labels takes its own weight along, not its position among the others.
        found = weighting(losses=LOSSES[[0, 2]], tasks=torch.tensor([0, 2]))
        assert found.tolist() == [0.5, 0.0]
    assert repr(create("fixed", weights=[1, 2])) == "FixedWeights(weights=[1.0, 2.0])"


@pytest.mark.parametrize("weights", [[0, 0], {"a": 0.0}, np.zeros(3)])
def test_weights_that_train_nothing_are_refused(weights: object) -> None:
    with pytest.raises(ValueError, match="one weight must be above 0, or nothing is trained"):
        create("fixed", weights=weights)


def test_fixed_needs_one_weight_per_task() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 tasks"):
        create("fixed", weights=[1.0, 2.0])(losses=LOSSES)
    with pytest.raises(ValueError, match="2 weights for 3 tasks"):
        Balancer("fixed", tasks=3, weights=[1.0, 2.0])
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    Balancer("fixed", weights=[3.0, 0.5]).backward([p[0] ** 2, p[1] ** 2])
    assert p.grad is not None
    assert p.grad.tolist() == [6.0, 1.0]
