"""The statistics of ``ntkmtl.weigh`` against slow, obvious versions and simulated series."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ntkmtl.watch import _statistics as statistics


def series(seed: int, count: int = 100, rho: float = 0.0, scale: float = 0.3) -> Any:
    """Log weights of three tasks around (1, 0, -1), with autocorrelated noise."""
    rng = np.random.default_rng(seed)
    noise = np.zeros((count, 3))
    noise[0] = rng.normal(size=3)
    for t in range(1, count):
        noise[t] = rho * noise[t - 1] + math.sqrt(1 - rho**2) * rng.normal(size=3)
    return statistics.center(np.array([1.0, 0.0, -1.0]) + scale * noise)


def test_center_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(12, 4))
    logs[rng.random(logs.shape) < 0.3] = np.nan
    logs[:, 0] = rng.normal(size=12)  # a task that is always there joins the others
    rows = []
    values = []
    for t, i in zip(*np.isfinite(logs).nonzero(), strict=True):
        row = np.zeros(16)
        row[i] = row[4 + t] = 1.0
        rows.append(row)
        values.append(logs[t, i])
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    level = solution[:4] - solution[:4].mean()
    offset = solution[4:] + solution[:4].mean()
    found = statistics.center(logs)
    np.testing.assert_allclose(found, logs - offset[:, None], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.nanmean(found, axis=0), level, rtol=1e-9, atol=1e-9)


def test_settled_by_a_loop() -> None:
    for seed in range(20):
        logs = series(seed, scale=1.0)
        end = logs.mean(axis=0)
        last = 0
        for t in range(len(logs)):
            if (np.abs(logs[: t + 1].mean(axis=0) - end) > statistics.NEAR).any():
                last = t + 1
        assert statistics.settled(logs) == last


def test_intervals_by_a_loop() -> None:
    logs = series(3, rho=0.5)
    sums, counts = statistics._blocks(logs)
    assert counts.sum() == logs.size
    np.testing.assert_allclose(sums.sum(axis=0), logs.sum(axis=0))
    rng = np.random.default_rng(1)
    found = []
    for _ in range(4_000):
        chosen = rng.integers(len(sums), size=len(sums))
        mean = sums[chosen].sum(axis=0) / counts[chosen].sum(axis=0)
        found.append(np.exp(mean) / np.exp(mean).mean())
    low, high = statistics.intervals(logs, None)
    # Quantiles of 999 and of 4,000 draws: as near as chance leaves them.
    width = high - low
    assert (np.abs(low - np.quantile(found, 0.025, axis=0)) < 0.1 * width).all()
    assert (np.abs(high - np.quantile(found, 0.975, axis=0)) < 0.1 * width).all()


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_intervals_hold_the_truth(rho: float) -> None:
    truth = statistics.normalize(np.array([1.0, 0.0, -1.0]))
    inside = []
    for seed in range(40):
        low, high = statistics.intervals(series(seed, rho=rho), None)
        inside.append((low <= truth) & (truth <= high))
    # 95 % of 120 with perfect intervals; those of few blocks are somewhat short.
    assert np.mean(inside) > 0.8


def test_blocks_grow_with_autocorrelation() -> None:
    lengths = [statistics.block_length(series(0, count=400, rho=rho)) for rho in (0.0, 0.9)]
    assert lengths[0] < lengths[1]
    assert statistics.block_length(np.zeros((50, 2))) == 4  # the cube root of 50, rounded up


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_one_phase_is_seldom_taken_for_two(rho: float) -> None:
    found = [statistics.switch(series(seed, rho=rho, scale=1.0)) for seed in range(40)]
    # 1 % where looks are independent; blocks leave some of the correlation in.
    assert sum(at is not None for at in found) <= (1 if rho == 0.0 else 4)


def test_two_phases_are_found_where_they_meet() -> None:
    for seed in range(10):
        logs = series(seed, rho=0.3)
        logs[60:] += np.array([1.0, 0.0, -1.0])
        at = statistics.switch(logs)
        assert at is not None
        assert abs(at - 60) <= 3


def test_a_small_change_is_no_second_phase() -> None:
    logs = series(0, scale=0.01)
    logs[50:] += np.array([0.2, 0.0, -0.2])  # plain to see, but less than a half
    assert statistics.switch(logs) is None
