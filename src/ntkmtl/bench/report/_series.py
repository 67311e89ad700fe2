"""What charts draw: learning curves, weights and eigenvalues, averaged over seeds and thinned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._table import ResultTable
    from ntkmtl.bench.runs import Run, Steps

__all__ = ["Curve", "Series", "eigenvalues", "learning_curves", "points_for", "weights"]

_BUDGET = 60_000
"""Numbers that one kind of chart may embed in a page."""

_MOST_POINTS, _LEAST_POINTS = 240, 24


@dataclass(frozen=True)
class Curve:
    """Learning curves of one method.

    Attributes:
        epoch: int64 of shape (E,).
        mean: Mean over seeds of the validation metrics, float64 of shape (E, metrics). NaN where
            nothing was measured.
        stderr: Standard error of the mean, of the same shape; NaN where there is one seed.
    """

    epoch: NDArray[np.int64]
    mean: NDArray[np.float64]
    stderr: NDArray[np.float64]


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


def learning_curves(runs: ProblemRuns, table: ResultTable, most_points: int) -> dict[str, Curve]:
    """Return the learning curves of every method, STL among them.

    Args:
        runs: The problem's runs.
        table: Their table, which gives the metrics and the order of the methods.
        most_points: Epochs after which curves are thinned; the first and the last are kept.

    Returns:
        Curves by method; methods whose runs hold no epoch are left out.

    Raises:
        RunFileError: A history cannot be read.
    """
    names = [column.name for column in table.columns]
    found = {}
    for row in table.rows:
        groups = runs.single.values() if row.is_baseline else [runs.multi[row.method]]
        curve = _curve([run for group in groups for run in group.values()], names, most_points)
        if curve is not None:
            found[row.method] = curve
    return found


def _curve(group: Sequence[Run], names: Sequence[str], most_points: int) -> Curve | None:
    found = [(run, *_validation(run)) for run in group]
    numbers = np.unique(np.concatenate([epoch for _, epoch, _ in found]))
    if not len(numbers):
        return None
    if len(numbers) > most_points:
        numbers = numbers[np.linspace(0, len(numbers) - 1, most_points).round().astype(int)]
    seeds = {seed: at for at, seed in enumerate(sorted({run.config.seed for run in group}))}
    values = np.full((len(seeds), len(numbers), len(names)), np.nan)
    for run, epoch, val in found:
        at = np.searchsorted(numbers, epoch).clip(max=len(numbers) - 1)
        kept = numbers[at] == epoch
        for column, metric in enumerate(run.config.metrics):
            # A baseline's run reports only the metrics of its own task.
            if metric.name in names:
                target = names.index(metric.name)
                values[seeds[run.config.seed], at[kept], target] = val[kept, column]
    mean, stderr = _mean_and_stderr(values)
    return Curve(numbers, mean, stderr)


def _validation(run: Run) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the epochs of a run, shape (E,), and their validation metrics, shape (E, metrics).

    Raises:
        RunFileError: The history cannot be read.
    """
    width = len(run.config.metrics)
    # Checking each key of each epoch takes most of the time with a thousand runs. What is needed
    # here is checked at once, and a file that is not in order is left to the strict reader.
    try:
        entries = json.loads((run.path / "history.json").read_bytes())["epochs"]
        epoch = np.array([entry["epoch"] for entry in entries], dtype=np.int64)
        val = np.array([entry["val"] for entry in entries], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    else:
        if val.shape == (len(epoch), width) and np.isfinite(val).all():
            return epoch, val
    history = run.history
    return (
        np.array([entry.epoch for entry in history], dtype=np.int64),
        np.array([entry.val for entry in history], dtype=np.float64).reshape(-1, width),
    )


def _mean_and_stderr(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard error along axis 0, leaving out what is NaN."""
    present = np.isfinite(values)
    count = present.sum(axis=0)
    with np.errstate(all="ignore"):
        mean = np.where(present, values, 0).sum(axis=0) / count
        squares = np.where(present, values - mean, 0) ** 2
        stderr = np.sqrt(squares.sum(axis=0) / (count - 1) / count)
    return np.where(count > 0, mean, np.nan), np.where(count > 1, stderr, np.nan)


def weights(runs: ProblemRuns, methods: Sequence[str], most_points: int) -> dict[str, Series]:
    """Return the tasks' weights over training, by method.

    Args:
        runs: The problem's runs.
        methods: The multi-task methods to read.
        most_points: Windows per curve.

    Raises:
        RunFileError: The steps of a run cannot be read.
    """
    return dict(_all_series(runs.multi, methods, most_points, lambda steps: steps.weights))


def eigenvalues(runs: ProblemRuns, methods: Sequence[str], most_points: int) -> dict[str, Series]:
    """Return the tasks' largest eigenvalues over training, for the methods that have them.

    Arguments and errors are those of :func:`weights`.
    """
    return dict(_all_series(runs.multi, methods, most_points, lambda steps: steps.eigenvalues))


def _all_series(
    multi: Mapping[str, Mapping[int, Run]],
    methods: Sequence[str],
    most_points: int,
    read: Callable[[Steps], NDArray[Any] | None],
) -> Iterator[tuple[str, Series]]:
    for method in methods:
        pairs = [
            (run.steps.step, values)
            for run in multi[method].values()
            if (values := read(run.steps)) is not None and len(values)
        ]
        if pairs and (series := _series(pairs, most_points)) is not None:
            yield method, series


def _series(
    pairs: Sequence[tuple[NDArray[np.int64], NDArray[Any]]], most_points: int
) -> Series | None:
    first = min(int(step.min()) for step, _ in pairs)
    last = max(int(step.max()) for step, _ in pairs)
    recorded = max(len(step) for step, _ in pairs)
    points = min(recorded, most_points)
    # Windows are centred on what was recorded, so that as many windows as rows hold one row each.
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
