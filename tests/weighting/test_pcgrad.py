"""pcgrad: values worked out by hand, and independent implementations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import create
from ntkmtl.weighting._pcgrad import PCGrad
from weighting.by_hand import (
    EXACT,
    tensor,
    weigh,
)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pcgrad_of_two_tasks(scale: float) -> None:
    # g_1 - (c / b) g_2 + g_2 - (c / a) g_1 where c < 0, the plain sum otherwise.
    found = weigh("pcgrad", tensor([[2.0, -1.0], [-1.0, 4.0]]) * scale)
    torch.testing.assert_close(found, tensor([1 + 1 / 2, 1 + 1 / 4]), **EXACT)
    found = weigh("pcgrad", tensor([[2.0, 1.0], [1.0, 4.0]]) * scale)
    torch.testing.assert_close(found, tensor([1.0, 1.0]), **EXACT)


def test_pcgrad_projects_in_random_order() -> None:
    rows = tensor([[1.0, 0.0], [-1.0, 0.4], [-1.0, -3.0]])

    def surgery(order: Sequence[Sequence[int]]) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for i, others in enumerate(order):
            g = rows[i].clone()
            for j in others:
                if g @ rows[j] < 0:
                    g -= (g @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
            total += g
        return total

    both = [((1, 2), (2, 1)), ((0, 2), (2, 0)), ((0, 1), (1, 0))]
    possible = [surgery([a, b, c]) for a in both[0] for b in both[1] for c in both[2]]
    weighting = create("pcgrad", seed=0)
    seen = set()
    for _ in range(40):
        combined = weigh(weighting, rows @ rows.T) @ rows
        distances = [float((combined - p).norm()) for p in possible]
        assert min(distances) < 1e-9
        seen.add(round(float(combined[0]), 6))
    assert len(seen) > 1


def test_pcgrad_leaves_all_global_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are drawn on the CPU, also where the network is on a GPU with dropout."""
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reset.append)
    before = torch.get_rng_state()
    create("pcgrad", seed=0)(ExtendedNTK(torch.eye(3).reshape(3, 1, 3, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert reset == []


@pytest.mark.parametrize("k", [1, 2, 7])
def test_pcgrad_draws_every_order(k: int) -> None:
    orders = PCGrad(seed=0)._orders(k).tolist()
    for i, order in enumerate(orders):
        assert sorted(order) == [j for j in range(k) if j != i]
