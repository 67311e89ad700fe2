"""``ntkmtl predict``: use the trained network of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ntkmtl.bench.cli.console import print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import Json, find_modules_here
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


RunFolderName = Annotated[
    Path,
    Argument(metavar="RUN", help="A run's folder, as runs/table/ntkmtl/seed-0."),
]
Split = Annotated[
    SplitName | None,
    Option("--split", help="Predict the samples of a split.", show_default=False),
]
NewFile = Annotated[
    Path | None,
    Option("--csv", metavar="FILE", help="For table: predict the rows of a new file."),
]
Output = Annotated[
    Path | None,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write: .csv, or .npz, which holds images too.",
        show_default="CSV on standard output",
    ),
]
Exported = Annotated[
    Path | None,
    Option(
        "--export",
        metavar="FILE.pt2",
        help="Write the network by torch.export instead of predicting.",
        show_default=False,
    ),
]
OwnProblem = Annotated[
    str | None,
    Option(
        "--problem",
        metavar="PROBLEM",
        help="The run's problem if it is your own, whose code is run: module.path:ClassName "
        "or path/file.py:ClassName.",
    ),
]


def predict(
    run: RunFolderName,
    split: Split = None,
    csv: NewFile = None,
    output: Output = None,
    export: Exported = None,
    problem: OwnProblem = None,
    as_json: Json = False,
) -> None:
    """Predict with the trained network of a run, in the units that people know.

    A task has a column of its name, one with its true values where they are known, and for classes
    one probability each.
    """
    if [split, csv, export].count(None) != 2:
        refuse(
            "say one of --split test; --csv FILE, for a run of the problem table; and --export FILE"
        )
    if output is not None and output.suffix not in (".csv", ".npz"):
        refuse(f"-o must end in .csv or .npz, found {output}")
    if output is not None and export is not None:
        refuse("-o is for predictions; --export FILE.pt2 names its own file")
    if output is not None and csv is not None and _same_file(output, csv):
        refuse(f"-o {output} is the file to predict, which would be lost: give another name")
    if problem is not None:
        find_modules_here(problem)
    with refusing(ValueError):
        from ntkmtl.bench.trained import load

        network = load(run, problem, with_data=csv is None)
        if export is not None:
            network.export(export)
            say(f"Exported: {export}")
            if as_json:
                print_json({"run": str(network.run.path), "exported": str(export)})
        elif csv is not None:
            _predict_file(network, csv, output, as_json)
        elif split is not None:
            _predict_split(network, split.value, output, as_json)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _predict_split(network: TrainedModel, split: str, out: Path | None, as_json: bool) -> None:
    predictions, truth = network.predict(split), network.truth(split)
    rows = range(len(next(iter(predictions.values())).values))
    ids = {} if "row" in predictions else {"row": rows}
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
