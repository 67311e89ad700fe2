"""Which statistic of the extended NTK makes the best weights? Delta-m of each on ``qm9-mini``.

    python benchmarks/kernel_statistics.py --out runs/statistics --json statistics.json

Every variant is a comparison of its own, ``ntkmtl compare qm9-mini``, in a folder of its own under
``--out``; single-task baselines are trained once. A run that was stopped goes on where it was. The
list below was fixed before any of it was run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ntkmtl.bench.jobs.reporters import PlainReporter
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.training import Comparison, Run, compare, load_runs
from ntkmtl.files import write_json
from ntkmtl.metrics import delta_m

_FROM_FEATURES = {"source": "representation", "pooling": "kernel", "weight_heads": True}
_ALIGNED = {"statistic": "aligned"}
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ntkmtl", "ntkmtl", {}),
    ("ntkmtl, exponent 1", "ntkmtl", {"exponent": 1.0}),
    ("ntkmtl-sr", "ntkmtl-sr", {}),
    ("ntkmtl-tk", "ntkmtl-tk", {}),
    ("nash-mtl", "nash-mtl", {}),
    ("fairgrad", "fairgrad", {}),
    (
        "aligned, alpha 1, from the features",
        "ntkmtl-x",
        {
            "statistic": "aligned",
            "alpha": 1.0,
            "source": "representation",
            "pooling": "kernel",
            "weight_heads": True,
        },
    ),
    (
        "aligned, alpha 2, from the features",
        "ntkmtl-x",
        {
            "statistic": "aligned",
            "alpha": 2.0,
            "source": "representation",
            "pooling": "kernel",
            "weight_heads": True,
        },
    ),
    ("aligned, alpha 2", "ntkmtl-x", {**_ALIGNED, "alpha": 2.0}),
    ("aligned, alpha 1", "ntkmtl-x", {**_ALIGNED, "alpha": 1.0}),
    ("largest eigenvalue, alpha 2", "ntkmtl-x", {"statistic": "max", "alpha": 2.0}),
    ("trace", "ntkmtl-x", {"statistic": "trace", "alpha": 1.0}),
    ("weighted eigenvalue", "ntkmtl-x", {"statistic": "weighted", "alpha": 1.0}),
    # A control, added when the others had been run: is it the statistic, or n?
    ("ntkmtl, 4 mini-batches", "ntkmtl", {"minibatches": 4}),
)
"""Label, method, and its settings."""
CONTROLS = ("ntkmtl", "ntkmtl, 4 mini-batches")
"""What the others are compared with, seed by seed."""


def by_seed(runs: Sequence[Run], method: str) -> dict[int, float]:
    """Return Delta-m in percent of each seed, against the baselines' means, as tables have it.

    Args:
        runs: Runs of one comparison, baselines among them.
        method: Name of the method.
    """
    baseline: dict[str, list[float]] = {}
    for run in runs:
        if run.config.method == SINGLE_TASK:
            for metric, value in zip(run.config.metrics, run.result.test, strict=True):
                baseline.setdefault(metric.name, []).append(value)
    found = {}
    for run in runs:
        if run.config.method == method:
            metrics = run.config.metrics
            known = [statistics.fmean(baseline[m.name]) for m in metrics]
            higher = [m.higher_is_better for m in metrics]
            found[run.config.seed] = float(delta_m(run.result.test, known, higher))
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def less(row: Mapping[str, Any], control: Mapping[str, Any]) -> tuple[float, float]:
    """Return mean and standard error of the differences to a control, seed by seed."""
    pairs = zip(row["by_seed"], control["by_seed"], strict=True)
    return mean_and_error([mine - other for mine, other in pairs])


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is missing and return one row per variant."""
    rows = []
    for label, method, options in VARIANTS:
        out = Path(arguments.out) / label.replace(", ", "-").replace(" ", "-")
        compare(
            Comparison(
                problem="qm9-mini",
                methods=[method],
                seeds=range(arguments.seeds),
                out=out,
                jobs=arguments.jobs,
                method_options={method: options} if options else {},
                epochs=arguments.epochs,
            ),
            reporter=PlainReporter(),
        )
        found = by_seed(load_runs(out)[0], method)
        values = [found[seed] for seed in range(arguments.seeds)]
        mean, error = mean_and_error(values)
        rows.append(
            {
                "label": label,
                "method": method,
                "options": options,
                "delta_m": mean,
                "standard_error": error,
                "seeds": len(values),
                "by_seed": values,
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, best first."""
    controls = [row for label in CONTROLS for row in rows if row["label"] == label]
    heads = ["weights from", "Δm %", "standard error"]
    heads += [f"less {control['label']}, seed by seed" for control in controls]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in sorted(rows, key=lambda row: float(row["delta_m"])):
        cells = [row["label"], f"{row['delta_m']:.2f}", f"{row['standard_error']:.2f}"]
        for control in controls:
            mean, error = less(row, control)
            cells.append("" if row is control else f"{mean:.2f} ± {error:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Delta-m of weights from other statistics.")
    parser.add_argument("--out", default="runs/statistics", help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2 for a standard error, found {arguments.seeds}")
    rows = run(arguments)
    print(markdown(rows))
    if arguments.json:
        write_json(Path(arguments.json), {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
