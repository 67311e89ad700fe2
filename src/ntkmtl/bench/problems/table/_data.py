"""A table read, typed, split and encoded: what the problem ``table`` trains on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Split
from ntkmtl.bench.problems.table._batch import Batch
from ntkmtl.bench.problems.table._columns import Column, Target, type_columns
from ntkmtl.bench.problems.table._encode import encode, standardization, width_of
from ntkmtl.bench.problems.table._read import TableError, read_table, require_memory, shorten

__all__ = ["SPLITS", "Asked", "Prepared", "TrainedTarget", "listed", "prepare", "types_of"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
MIN_ROWS = 20


class TrainedTarget(NamedTuple):
    """A target as it is trained on.

    Attributes:
        target: The column.
        center: Mean over the training rows, 0 for classification.
        scale: Standard deviation over the training rows, 1 for classification.
        size: Numbers that its head says.
    """

    target: Target
    center: float
    scale: float
    size: int


class Prepared(NamedTuple):
    sha256: str
    tasks: tuple[TrainedTarget, ...]
    columns: tuple[Column, ...]
    inputs: tuple[str, ...]
    splits: dict[Split, Batch]
    truth: dict[Split, tuple[Tensor, ...]]
    unlabeled: int


class Asked(NamedTuple):
    """What determines the data; its strings are hashable so that a table is read once."""

    path: Path
    stamp: tuple[int, int]
    targets: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    split_column: str | None
    split_seed: int
    val: float
    test: float
    missing: tuple[str, ...]
    encoding: str
    separator: str | None
    decimal: str
    max_categories: int


# One: a comparison makes the problem once to plan and once to train, of the same file.
@lru_cache(maxsize=1)
def prepare(asked: Asked) -> Prepared:
    path = asked.path
    raw = read_table(path, asked.encoding, asked.separator, asked.decimal)
    rows, sha256 = raw.rows, raw.sha256
    if rows < MIN_ROWS:
        raise TableError(
            f"{path}: {rows} rows; at least {MIN_ROWS} are needed to train, validate and test."
        )
    typed = type_columns(raw, asked.targets, dict(asked.types), asked.split_column, asked.missing)
    labeled = np.stack([target.labeled for target in typed.targets]).any(axis=0)
    kept = np.flatnonzero(labeled)
    if len(kept) < MIN_ROWS:
        raise TableError(
            f"{path}: {len(kept)} of {rows:,} rows have a label; at least {MIN_ROWS} are needed to "
            "train, validate and test."
        )
    places = _places(asked, typed.splits, kept)
    for split, found in places.items():
        for target in typed.targets:
            _check_labels(path, target, split, found)
    # The encoded inputs, once as columns and twice as a matrix while they are split.
    require_memory(
        rows * 12.0 * width_of(typed.features, asked.max_categories), f"training on {path}"
    )
    encoded = encode(typed.features, places["train"], asked.max_categories)
    if not encoded.names:
        raise TableError(f"{path}: no input varies among the training rows.")
    tasks = tuple(_task(path, target, places["train"]) for target in typed.targets)
    return Prepared(
        sha256,
        tasks,
        typed.columns,
        encoded.names,
        {
            split: Batch(
                torch.from_numpy(encoded.inputs[found]), tuple(_labels(t, found) for t in tasks)
            )
            for split, found in places.items()
        },
        {
            split: tuple(torch.from_numpy(t.target.values[found]) for t in tasks)
            for split, found in places.items()
        },
        rows - len(kept),
    )


def _places(
    asked: Asked, column: npt.NDArray[Any] | None, kept: npt.NDArray[Any]
) -> dict[Split, npt.NDArray[Any]]:
    if column is not None:
        found = {split: kept[column[kept] == number] for number, split in enumerate(SPLITS)}
        for split, places in found.items():
            if not len(places):
                raise TableError(
                    f"{asked.path}: the split column {asked.split_column!r} gives {split} no row "
                    "that has a label."
                )
    else:
        order = kept[np.random.default_rng(asked.split_seed).permutation(len(kept))]
        test = max(1, round(asked.test * len(kept)))
        val = max(1, round(asked.val * len(kept)))
        found = {
            "test": order[:test],
            "val": order[test : test + val],
            "train": order[test + val :],
        }
        found = {split: np.sort(found[split]) for split in SPLITS}
    if len(found["train"]) < 8:
        raise TableError(
            f"{asked.path}: {len(found['train'])} rows are left to train on; at least 8 are needed."
        )
    return found


def _check_labels(path: Path, target: Target, split: Split, places: npt.NDArray[Any]) -> None:
    known = target.values[places[target.labeled[places]]]
    needed = 2 if split == "train" else 1
    distinct = len(np.unique(known))
    if distinct < needed:
        what = "no label" if not len(known) else "one value only"
        raise TableError(
            f"{path}, column {target.name!r}: {what} among the {len(places):,} rows of the split "
            f"{split} ({int(target.labeled.sum()):,} labels in all). Try another split_seed, "
            "larger val and test, or a split column."
        )


def _task(path: Path, target: Target, training: npt.NDArray[Any]) -> TrainedTarget:
    if target.classes:
        return TrainedTarget(target, 0.0, 1.0, len(target.classes))
    center, scale = standardization(target.values[training])
    # float64 holds a spread of a few last digits; a network in float32 would learn rounding.
    if scale <= 0 or not math.isfinite(scale):
        raise TableError(
            f"{path}, column {target.name!r}: its values do not vary among the training rows."
        )
    return TrainedTarget(target, center, scale, 1)


def _labels(task: TrainedTarget, places: npt.NDArray[Any]) -> Tensor:
    values = task.target.values[places]
    if task.target.classes:
        return torch.from_numpy(values)
    scaled = (values / 2 - task.center / 2) / task.scale * 2
    return torch.from_numpy(scaled.astype(np.float32))


def listed(given: Any) -> tuple[str, ...]:
    if isinstance(given, str):
        return tuple(name.strip() for name in given.split(",") if name.strip())
    if not isinstance(given, Sequence):
        # The command line reads 5 as a number: a column may be named 5.
        return (json.dumps(given) if isinstance(given, bool) else str(given),)
    return tuple(str(name) for name in given)


def types_of(given: str | Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return tuple(sorted((str(name), str(kind)) for name, kind in given.items()))
    found: dict[str, str] = {}
    for pair in given.split(","):
        name, equals, kind = pair.rpartition("=")
        if not (name.strip() and equals):
            raise TableError(f"types are written NAME=TYPE,NAME=TYPE. Found {shorten(given)}.")
        found[name.strip()] = kind.strip()
    return tuple(sorted(found.items()))
