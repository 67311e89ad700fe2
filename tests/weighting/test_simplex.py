"""Projection onto the simplex."""

from __future__ import annotations

import numpy as np
import pytest

from ntkmtl.weighting._simplex import project_onto_simplex
from weighting.by_hand import (
    close,
    random,
    simplex_oracle,
    tensor,
)


@pytest.mark.parametrize("k", [1, 2, 3, 11, 40])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 10.0])
def test_projection_onto_the_simplex(k: int, scale: float) -> None:
    for seed in range(5):
        v = random(k, seed=seed) * scale
        found = project_onto_simplex(v)
        np.testing.assert_allclose(found.numpy(), simplex_oracle(v.tolist()), atol=1e-12)
        close(project_onto_simplex(v + 3.0), found)  # only differences matter


def test_projection_of_numbers_of_any_size() -> None:
    # In plain arithmetic the 1 is lost beside these, and what is left sums to 0.
    assert project_onto_simplex(tensor([-1e24, -2e24, -3e24])).tolist() == [1.0, 0.0, 0.0]
    assert project_onto_simplex(tensor([1e24, 1e24])).tolist() == [0.5, 0.5]
    assert project_onto_simplex(tensor([0.0, -1e-24])).tolist() == [0.5, 0.5]
    assert project_onto_simplex(tensor([0.2, 0.3, 0.5])).tolist() == pytest.approx([0.2, 0.3, 0.5])
