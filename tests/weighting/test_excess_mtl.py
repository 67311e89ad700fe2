"""excess-mtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import pytest
import torch
from torchjd import aggregation

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    gradients,
    tensor,
    weigh,
)


def test_excess_mtl_by_hand() -> None:
    # One entry each: 3 and 4, then 4 and 3. E = g^2 / sqrt(sum g^2): (3, 4), then (16/5, 9/5).
    # The first is the start: equal weights. Then the exponents are (16/15, 9/20).
    weighting = create("excess-mtl", step_size=1.0)
    combined, weights = weighting.combine(torch.diag(tensor(3.0, 4.0)))
    torch.testing.assert_close(weights, tensor(0.5, 0.5), **EXACT)
    torch.testing.assert_close(combined, tensor(1.5, 2.0), **EXACT)
    combined, weights = weighting.combine(torch.diag(tensor(4.0, 3.0)))
    expected = torch.softmax(tensor(16 / 15, 9 / 20), dim=0)
    torch.testing.assert_close(weights, expected, **EXACT)
    torch.testing.assert_close(combined, expected * tensor(4.0, 3.0), **EXACT)


@pytest.mark.parametrize("step_size", [0.01, 1.0])
def test_excess_mtl_equals_torchjd(step_size: float) -> None:
    # Theirs with one step of warm-up has its start from the first step, as the published code.
    ours = create("excess-mtl", step_size=step_size)
    theirs = aggregation.ExcessMTLWeighting(robust_step_size=step_size, n_warmup_steps=1)
    for seed in range(8):
        rows = gradients(3, 6, seed) + 0.5
        combined, weights = ours.combine(rows)
        torch.testing.assert_close(weights, theirs(rows), rtol=1e-4, atol=0.0)
        torch.testing.assert_close(combined, weights @ rows, **EXACT)


def test_excess_mtl_warms_up_by_epochs() -> None:
    # Starts are the means over two epochs of one step: E = 3, then 16 / 5 or 9 / 5; means 3.1 and
    # 2.9.
    weighting = create("excess-mtl", step_size=1.0, warmup=2)
    for entry in (3.0, 4.0):
        _, weights = weighting.combine(torch.diag(tensor(entry, 7.0 - entry)))
        assert weights.tolist() == [0.5, 0.5]
        weighting.end_epoch()
    _, weights = weighting.combine(torch.diag(tensor(12.0, 12.0)))
    exponents = (144 / 13) / tensor((3 + 16 / 5) / 2, (4 + 9 / 5) / 2)
    torch.testing.assert_close(weights, torch.softmax(exponents, dim=0), **EXACT)


def test_excess_mtl_tasks_without_labels() -> None:
    weighting = create("excess-mtl", step_size=1.0)
    weighting.prepare(3, torch.device("cpu"))
    pair = torch.tensor([0, 2])
    for entry in (3.0, 4.0):
        rows = torch.diag(tensor(entry, 1.0, 7.0 - entry))[pair]
        _, weights = weighting.combine(rows, tasks=pair)
    torch.testing.assert_close(weights, torch.softmax(tensor(16 / 15, 9 / 20), dim=0), **EXACT)
    state = weighting.state_dict()
    assert not state["squares"][1].any()
    assert state["start"][1].isnan()
    assert state["log_weights"][1] == 0.0
    # The two kept the mass that they had: three thirds in all, one of them task 1's.
    shares = torch.softmax(state["log_weights"], dim=0)
    assert float(shares[1]) == pytest.approx(1 / 3)


def test_excess_mtl_adds_up_half_precision() -> None:
    """300 squares of 1 are 300; bfloat16 has no 257 and would stay at 256."""
    weighting = create("excess-mtl")
    rows = torch.eye(2, dtype=torch.bfloat16)
    for _ in range(300):
        combined, _ = weighting.combine(rows)
    assert combined.dtype == torch.bfloat16
    assert weighting.state_dict()["squares"].tolist() == [[300.0, 0.0], [0.0, 300.0]]


def test_excess_mtl_needs_the_same_entries() -> None:
    weighting = create("excess-mtl")
    weighting.combine(torch.ones(2, 6))
    with pytest.raises(ValueError, match="same 6 entries in every step, found 4"):
        weighting.combine(torch.ones(2, 4))
    with pytest.raises(ValueError, match="call combine"):
        weigh(weighting, torch.eye(2))
