"""Ten real tables from Python packages: a shared network beside the mean, ridge and a forest.

Needs scikit-learn, statsmodels, vega_datasets and plotly, which ship the tables. Prints the table
of ``docs/problems/table.md``, and writes its numbers::

    OMP_NUM_THREADS=1 python benchmarks/tables.py --splits 5 --json docs/problems/tables.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ntkmtl.bench import problems
from ntkmtl.bench.training.trainer import train
from ntkmtl.files import write_json

DOCS = Path(__file__).parents[1] / "docs" / "problems" / "tables.json"
MOST = 0.02
"""Share by which a target may be worse than the mean predictor, beside a standard error."""


class Source(NamedTuple):
    """A table that a package ships.

    Attributes:
        package: The package.
        read: Returns the table.
        targets: Columns to predict.
        options: Further options of the problem.
    """

    package: str
    read: Callable[[], pd.DataFrame]
    targets: tuple[str, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def _sklearn(name: str) -> Callable[[], pd.DataFrame]:
    def read() -> pd.DataFrame:
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")(as_frame=True).frame

    return read


def _statsmodels(name: str) -> Callable[[], pd.DataFrame]:
    def read() -> pd.DataFrame:
        import statsmodels.api as sm

        return getattr(sm.datasets, name).load_pandas().data

    return read


def _vega(name: str) -> Callable[[], pd.DataFrame]:
    def read() -> pd.DataFrame:
        from vega_datasets import local_data

        return getattr(local_data, name)()

    return read


def _plotly(name: str) -> Callable[[], pd.DataFrame]:
    def read() -> pd.DataFrame:
        import plotly.express as px

        return getattr(px.data, name)()

    return read


TABLES = {
    "wine": Source("scikit-learn", _sklearn("wine"), ("alcohol", "color_intensity", "hue")),
    "breast-cancer": Source(
        "scikit-learn", _sklearn("breast_cancer"), ("target", "mean smoothness", "worst symmetry")
    ),
    "diabetes": Source("scikit-learn", _sklearn("diabetes"), ("target", "bmi")),
    "affairs": Source("statsmodels", _statsmodels("fair"), ("affairs", "rate_marriage")),
    "election": Source("statsmodels", _statsmodels("anes96"), ("PID", "vote", "income")),
    "schools": Source("statsmodels", _statsmodels("star98"), ("LOWINC", "PTRATIO", "AVYRSEXP")),
    "travel": Source(
        "statsmodels", _statsmodels("modechoice"), ("ttme", "gc"), {"group": "individual"}
    ),
    "cars": Source("vega_datasets", _vega("cars"), ("Miles_per_Gallon", "Acceleration", "Origin")),
    "weather": Source(
        "vega_datasets", _vega("seattle_weather"), ("temp_max", "wind", "precipitation")
    ),
    "gapminder": Source(
        "plotly", _plotly("gapminder"), ("lifeExp", "gdpPercap"), {"types": "iso_num=ignore"}
    ),
}


def measured(
    path: Path, source: Source, method: str, split: int, folder: Path
) -> dict[str, list[float]]:
    """Return the errors of a network, ridge and forest relative to the mean, target by target."""
    problem = problems.create(
        "table", csv=str(path), targets=list(source.targets), split_seed=split, **source.options
    )
    references = problem.references()
    run = train(problem, method, split, folder / f"{path.stem}-{method}-{split}", threads=1)
    found = {"network": list(run.result.test)}
    found |= {name: values.tolist() for name, values in references.items()}
    blank = found["mean"]
    return {
        name: [
            (1 - value) / (1 - base) if metric.higher_is_better else value / base
            for value, base, metric in zip(values, blank, problem.metrics, strict=True)
        ]
        for name, values in found.items()
        if name != "mean"
    } | {"epoch": [float(run.result.epoch or 0), float(problem.recipe.epochs)]}


def pooled(rows: list[dict[str, list[float]]], targets: tuple[str, ...]) -> dict[str, Any]:
    """Return means over splits, and the targets that are worse than the mean predictor."""
    names = ("network", "ridge", "forest")
    errors = {
        name: {target: [row[name][place] for row in rows] for place, target in enumerate(targets)}
        for name in names
    }

    def worse(name: str) -> list[str]:
        return [
            target
            for target, values in errors[name].items()
            if statistics.fmean(values) > 1 + MOST + _stderr(values)
        ]

    means = {
        name: statistics.fmean(statistics.fmean(values) for values in errors[name].values())
        for name in names
    }
    return {
        "means": means,
        "targets": {
            name: {target: statistics.fmean(v) for target, v in errors[name].items()}
            for name in names
        },
        "worse_than_mean": {name: worse(name) for name in names},
    }


def _stderr(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--method", default="ls")
    parser.add_argument("--only", default="", help="names with commas between them")
    parser.add_argument("--json", type=Path, default=None, help=f"usually {DOCS.name}")
    asked = parser.parse_args()
    chosen = asked.only.split(",") if asked.only else list(TABLES)
    found = {}
    begun = time.process_time()
    print("| table (package) | rows | targets | network | ridge | forest | worse than the mean |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            source = TABLES[name]
            frame = source.read()
            path = Path(folder) / f"{name}.csv"
            frame.to_csv(path, index=False)
            rows = [
                measured(path, source, asked.method, split, Path(folder))
                for split in range(asked.splits)
            ]
            found[name] = {"rows": len(frame), **pooled(rows, source.targets)}
            found[name]["epochs"] = [row["epoch"] for row in rows]
            means, worse = found[name]["means"], found[name]["worse_than_mean"]
            said = "; ".join(f"{who}: {', '.join(names)}" for who, names in worse.items() if names)
            numbers = " | ".join(f"{means[who]:.3f}" for who in ("network", "ridge", "forest"))
            print(
                f"| {name} ({source.package}) | {len(frame):,} | {len(source.targets)} | {numbers} "
                f"| {said or 'none'} |",
                flush=True,
            )
    wins = sum(e["means"]["network"] <= e["means"]["ridge"] for e in found.values())
    seconds = time.process_time() - begun
    print(
        f"\nAt or better than ridge on {wins} of {len(found)}; {seconds:.0f} s of processor time."
    )
    if asked.json is not None:
        write_json(
            asked.json,
            {
                "method": asked.method,
                "splits": asked.splits,
                "processor_seconds": round(seconds),
                "at_or_better_than_ridge": wins,
                "tables": json.loads(json.dumps(found)),
            },
        )


if __name__ == "__main__":
    main()
