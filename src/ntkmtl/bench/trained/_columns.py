"""Predictions as columns and as arrays, and writing them to files."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from ntkmtl.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ntkmtl.bench.problems.base import Prediction

__all__ = ["columns_of", "csv_text", "write_arrays"]


def columns_of(
    predictions: Mapping[str, Prediction],
    truth: Mapping[str, Tensor] | None = None,
    ids: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, list[Any]]:
    """Return predictions as the columns of a table, one row per sample.

    A task ``sold`` with classes no and yes has ``sold``, the name of its class; ``sold (true)``
    where labels are known, None where one is missing; ``sold p(no)`` and ``sold p(yes)``. A
    regression task has the first two.

    Args:
        predictions: By task.
        truth: Labels by task.
        ids: Columns to put first.

    Raises:
        ValueError: A prediction is more than a number or a class per sample, as an image is, or
            two columns would have one name.

    Example:
        >>> import torch
        >>> from ntkmtl.bench.problems.base import Prediction
        >>> shares = torch.tensor([[0.25, 0.75]])
        >>> columns_of({"sold": Prediction(torch.tensor([1]), ("no", "yes"), shares)})
        {'sold': ['yes'], 'sold p(no)': [0.25], 'sold p(yes)': [0.75]}
    """
    columns: dict[str, list[Any]] = {}

    def add(name: str, values: Sequence[Any]) -> None:
        if name in columns:
            raise ValueError(f"two columns would be named {name!r}; write -o FILE.npz instead")
        columns[name] = list(values)

    for name, values in (ids or {}).items():
        add(name, values)
    for task, said in predictions.items():
        if said.values.ndim != 1:
            raise ValueError(
                f"each prediction of {task} has shape {tuple(said.values.shape[1:])}, which is no "
                "cell of a table; write -o FILE.npz instead"
            )
        add(task, _cells(said.values, said.classes))
        if truth and task in truth:
            add(f"{task} (true)", _cells(truth[task], said.classes))
        if said.probabilities is not None:
            for place, name in enumerate(said.classes):
                add(f"{task} p({name})", said.probabilities[:, place].tolist())
    return columns


def _cells(values: Tensor, classes: Sequence[str]) -> list[Any]:
    if classes:
        return [None if number < 0 else classes[number] for number in values.tolist()]
    return [None if value != value else value for value in values.tolist()]


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return columns as CSV, numbers with all their digits, None as an empty cell.

    Args:
        columns: Columns of one length, by name.

    Example:
        >>> csv_text({"a": [0.1, None], "b": ["x, y", "z"]}).splitlines()
        ['a,b', '0.1,"x, y"', ',z']
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def write_arrays(
    path: Path,
    predictions: Mapping[str, Prediction],
    truth: Mapping[str, Tensor] | None = None,
    ids: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write predictions as ``.npz`` in one piece.

    A task T has the arrays ``T``, ``T (true)`` where labels are known, and for classification
    ``T (classes)``, the names of the class numbers, and ``T (probabilities)``. Read it with
    ``numpy.load(path, allow_pickle=False)``.

    Args:
        path: The file.
        predictions: By task.
        truth: Labels by task: NaN where missing, -1 for classes.
        ids: Further arrays, by name.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import numpy, tempfile, torch
        >>> from pathlib import Path
        >>> from ntkmtl.bench.problems import Prediction
        >>> path = Path(tempfile.mkdtemp()) / "predicted.npz"
        >>> write_arrays(path, {"price": Prediction(torch.tensor([1.5, 2.0]))})
        >>> numpy.load(path, allow_pickle=False)["price"]
        array([1.5, 2. ], dtype=float32)
    """
    import zipfile

    import numpy as np

    arrays: dict[str, Any] = {
        name: np.asarray(list(values)) for name, values in (ids or {}).items()
    }
    for task, said in predictions.items():
        arrays[task] = said.values.numpy()
        if truth and task in truth:
            arrays[f"{task} (true)"] = truth[task].numpy()
        if said.classes:
            arrays[f"{task} (classes)"] = np.asarray(said.classes)
        if said.probabilities is not None:
            arrays[f"{task} (probabilities)"] = said.probabilities.numpy()
    # Not by numpy.savez, which takes names as keywords: a task may be named `file`.
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
