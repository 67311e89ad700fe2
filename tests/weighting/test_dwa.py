"""dwa: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import torch
from torchjd import scalarization

from ntkmtl.weighting import create
from weighting.by_hand import (
    EXACT,
    slopes,
    tensor,
)


def test_dwa() -> None:
    # Epoch means: task 0: 4, 2; task 1: 1, 1. r = (0.5, 1); T = 2.
    # w = 2 exp(r / 2) / (exp(1/4) + exp(1/2)).
    weighting = create("dwa")
    for epoch in ([(5.0, 0.5), (3.0, 1.5)], [(1.0, 1.0), (3.0, 1.0)]):
        for losses in epoch:
            assert weighting(losses=tensor(*losses)).tolist() == [1.0, 1.0]
        weighting.end_epoch()
    total = math.exp(0.25) + math.exp(0.5)
    expected = tensor(2 * math.exp(0.25) / total, 2 * math.exp(0.5) / total)
    torch.testing.assert_close(weighting(losses=tensor(7.0, 8.0)), expected, **EXACT)


def test_dwa_equals_torchjd() -> None:
    ours, theirs = create("dwa", temperature=1.5), scalarization.DWA(temperature=1.5)
    for _ in range(5):
        for _ in range(3):
            losses = torch.rand(4, dtype=torch.float64) + 0.1
            expected = slopes(theirs, losses)
            torch.testing.assert_close(ours(losses=losses), expected, **EXACT)
        ours.end_epoch()
        theirs.step()


def test_dwa_task_without_labels_for_an_epoch_keeps_its_mean() -> None:
    weighting = create("dwa")
    weighting.prepare(2, torch.device("cpu"))
    both, first = torch.tensor([0, 1]), torch.tensor([0])
    weighting(losses=tensor(4.0, 3.0), tasks=both)
    weighting.end_epoch()
    weighting(losses=tensor(2.0), tasks=first)
    weighting.end_epoch()
    # r = (2 / 4, 3 / 3).
    expected = 2 * torch.softmax(tensor(0.25, 0.5), dim=0)
    torch.testing.assert_close(weighting(losses=tensor(1.0, 1.0), tasks=both), expected, **EXACT)
