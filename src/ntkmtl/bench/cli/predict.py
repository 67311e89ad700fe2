"""``ntkmtl predict``: use the trained network of a run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from ntkmtl.bench.cli.console import print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import (
    Json,
    find_modules_here,
    grouped,
    option,
)
from ntkmtl.bench.cli.outputs import check_kept, refuse_loss
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from ntkmtl.bench.problems.base import Prediction
    from ntkmtl.bench.trained import TrainedModel


class SplitName(str, Enum):
    """A split of a problem."""

    train = "train"
    val = "val"
    test = "test"


@dataclass(frozen=True)
class PredictOptions:
    """What is predicted, and where it goes."""

    split: SplitName | None = option("Predict the samples of a split.", show_default=False)
    csv: Path | None = option("For table: predict the rows of a new file.", metavar="FILE")
    output: Path | None = option(
        "Where to write: .csv, or .npz, which holds images too.",
        "--output",
        "-o",
        metavar="FILE",
        show_default="CSV on standard output",
    )
    export: Path | None = option(
        "Write the network by torch.export instead of predicting.",
        metavar="FILE.pt2",
        show_default=False,
    )
    problem: str | None = option(
        "The run's problem if it is your own, whose code is run: module.path:ClassName "
        "or path/file.py:ClassName.",
        metavar="PROBLEM",
    )

    def check(self) -> None:
        """Refuse options that do not go together."""
        output, csv = self.output, self.csv
        if [self.split, csv, self.export].count(None) != 2:
            refuse(
                "say one of --split test; --csv FILE, for a run of the problem table; and --export "
                "FILE"
            )
        if output is not None and output.suffix not in (".csv", ".npz"):
            refuse(f"-o must end in .csv or .npz, found {output}")
        if output is not None and self.export is not None:
            refuse("-o is for predictions; --export FILE.pt2 names its own file")
        for path in self.written:
            check_kept(path, b"" if self.export is None else b"pk")
            refuse_loss(path, [csv])

    @property
    def written(self) -> list[Path]:
        """The files that are written."""
        return [path for path in (self.output, self.export) if path is not None]


@grouped
def predict(
    run: Annotated[
        Path, Argument(metavar="RUN", help="A run's folder, as runs/table/ntkmtl/seed-0.")
    ],
    *,
    asked: PredictOptions,
    as_json: Json = False,
) -> None:
    """Predict with the trained network of a run, in the units that people know.

    A task has a column of its name, one with its true values where they are known, and for classes
    one probability each.
    """
    asked.check()
    if asked.problem is not None:
        find_modules_here(asked.problem)
    with refusing(ValueError):
        from ntkmtl.bench.problems import ProblemNotFoundError
        from ntkmtl.bench.trained import load

        try:
            with warnings.catch_warnings(record=True) as told:
                network = load(run, asked.problem, with_data=asked.csv is None)
            for warning in told:
                say(f"Warning: {warning.message}")
        except ProblemNotFoundError as error:
            if asked.export is None:
                raise
            why = "--export tries the network on two batches, so it needs the data of the run"
            refuse(f"{error}. {why}: put them back")
        for path in asked.written:
            refuse_loss(path, (network.run.config.created_with or {}).values())
        if asked.export is not None:
            network.export(asked.export)
            say(f"Exported: {asked.export}")
            if as_json:
                print_json({"run": str(network.run.path), "exported": str(asked.export)})
        elif asked.csv is not None:
            _predict_file(network, asked.csv, asked.output, as_json)
        elif asked.split is not None:
            _predict_split(network, asked.split.value, asked.output, as_json)


def _predict_split(network: TrainedModel, split: str, out: Path | None, as_json: bool) -> None:
    predictions, truth = network.predict(split), network.truth(split)
    rows = range(len(next(iter(predictions.values())).values))
    told = getattr(network.problem, "row_ids", None)
    ids: dict[str, Sequence[Any]] = told(split) if callable(told) else {}
    if "row" not in {*predictions, *ids}:
        ids = {"row": rows, **ids}
    _show(predictions, truth, ids, out, as_json, {"run": str(network.run.path), "split": split})


def _predict_file(network: TrainedModel, csv: Path, out: Path | None, as_json: bool) -> None:
    new = network.encode(csv)
    for warning in new.warnings:
        say(f"Warning: {warning}")
    about = {"run": str(network.run.path), "csv": str(csv), "warnings": list(new.warnings)}
    _show(network.predict(new.inputs), {}, new.ids, out, as_json, about)


def _show(
    predictions: Mapping[str, Prediction],
    truth: Mapping[str, Tensor],
    ids: Mapping[str, Sequence[Any]],
    out: Path | None,
    as_json: bool,
    about: Mapping[str, Any],
) -> None:
    from ntkmtl.bench.trained import columns_of, csv_text, write_arrays

    count = len(next(iter(predictions.values())).values)
    if out is not None and out.suffix == ".npz":
        write_arrays(out, predictions, truth, ids)
    elif out is not None:
        write_text(out, csv_text(columns_of(predictions, truth, ids)))
    elif not as_json:
        sys.stdout.write(csv_text(columns_of(predictions, truth, ids)))
    if as_json:
        found = {**about, "rows": count, "out": None if out is None else str(out)}
        if out is None:
            found["columns"] = columns_of(predictions, truth, ids)
        print_json(found)
    elif out is not None:
        say(f"Predictions: {out} ({count:,} rows, {', '.join(predictions)})")
