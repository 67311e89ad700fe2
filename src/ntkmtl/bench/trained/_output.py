"""What leaves a trained network: predictions as columns and arrays, itself by ``torch.export``."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._dates import date_texts
from ntkmtl.bench.problems.base import MultiTaskModel, Prediction, Problem
from ntkmtl.files import atomic_write

__all__ = ["columns_of", "csv_text", "export_program", "write_arrays"]

# ------------------------------------------------------------------------------------------------
# Predictions as columns and as arrays


def columns_of(
    predictions: Mapping[str, Prediction],
    truth: Mapping[str, Tensor] | None = None,
    ids: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, list[Any]]:
    """Return predictions as the columns of a table, one row per sample.

    A task ``sold`` with classes no and yes has ``sold``, the name of its class; ``sold (true)``
    where labels are known, None where one is missing; ``sold p(no)`` and ``sold p(yes)``. A
    regression task has the first two; dates are written as such.

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
    add = partial(_add, columns)
    for name, values in (ids or {}).items():
        add(name, list(values))
    for task, said in predictions.items():
        if said.values.ndim != 1:
            raise ValueError(
                f"each prediction of {task} has shape {tuple(said.values.shape[1:])}, which is "
                "not a cell of a table; write -o FILE.npz instead"
            )
        add(task, _cells(said.values, said))
        if truth and task in truth:
            add(f"{task} (true)", _cells(truth[task], said))
        if said.probabilities is not None:
            for place, name in enumerate(said.classes):
                add(f"{task} p({name})", said.probabilities[:, place].tolist())
    return columns


def _add(found: dict[str, Any], name: str, values: Any) -> None:
    if name in found:
        raise ValueError(
            f"two columns would be named {name!r}, and one would be lost: predict in Python, by "
            "ntkmtl.bench.load(RUN).predict(...), or train again with other names of columns"
        )
    found[name] = values


def _cells(values: Tensor, said: Prediction) -> list[Any]:
    if said.classes:
        return [None if number < 0 else said.classes[number] for number in values.tolist()]
    if said.dates:
        return [text or None for text in date_texts(values.tolist())]
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
        ValueError: Two arrays would have one name.
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
    arrays: dict[str, Any] = {
        name: np.asarray(list(values)) for name, values in (ids or {}).items()
    }
    for task, said in predictions.items():
        _add(arrays, task, said.values.numpy())
        if truth and task in truth:
            _add(arrays, f"{task} (true)", truth[task].numpy())
        if said.classes:
            _add(arrays, f"{task} (classes)", np.asarray(said.classes))
        if said.probabilities is not None:
            _add(arrays, f"{task} (probabilities)", said.probabilities.numpy())
    # Not by numpy.savez, which takes names as keywords: a task may be named `file`.
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


# ------------------------------------------------------------------------------------------------
# The network as a program


SAMPLES = 3, 5
"""Samples of the two batches: dimensions in which the batches differ are dynamic."""

# torch.export has no class of its own for what it cannot do.
_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError, KeyError, AssertionError),
    NotImplementedError,
)


class _Forward(nn.Module):
    """Maps the tensors of a batch that the network reads to predictions by task."""

    def __init__(
        self,
        model: MultiTaskModel,
        problem: Problem,
        tasks: tuple[str, ...] | None,
        batch: Any,
        read: Sequence[int],
    ) -> None:
        super().__init__()
        self.model, self.problem, self.tasks, self.read = model, problem, tasks, read
        self.batch, self.all = batch, list(_tensors(batch).values())

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        whole = list(self.all)
        for place, tensor in zip(self.read, tensors, strict=True):
            whole[place] = tensor
        batch = _with_tensors(self.batch, iter(whole))
        outputs = self.model.predict(self.model.represent(batch))
        said = self.problem.predictions(outputs, self.tasks)
        return {
            task: one.values if one.probabilities is None else one.probabilities
            for task, one in said.items()
        }


def export_program(
    path: Path, model: MultiTaskModel, problem: Problem, tasks: tuple[str, ...] | None
) -> None:
    """Write a network, from batches to predictions, as one ``.pt2`` file.

    Args:
        path: The file.
        model: The network, in evaluation mode.
        problem: Its problem, with its data: two batches of the training split show which tensors
            the network reads and which dimensions vary.
        tasks: The tasks that the network was built for, None for all.

    Raises:
        ValueError: The network cannot be exported, or the exported one computes something else.
        OSError: The file cannot be written.
    """
    first, other = (problem.evaluation_batch("train", torch.arange(n)) for n in SAMPLES)
    try:
        with torch.no_grad():
            read = _read(model, problem, tasks, first)
            whole = _Forward(model, problem, tasks, first, read)
            program = _exported(whole, first, other, read)
            _compare(program, _Forward(model, problem, tasks, other, read), other, read)
    except _ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"this network of {problem.name} cannot be exported by torch.export: {reason}. Use it "
            "in Python instead: ntkmtl.bench.load(RUN).predict(...)"
        ) from error
    predictions = problem.predictions(model.predict(model.represent(first)), tasks)
    names = list(_tensors(first))
    about = {
        "inputs": [names[place] for place in read],
        "tasks": {task: list(one.classes) for task, one in predictions.items()},
    }
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"ntkmtl.json": json.dumps(about)})
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def _read(
    model: MultiTaskModel, problem: Problem, tasks: tuple[str, ...] | None, batch: Any
) -> list[int]:
    """Return the places of a batch's tensors that predictions depend on: labels are left out."""
    tensors = tuple(_tensors(batch).values())
    every = range(len(tensors))
    program = torch.export.export(_Forward(model, problem, tasks, batch, every), tensors)
    users = {node.name: len(node.users) for node in program.graph.nodes}
    inputs = program.graph_signature.user_inputs
    read = [place for place, name in zip(every, inputs, strict=True) if users[str(name)]]
    if not read:
        raise ValueError("its predictions depend on no tensor of a batch")
    return read


def _exported(
    whole: _Forward, first: Any, other: Any, read: Sequence[int]
) -> torch.export.ExportedProgram:
    small, large = list(_tensors(first).values()), list(_tensors(other).values())
    shapes: list[Mapping[int, Any]] = [
        {
            dimension: torch.export.Dim.AUTO
            for dimension, sizes in enumerate(zip(small[p].shape, large[p].shape, strict=True))
            if sizes[0] != sizes[1]
        }
        for p in read
    ]
    return torch.export.export(
        whole, tuple(small[p] for p in read), dynamic_shapes={"tensors": tuple(shapes)}
    )


def _compare(
    program: torch.export.ExportedProgram, whole: _Forward, batch: Any, read: Sequence[int]
) -> None:
    """Refuse an exported program that differs from the network on a batch of another size."""
    every = list(_tensors(batch).values())
    tensors = tuple(every[place] for place in read)
    exported, wanted = program.module()(*tensors), whole(*tensors)
    for task, values in wanted.items():
        if not torch.allclose(exported[task], values, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(f"the exported program predicts other values of {task}")


# ------------------------------------------------------------------------------------------------
# Batches: tensors in tuples, lists and dicts


def _tensors(batch: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a batch by their names in it, as ``graphs.nodes`` or ``0``."""
    if isinstance(batch, Tensor):
        return {name or "batch": batch}
    fields = getattr(batch, "_fields", None)
    parts: Mapping[str, Any]
    if isinstance(batch, tuple | list):
        parts = dict(zip(fields or map(str, range(len(batch))), batch, strict=True))
    else:
        parts = batch if isinstance(batch, Mapping) else {}
    return {
        key: tensor
        for part, inner in parts.items()
        for key, tensor in _tensors(inner, f"{name}.{part}".lstrip(".")).items()
    }


def _with_tensors(batch: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a batch with other tensors, in the order of :func:`_tensors`."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if isinstance(batch, tuple | list):
        parts = [_with_tensors(part, tensors) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        return {key: _with_tensors(part, tensors) for key, part in batch.items()}
    return batch
