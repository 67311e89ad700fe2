"""What the scripts of the report draw, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench.report._curves import Curve, learning_curves
from ntkmtl.bench.report._render import printable, render
from ntkmtl.bench.report._series import Series, points_for, series_of
from ntkmtl.bench.report._words import plain_label, plain_method, short
from ntkmtl.bench.runs import folder_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._table import MethodRow, ResultTable, SeedMean


def data_of(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    """Return what the charts of one problem draw, and the table as files to save.

    Raises:
        RunFileError: A history or the steps of a run cannot be read.
    """
    number = {row.method: index for index, row in enumerate(table.rows)}
    multi = [method for method in number if method in runs.multi]
    curves = learning_curves(runs, table)
    tasks = table.facts["tasks"]
    points = points_for(len(multi) * len(tasks))

    def by_number(found: Mapping[str, Curve]) -> dict[int, dict[str, Any]]:
        return {number[method]: _curve(curve) for method, curve in found.items()}

    def lines(found: Mapping[str, Series]) -> dict[int, dict[str, Any]]:
        return {number[method]: _series(series) for method, series in found.items()}

    return {
        "name": folder_name(table.problem),
        "files": {"csv": render(table, "csv"), "tex": render(table, "latex")},
        "methods": [_method(table, row) for row in table.rows],
        "metrics": [
            {
                "label": printable(column.label),
                "unit": printable(column.unit),
                "higher": column.higher_is_better,
            }
            for column in table.columns
        ],
        "plain": plain_label(table.problem),
        "busy": table.facts["busy_runs"],
        "tasks": [printable(task) for task in tasks],
        "validation": by_number(curves.validation),
        "training": by_number(curves.training),
        "weights": lines(series_of(runs, "weights", multi, points)),
        "eigenvalues": lines(series_of(runs, "eigenvalues", multi, points)),
    }


def _method(table: ResultTable, row: MethodRow) -> dict[str, Any]:
    return {
        "name": printable(row.label),
        "baseline": row.is_baseline,
        "plain": row.method == plain_method(table.problem),
        "delta": _pair(row.delta_m),
        "rank": short(row.mean_rank),
        "time": _pair(row.relative_time),
        "seconds": short(row.seconds_per_epoch),
        "seeds": len(row.seeds),
    }


def _pair(known: SeedMean | None) -> list[float | None] | None:
    """Return a mean and its standard error, None where the mean is not known or not finite."""
    if known is None or not math.isfinite(known.mean):
        return None
    return [short(known.mean), short(known.stderr)]


def _columns(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[short(value) for value in column] for column in values.T.tolist()]


def _curve(curve: Curve) -> dict[str, Any]:
    known = bool(np.isfinite(curve.stderr).any())
    seeds = list(curve.seeds.items())
    return {
        "epoch": (curve.epoch + 1).tolist(),
        "mean": _columns(curve.mean),
        "stderr": _columns(curve.stderr) if known else None,
        "seedEpoch": (seeds[0][1][0] + 1).tolist() if seeds else [],
        "seeds": [[seed, _columns(values)] for seed, (_, values) in seeds],
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "step": series.step.round().astype(np.int64).tolist(),
        "values": _columns(series.values),
        "window": short(max(series.window, 1.0)),
    }
