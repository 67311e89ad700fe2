"""A table read, typed, split, encoded and shown: what the problem ``table`` trains on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Split
from ntkmtl.bench.problems.table._columns import Column, Feature, Target, Typed, type_columns
from ntkmtl.bench.problems.table._fitted import (
    CLIP,
    FeatureEncoder,
    FittedTable,
    FittedTarget,
    fit_encoder,
    standardization,
)
from ntkmtl.bench.problems.table._model import RowBatch
from ntkmtl.bench.problems.table._options import Asked
from ntkmtl.bench.problems.table._raw import Array, RawColumn, TableError, require_memory, shorten
from ntkmtl.bench.problems.table._read import read_table
from ntkmtl.bench.problems.table._splits import split_rows

MIN_ROWS = 20
MOST_LEAKS = 20
"""Most features whose leaks are told one by one."""


class PreparedTable(NamedTuple):
    """A table that can be trained on.

    Attributes:
        sha256: Digest of the file.
        fitted: How rows become inputs, and outputs predictions.
        columns: What is shown.
        splits: Rows of each split.
        truth: Labels in the file's units, float64, or class numbers, by split and task.
        unlabeled: Number of rows without any label, which are left out.
        ids: The columns that go through to predictions, by name.
        places: Positions of each split's rows in the file.
        notes: What was found out about the file, as sentences.
        warnings: What a user should look at, as sentences.
    """

    sha256: str
    fitted: FittedTable
    columns: tuple[Column, ...]
    splits: dict[Split, RowBatch]
    truth: dict[Split, tuple[Tensor, ...]]
    unlabeled: int
    ids: dict[str, RawColumn]
    places: dict[Split, Array]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


# One: a comparison makes the problem once to plan and once to train, of the same file.
@lru_cache(maxsize=1)
def prepare(asked: Asked) -> PreparedTable:
    """Read, type, split and encode a table.

    Raises:
        TableError: It cannot be read, or cannot be trained on as asked for.
    """
    path = asked.path
    raw = read_table(path, asked.encoding, asked.separator, asked.header)
    rows, sha256, notes = raw.rows, raw.sha256, raw.notes
    if rows < MIN_ROWS:
        raise TableError(
            f"{path}: {rows} rows; at least {MIN_ROWS} are needed to train, validate and test."
        )
    names = tuple(raw.columns)
    typed = type_columns(raw, asked.roles, asked.reading)
    labeled = np.stack([target.labeled for target in typed.targets]).any(axis=0)
    kept = np.flatnonzero(labeled)
    if len(kept) < MIN_ROWS:
        raise TableError(
            f"{path}: {len(kept)} of {rows:,} rows have a label; at least {MIN_ROWS} are needed to "
            "train, validate and test."
        )
    places = split_rows(path, typed, kept, asked.shares)
    warnings = [*typed.warnings, *_first(leaks(typed.features, typed.targets, kept))]
    for target in typed.targets:
        warnings += _check_labels(path, target, places, typed.by)
    targets = tuple(_fitted_target(path, target, places) for target in typed.targets)
    encoders, inputs, columns = _encoded(path, typed, targets, places["train"], asked, rows)
    fitted = FittedTable(
        encoders,
        targets,
        tuple(typed.ids),
        names,
        {"encoding": asked.encoding, "separator": asked.separator, "header": asked.header},
    )
    return PreparedTable(
        sha256,
        fitted,
        columns,
        {
            split: RowBatch(
                torch.from_numpy(inputs[found]),
                tuple(
                    _labels(target, fit, found)
                    for target, fit in zip(typed.targets, targets, strict=True)
                ),
            )
            for split, found in places.items()
        },
        {
            split: tuple(torch.from_numpy(target.values[found]) for target in typed.targets)
            for split, found in places.items()
        },
        rows - len(kept),
        typed.ids,
        places,
        notes,
        tuple(warnings),
    )


def _first(sentences: Iterable[str]) -> list[str]:
    """Return the first sentences, and how many more there are."""
    found = list(sentences)
    more = len(found) - MOST_LEAKS
    return [*found[:MOST_LEAKS], *([f"{more:,} more features are like these."] if more > 0 else [])]


# ------------------------------------------------------------------------------------------------
# Inputs


def _encoded(
    path: Path,
    typed: Typed,
    targets: Sequence[FittedTarget],
    training: Array,
    asked: Asked,
    rows: int,
) -> tuple[tuple[FeatureEncoder, ...], Array, tuple[Column, ...]]:
    """Return the encoders, the inputs of all rows, and the columns with what was made of them."""
    # The encoded inputs, once as columns and twice as a matrix while they are split.
    width = sum(_widest(feature, asked.max_categories) for feature in typed.features)
    require_memory(rows * 12.0 * width, f"training on {path}")
    aims = [
        each
        for target, fit in zip(typed.targets, targets, strict=True)
        for each in _aims(target, fit)
    ]
    encoders, parts, said = [], [], {}
    for feature in typed.features:
        encoder, inputs = fit_encoder(feature, training, aims, asked.max_categories)
        said[feature.name] = _made(feature, encoder)
        if encoder.keep:
            encoders.append(encoder)
            parts.append(inputs)
    if not encoders:
        raise TableError(f"{path}: no input varies among the training rows.")
    columns = []
    for column in typed.columns:
        note = "; ".join(filter(None, (said.get(column.name, ""), column.note)))
        columns.append(replace(column, note=note))
    return tuple(encoders), np.concatenate(parts, axis=1), tuple(columns)


def _widest(feature: Feature, max_categories: int) -> int:
    if feature.codes is None:
        return 12
    return min(len(feature.levels), max_categories) + 40


def _aims(target: Target, fit: FittedTarget) -> list[Array]:
    """Return what means over levels are taken of: standardized values, or one 0 and 1 per class."""
    if not target.classes:
        return [np.clip(fit.scaled(target.values), -CLIP, CLIP)]
    known = np.where(target.labeled, 0.0, np.nan)
    found = [known + (target.values == code) for code in range(len(target.classes))]
    centered = [each - np.nanmean(each) for each in found]
    # With two classes one of them says it all.
    return centered[1:] if len(centered) == 2 else centered


def _made(feature: Feature, encoder: FeatureEncoder) -> str:
    """Return what became of a feature, with the option that changes it."""
    if not encoder.keep:
        return "does not vary among the training rows, and is left out"
    inputs = f"{len(encoder.keep)} input{'' if len(encoder.keep) == 1 else 's'}"
    if feature.kind == "category":
        shared = len(encoder.levels) - len(encoder.own)
        if shared:
            return (
                f"{inputs}: {len(encoder.own)} levels have their own, {shared} share one, and all "
                "have the mean of each target (max_categories=N)"
            )
        return f"{inputs}, one for each of {len(encoder.own)} levels"
    return inputs if feature.kind in ("date", "season", "text") else ""


# ------------------------------------------------------------------------------------------------
# Labels


def _check_labels(
    path: Path, target: Target, places: dict[Split, Array], by: str = ""
) -> list[str]:
    """Refuse splits that cannot be judged; return what is lacking as sentences.

    Raises:
        TableError: A split has no label, or only one class or value where more are needed.
    """
    lacking = []
    for split, rows in places.items():
        known = target.values[rows[target.labeled[rows]]]
        distinct = np.unique(known)
        if len(distinct) < (2 if split == "train" or target.classes else 1):
            what = "no label" if not len(known) else "one value only"
            raise TableError(
                f"{path}, column {target.name!r}: {what} among the {len(rows):,} rows of the "
                f"split {split} ({int(target.labeled.sum()):,} labels in all). "
                f"{_rarest(target, by)}"
            )
        if missing := [c for code, c in enumerate(target.classes) if code not in distinct]:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            judged = "" if split != "test" else ", so they are not judged"
            lacking.append(
                f"{target.name!r}: no row of {listed} in the split {split} (a class needs three "
                f"rows to be in each){judged}."
            )
    return lacking


def _rarest(target: Target, by: str) -> str:
    """Return what to do where a split has too few labels or classes of a target."""
    counts = np.bincount(target.values[target.labeled]) if target.classes else np.array([3])
    if counts.min() >= 3:
        return {
            "split": "Say otherwise in the split column.",
            "time": "Try larger val and test, or a split column.",
        }.get(by, "Try another split_seed, larger val and test, or a split column.")
    name, count = target.classes[int(counts.argmin())], int(counts.min())
    return (
        f"{shorten(name)} has {count} row{'' if count == 1 else 's'}, and each split needs one: "
        "merge it with another class, or add rows."
    )


def _fitted_target(path: Path, target: Target, places: dict[Split, Array]) -> FittedTarget:
    training = places["train"]
    if target.classes:
        judged = len(np.unique(target.values[places["test"]][target.labeled[places["test"]]]))
        return FittedTarget(target.name, target.classes, judged=judged)
    center, scale = standardization(target.values[training])
    # float64 holds a spread of a few last digits; a network in float32 would learn rounding.
    if scale <= 0 or not math.isfinite(scale):
        found = len(np.unique(target.values[training][target.labeled[training]]))
        why = (
            "its values do not vary among the training rows."
            if found < 2
            else "its values differ by too little beside their size among the training rows, less "
            "than 1 part in 10^12: subtract one of them from all."
        )
        raise TableError(f"{path}, column {target.name!r}: {why}")
    return FittedTarget(
        target.name, (), center, scale, target.unit, date=target.form.kind == "date"
    )


def _labels(target: Target, fit: FittedTarget, places: Array) -> Tensor:
    values = target.values[places]
    if target.classes:
        return torch.from_numpy(values)
    return torch.from_numpy(fit.scaled(values).astype(np.float32))


# ------------------------------------------------------------------------------------------------
# Features that give a target away: equal to it, or one of the two follows from the other

LOOKED_AT = 20_000
"""Rows that are looked at for leaks."""
LEAST = 20
"""Least number of rows with both values for a statement on a leak."""


def leaks(features: Sequence[Feature], targets: Sequence[Target], rows: Array) -> Iterator[str]:
    """Yield a sentence for each feature that gives a target away.

    Told are features that are equal to the target, rise or fall with it without exception, as its
    logarithm or its classes do, and those whose every level, each of several rows, has one value of
    the target.
    """
    rows = rows[:: max(1, len(rows) // LOOKED_AT)][:LOOKED_AT]
    for target in targets:
        for feature in features:
            known, values = _known(feature, rows)
            some = known & target.labeled[rows]
            if some.sum() < LEAST:
                continue
            x, y = values[some], target.values[rows][some]
            if how := _how(x, y, feature.codes is None, not target.classes):
                yield (
                    f"{feature.name!r} {how} the target {target.name!r}: will it be known when you "
                    f"predict? If not, leave it out with types {feature.name}=ignore."
                )


def _known(feature: Feature, rows: Array) -> tuple[Array, Array]:
    if feature.numbers is not None:
        values = feature.numbers[rows]
        return ~np.isnan(values), values
    assert feature.codes is not None
    values = feature.codes[rows]
    return values >= 0, values


def _how(x: Array, y: Array, x_ordered: bool, y_ordered: bool) -> str:
    """Return what two columns have to do with each other, ``""`` for nothing certain."""
    if min(len(np.unique(x)), len(np.unique(y))) < 2:
        return ""
    if x_ordered and y_ordered and np.array_equal(x, y):
        return "is equal to"
    if _determines(x, y) and _determines(y, x):
        return "says the same as"
    if _determines(x, y):
        return "determines"
    if x_ordered and y_ordered and (_monotone(x, y) or _monotone(x, -y)):
        return "rises or falls without exception with"
    if y_ordered and _blocks(y, x):
        return "follows from"
    if x_ordered and _blocks(x, y):
        return "alone tells"
    return ""


def _determines(x: Array, y: Array) -> bool:
    """Whether rows of equal x have equal y, where that is no chance: two rows a level or more."""
    levels, codes = np.unique(x, return_inverse=True)
    if 2 * len(levels) > len(x) or len(levels) < 2:
        return False
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    return bool((y[order][1:][same] == y[order][:-1][same]).all())


def _monotone(x: Array, y: Array) -> bool:
    """Whether y never falls where x rises, both of many values."""
    if min(len(np.unique(x)), len(np.unique(y))) < LEAST // 2:
        return False
    order = np.lexsort((y, x))
    return bool((np.diff(y[order]) >= 0).all())


def _blocks(x: Array, y: Array) -> bool:
    """Whether each value of y is an interval of x: y is a step function of x."""
    if len(np.unique(x)) < LEAST // 2:
        return False
    order = np.argsort(x, kind="stable")
    levels = len(np.unique(y))
    if 2 * levels > len(y):
        return False
    changes = y[order][1:] != y[order][:-1]
    # Rows of equal x on both sides of a step are not a step.
    crossing = changes & (x[order][1:] == x[order][:-1])
    return bool(changes.sum() == levels - 1 and not crossing.any())


# ------------------------------------------------------------------------------------------------
# What a user sees of a table before training

SHOWN = 30
"""Most columns that are shown one by one."""


def shown_columns(columns: Sequence[Column]) -> str:
    """Return the columns as a table of text: targets first, and what is left out last."""
    features = [column for column in columns if column.role == "feature"]
    first = [c for c in columns if c.role not in ("feature", "left out")]
    out = [c for c in columns if c.role == "left out"]
    room = max(0, SHOWN - len(first) - min(len(out), SHOWN))
    lines = [("column", "role", "type", "missing", "values", "note")]
    lines += [_line(column) for column in (*first, *features[:room])]
    if hidden := features[room:]:
        kinds = ", ".join(sorted({column.kind for column in hidden}))
        missing = sum(column.missing for column in hidden)
        lines.append((f"... {len(hidden)} more", "feature", kinds, f"{missing:,}", "", ""))
        # What was decided about a column is told even where the column is not shown.
        lines += [_line(column) for column in hidden if column.note][:SHOWN]
    lines += [_line(column) for column in out[:SHOWN]]
    if len(out) > SHOWN:
        lines.append((f"... {len(out) - SHOWN} more", "left out", "", "", "", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  ".join(
            cell.rjust(widths[i]) if i == 3 else cell.ljust(widths[i]) if i < 5 else cell
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def unused(columns: Sequence[Column]) -> str:
    """Return a sentence on the columns that the network does not see, ``""`` for none."""
    out = [column for column in columns if column.role in ("left out", "id")]
    if not out:
        return ""
    names = ", ".join(shorten(c.name, 30)[1:-1] for c in out[:8])
    plural = "column is" if len(out) == 1 else "columns are"
    return f"Warning: {len(out)} {plural} not used: {names}{', ...' if len(out) > 8 else ''}"


def _line(column: Column) -> tuple[str, str, str, str, str, str]:
    name = shorten(column.name, 32)[1:-1]
    missing = f"{column.missing:,}"
    content = column.content if len(column.content) <= 44 else column.content[:41] + "..."
    return name, column.role, column.kind, missing, content, column.note
