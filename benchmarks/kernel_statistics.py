"""Which statistic of the extended NTK makes the best weights? Delta-m of each on ``qm9-mini``.

    python benchmarks/kernel_statistics.py --out runs/statistics --json statistics.json

Every variant is a comparison of its own, ``ntkmtl compare qm9-mini``, in a folder of its own under
``--out``; single-task baselines are trained once. A run that was stopped goes on where it was. The
list below was fixed before any of it was run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ntkmtl.files import write_json
from ntkmtl.report import build_table
from ntkmtl.training import Comparison, compare
from ntkmtl.training.reporters import PlainReporter

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
    ("trace", "ntkmtl-x", {"statistic": "trace"}),
    ("weighted eigenvalue", "ntkmtl-x", {"statistic": "weighted"}),
    # A control, added when the others had been run: is it the statistic, or n?
    ("ntkmtl, 4 mini-batches", "ntkmtl", {"minibatches": 4}),
)
"""Label, method, and its settings."""


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
        row = build_table(out).row(method)
        assert row.delta_m is not None
        rows.append(
            {
                "label": label,
                "method": method,
                "options": options,
                "delta_m": row.delta_m.mean,
                "standard_error": row.delta_m.stderr,
                "seeds": row.delta_m.count,
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table, best first."""
    lines = ["| weights from | Delta-m % | standard error |", "| --- | ---: | ---: |"]
    lines += [
        f"| {row['label']} | {row['delta_m']:.2f} | {row['standard_error']:.2f} |"
        for row in sorted(rows, key=lambda row: row["delta_m"])
    ]
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
