"""Weights and eigenvalues of the tasks over training, averaged over seeds and thinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ntkmtl.bench.report._runs import ProblemRuns

_BUDGET = 60_000
"""Numbers that one kind of chart may embed in a page."""

_MOST_POINTS, _LEAST_POINTS = 240, 24


@dataclass(frozen=True)
class Series:
    """A quantity of each task over training, averaged over seeds and windows of steps.

    Attributes:
        step: Centres of the windows, float64 of shape (P,).
        values: float64 of shape (P, k), NaN for windows in which nothing was recorded.
        window: Steps per window.
    """

    step: NDArray[np.float64]
    values: NDArray[np.float64]
    window: float


def points_for(curves: int) -> int:
    """Return how many points each of so many curves may have.

    Example:
        >>> points_for(11), points_for(20 * 11), points_for(30 * 40)
        (240, 240, 50)
    """
    return min(max(_BUDGET // max(curves, 1), _LEAST_POINTS), _MOST_POINTS)


def series_of(
    runs: ProblemRuns,
    quantity: Literal["weights", "eigenvalues"],
    methods: Sequence[str],
    most_points: int,
) -> dict[str, Series]:
    """Return the tasks' weights or largest eigenvalues over training, by method that has them.

    Raises:
        RunFileError: The steps of a run cannot be read.
    """
    found = {}
    for method in methods:
        pairs = [
            (run.steps.step, values)
            for run in runs.multi[method].values()
            if (values := getattr(run.steps, quantity)) is not None and len(values)
        ]
        if pairs and (series := _series(pairs, most_points)) is not None:
            found[method] = series
    return found


def _series(
    pairs: Sequence[tuple[NDArray[np.int64], NDArray[Any]]], most_points: int
) -> Series | None:
    first = min(int(step.min()) for step, _ in pairs)
    last = max(int(step.max()) for step, _ in pairs)
    recorded = max(len(step) for step, _ in pairs)
    points = min(recorded, most_points)
    # Windows are centred on records, so that with a window per record each holds one.
    window = (last - first) / (points - 1) if points > 1 and last > first else 1.0
    k = pairs[0][1].shape[1]
    total = np.zeros((points, k))
    count = np.zeros((points, k))
    for step, values in pairs:
        at = np.clip(np.floor((step - first) / window + 0.5).astype(np.int64), 0, points - 1)
        present = np.isfinite(values)
        kept = np.where(present, values, 0).astype(np.float64)
        for task in range(k):
            total[:, task] += np.bincount(at, kept[:, task], minlength=points)
            count[:, task] += np.bincount(at, present[:, task], minlength=points)
    if not count.any():
        return None
    with np.errstate(invalid="ignore"):
        means = np.where(count > 0, total / count, np.nan)
    filled = (count > 0).any(axis=1)
    centres = first + window * np.arange(points, dtype=np.float64)
    return Series(centres[filled], means[filled], window)
