"""Moving averages of gradients: in place, and with tasks left out."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.weighting import create
from ntkmtl.weighting._tracked import TrackedGradients


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tasks", [[0, 1, 2], [0, 2], [1], [2, 0, 1]])
def test_averages_move_by_their_rates(tasks: list[int], scaled: bool) -> None:
    tracked = TrackedGradients()
    tracked.prepare(3)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    at = torch.tensor(tasks)
    factors = torch.linspace(0.5, 2.0, len(tasks), dtype=torch.float64) if scaled else None
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randn(len(tasks), 4, dtype=torch.float64, generator=generator)
        rates = torch.linspace(0.1, 0.9, len(tasks), dtype=torch.float64)
        found = tracked.update(rows, at, rates, "moco", factors)
        for i, task in enumerate(tasks):
            factor = 1.0 if factors is None else factors[i]
            expected[task] += rates[i] * (factor * rows[i] - expected[task])
        torch.testing.assert_close(found, expected[at], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tracked.values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["moco", "db-mtl", "excess-mtl"])
def test_a_step_makes_no_copy_of_its_state(name: str) -> None:
    weighting = create(name)
    matrix, losses, tasks = torch.randn(3, 50), torch.ones(3).double(), torch.arange(3)
    weighting.combine(matrix, losses, tasks)
    state = [v for v in weighting._get_state().values() if isinstance(v, torch.Tensor) and v.ndim]
    big = max(state, key=torch.Tensor.numel)
    weighting.combine(matrix, losses, tasks)
    again = [v for v in weighting._get_state().values() if isinstance(v, torch.Tensor) and v.ndim]
    assert big.numel() == 150
    assert max(again, key=torch.Tensor.numel).data_ptr() == big.data_ptr()


def test_moco_of_gradients_next_to_zero() -> None:
    # Scaled to their losses in float32, where 1 / 1e-40 overflows.
    rows = torch.tensor([[1e-40, 0.0], [0.0, 1.0]])
    combined, _ = create("moco").combine(rows, torch.ones(2, dtype=torch.float64))
    assert bool(combined.isfinite().all())
