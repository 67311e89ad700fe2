"""Learning curves: means over seeds and single seeds by epoch, thinned."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntkmtl.bench.report._series import points_for
from ntkmtl.files import read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._table import ResultTable
    from ntkmtl.bench.runs import Run

_MOST_SEEDS = 8
"""Seeds whose curves a page holds one by one; means are over all."""


@dataclass(frozen=True)
class Curve:
    """Curves of one method: one column per metric, or per task.

    Attributes:
        epoch: int64 of shape (E,).
        mean: Mean over seeds, float64 of shape (E, columns). NaN where nothing was measured.
        stderr: Standard error of the mean, of the same shape; NaN where there is one seed.
        seeds: The first few seeds one by one: their epochs, and values as in ``mean``. Empty where
            there is one seed.
    """

    epoch: NDArray[np.int64]
    mean: NDArray[np.float64]
    stderr: NDArray[np.float64]
    seeds: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]]


@dataclass(frozen=True)
class LearningCurves:
    """The learning curves of a comparison, by method; methods without any epoch are left out.

    Attributes:
        validation: Of the metrics on the validation split.
        training: Of the tasks' mean training losses.
    """

    validation: Mapping[str, Curve]
    training: Mapping[str, Curve]


def learning_curves(runs: ProblemRuns, table: ResultTable) -> LearningCurves:
    """Return the learning curves of every method, STL among them.

    Raises:
        RunFileError: A history cannot be read.
    """
    metrics = [column.name for column in table.columns]
    tasks = table.facts["tasks"]
    validation, training = {}, {}
    for row in table.rows:
        groups = list(runs.single.values()) if row.is_baseline else [runs.multi.get(row.method, {})]
        group = [run for by_seed in groups for run in by_seed.values()]
        found = [(run, *_history(run)) for run in group]
        if not any(len(epoch) for _, epoch, _, _ in found):
            continue
        named = [
            _Values(run.config.seed, epoch, val, [m.name for m in run.config.metrics])
            for run, epoch, val, _ in found
        ]
        validation[row.method] = _curve(named, metrics, len(table.rows))
        named = [
            _Values(run.config.seed, epoch, losses, run.config.tasks)
            for run, epoch, _, losses in found
        ]
        training[row.method] = _curve(named, tasks, len(table.rows))
    return LearningCurves(validation, training)


@dataclass(frozen=True)
class _Values:
    """Values of one run: one row per epoch, one column per name."""

    seed: int
    epoch: NDArray[np.int64]
    values: NDArray[np.float64]
    names: Sequence[str]


def _curve(found: Sequence[_Values], names: Sequence[str], rows: int) -> Curve:
    numbers = np.unique(np.concatenate([each.epoch for each in found]))
    seeds = sorted({each.seed for each in found})
    values = np.full((len(seeds), len(numbers), len(names)), np.nan)
    for each in found:
        at = np.searchsorted(numbers, each.epoch)
        for column, name in enumerate(each.names):
            # A baseline's run holds only the values of its own task.
            if name in names:
                values[seeds.index(each.seed), at, names.index(name)] = each.values[:, column]
    mean, stderr = _mean_and_stderr(values)
    # A mean and its error are two numbers per point.
    kept = _thinned(len(numbers), points_for(2 * rows * len(names)))
    shown = seeds[:_MOST_SEEDS] if len(seeds) > 1 else []
    few = _thinned(len(numbers), points_for(2 * rows * len(names) * max(len(shown), 1)))
    return Curve(
        numbers[kept],
        mean[kept],
        stderr[kept],
        {seed: (numbers[few], values[at][few]) for at, seed in enumerate(shown)},
    )


def _thinned(count: int, most: int) -> NDArray[np.int64]:
    """Return places of at most so many entries, the first and the last among them."""
    if count <= most:
        return np.arange(count)
    return np.array(np.linspace(0, count - 1, most).round(), dtype=np.int64)


def _history(run: Run) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs (E,), validation metrics (E, metrics) and training losses (E, tasks)."""
    width, k = len(run.config.metrics), len(run.config.tasks)
    # Checking each key of each epoch takes most of the time with a thousand runs. What is needed
    # here is checked at once, and a file that is not in order is left to the strict reader.
    try:
        entries = json.loads(read_bytes(run.path / "history.json"))["epochs"]
        epoch = np.array([entry["epoch"] for entry in entries], dtype=np.int64)
        val = np.array([entry["val"] for entry in entries], dtype=np.float64)
        losses = np.array([entry["train_losses"] for entry in entries], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    else:
        shapes = val.shape, losses.shape
        if shapes == ((len(epoch), width), (len(epoch), k)) and np.isfinite(val).all():
            return epoch, val, losses
    history = run.history
    return (
        np.array([entry.epoch for entry in history], dtype=np.int64),
        np.array([entry.val for entry in history], dtype=np.float64).reshape(-1, width),
        np.array([entry.train_losses for entry in history], dtype=np.float64).reshape(-1, k),
    )


def _mean_and_stderr(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard error along axis 0, leaving out what is NaN."""
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        # Where nothing, or one number only, is known.
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(values, axis=0)
        stderr = np.nanstd(values, axis=0, ddof=1) / np.sqrt(np.isfinite(values).sum(axis=0))
    return mean, stderr
