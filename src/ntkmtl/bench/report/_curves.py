"""Lines over training: learning curves, and the tasks' weights and eigenvalues, thinned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.report._runs import ProblemRuns
from ntkmtl.bench.report._table import ResultTable
from ntkmtl.bench.runs import Run
from ntkmtl.files import read_bytes

_BUDGET = 60_000
"""Numbers that one kind of chart may embed in a page."""

_MOST_POINTS, _LEAST_POINTS = 240, 24

_MOST_SEEDS = 8
"""Seeds whose curves a page holds one by one; means are over all."""


def points_for(curves: int) -> int:
    """Return how many points each of so many curves may have.

    Example:
        >>> points_for(11), points_for(20 * 11), points_for(30 * 40)
        (240, 240, 50)
    """
    return min(max(_BUDGET // max(curves, 1), _LEAST_POINTS), _MOST_POINTS)


def short(value: float | None) -> float | None:
    """Return a number with as many digits as a chart can show, None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def columns_of(values: NDArray[np.float64]) -> list[list[float | None]]:
    """Return the columns of a matrix as JSON values for a chart."""
    return [[short(value) for value in column] for column in values.T.tolist()]


# ------------------------------------------------------------------------------------------------
# Learning curves


def learning_curves(runs: ProblemRuns, table: ResultTable) -> dict[str, dict[int, Any]]:
    """Return the learning curves of every method, STL among them, as JSON values.

    Returns:
        ``validation``, of the metrics on the validation split, and ``training``, of the tasks' mean
        training losses: a curve by the method's place in the table. Methods without any epoch are
        left out.

    Raises:
        RunFileError: A history cannot be read.
    """
    metrics = [column.name for column in table.columns]
    tasks, rows = table.facts["tasks"], len(table.rows)
    validation, training = {}, {}
    for place, row in enumerate(table.rows):
        groups = list(runs.single.values()) if row.is_baseline else [runs.multi.get(row.method, {})]
        found = [(run.config, *_history(run)) for group in groups for run in group.values()]
        if not any(len(epoch) for _, epoch, _, _ in found):
            continue
        vals = [(c.seed, epoch, val, [m.name for m in c.metrics]) for c, epoch, val, _ in found]
        validation[place] = _curve(vals, metrics, rows)
        losses = [(c.seed, epoch, values, c.tasks) for c, epoch, _, values in found]
        training[place] = _curve(losses, tasks, rows)
    return {"validation": validation, "training": training}


def _curve(
    found: Sequence[tuple[int, NDArray[np.int64], NDArray[np.float64], Sequence[str]]],
    names: Sequence[str],
    rows: int,
) -> dict[str, Any]:
    """Return the curves of one method, a column for each name.

    Args:
        found: By run its seed, its epochs, and values with a row for each epoch and a column for
            each of the names that it has.
        names: Names of the columns.
        rows: Number of methods on the page.
    """
    epochs = np.unique(np.concatenate([epoch for _, epoch, _, _ in found]))
    seeds = sorted({seed for seed, *_ in found})
    values = np.full((len(seeds), len(epochs), len(names)), np.nan)
    for seed, epoch, own, own_names in found:
        at = np.searchsorted(epochs, epoch)
        for column, name in enumerate(own_names):
            # A baseline's run holds only the values of its own task.
            if name in names:
                values[seeds.index(seed), at, names.index(name)] = own[:, column]
    known = np.ma.masked_invalid(values)
    with np.errstate(all="ignore"):
        stderr = (known.std(axis=0, ddof=1) / np.sqrt(known.count(axis=0))).filled(np.nan)
        mean = known.mean(axis=0).filled(np.nan)
    # A mean and its error are two numbers per point.
    kept = _thinned(len(epochs), points_for(2 * rows * len(names)))
    shown = seeds[:_MOST_SEEDS] if len(seeds) > 1 else []
    few = _thinned(len(epochs), points_for(2 * rows * len(names) * max(len(shown), 1)))
    return {
        "epoch": (epochs[kept] + 1).tolist(),
        "mean": columns_of(mean[kept]),
        "stderr": columns_of(stderr[kept]) if np.isfinite(stderr[kept]).any() else None,
        "seedEpoch": (epochs[few] + 1).tolist() if shown else [],
        "seeds": [[seed, columns_of(values[at][few])] for at, seed in enumerate(shown)],
    }


def _thinned(count: int, most: int) -> NDArray[np.int64]:
    """Return places of at most so many entries, the first and the last among them."""
    return np.array(np.linspace(0, count - 1, min(count, most)).round(), dtype=np.int64)


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


# ------------------------------------------------------------------------------------------------
# Weights and eigenvalues


@dataclass(frozen=True)
class Series:
    """A quantity of each task over training, averaged over seeds and windows of steps.

    Attributes:
        step: Centers of the windows, float64 of shape (P,).
        values: float64 of shape (P, k), NaN for windows in which nothing was recorded.
        window: Steps per window.
    """

    step: NDArray[np.float64]
    values: NDArray[np.float64]
    window: float


def task_lines(runs: ProblemRuns, table: ResultTable) -> dict[str, dict[int, Any]]:
    """Return the tasks' weights and largest eigenvalues over training as JSON values.

    Returns:
        ``weights`` and ``eigenvalues``: lines by the method's place in the table.

    Raises:
        RunFileError: The steps of a run cannot be read.
    """
    place = {row.method: index for index, row in enumerate(table.rows)}
    multi = [method for method in place if method in runs.multi]
    points = points_for(len(multi) * len(table.facts["tasks"]))
    return {
        quantity: {
            place[method]: {
                "step": series.step.round().astype(np.int64).tolist(),
                "values": columns_of(series.values),
                "window": short(max(series.window, 1.0)),
            }
            for method, series in series_of(runs, quantity, multi, points).items()
        }
        for quantity in ("weights", "eigenvalues")
    }


def series_of(
    runs: ProblemRuns,
    quantity: str,
    methods: Sequence[str],
    most_points: int,
) -> dict[str, Series]:
    """Return the tasks' weights or largest eigenvalues over training, by method that has them.

    Args:
        runs: The runs.
        quantity: ``"weights"`` or ``"eigenvalues"``.
        methods: The methods.
        most_points: Most windows of steps.

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
    # Windows are centered on records, so that with a window per record each holds one.
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
    centers = first + window * np.arange(points, dtype=np.float64)
    return Series(centers[filled], means[filled], window)
