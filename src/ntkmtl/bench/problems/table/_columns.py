"""What each column of a table is: its role, its type, and its values as numbers or codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ntkmtl.bench.problems._supervised import SPLITS
from ntkmtl.bench.problems.table._formats import FEWEST, PLAIN, ColumnFormat
from ntkmtl.bench.problems.table._options import Roles
from ntkmtl.bench.problems.table._raw import Array, RawColumn, RawTable, TableError, shorten
from ntkmtl.bench.problems.table._values import (
    ColumnValues,
    Hints,
    Reading,
    find_hints,
)

COUNTS = "whole numbers, taken as counts (types {name}=classification makes them classes)"

MAX_CLASSES = 100

Role = Literal["target", "feature", "split", "group", "time", "id", "left out"]


@dataclass(frozen=True)
class Column:
    """A line of what is shown before training.

    Attributes:
        name: Name of the column.
        role: What it is for.
        kind: What its values are.
        missing: How many are missing.
        content: Its range or its values.
        note: What was made of it, and the option that changes it.
    """

    name: str
    role: Role
    kind: str
    missing: int
    content: str
    note: str = ""


@dataclass(frozen=True)
class Feature:
    """A column that the network sees.

    Attributes:
        name: Name of the column.
        kind: ``number``, ``yes/no``, ``date``, ``category`` or ``text``.
        form: How its values are written.
        numbers: float64 of shape (rows,), NaN where missing; None for categories and texts.
        codes: int64 of shape (rows,), -1 where missing; None for numbers.
        levels: What the codes stand for.
    """

    name: str
    kind: str = "number"
    form: ColumnFormat = PLAIN
    numbers: Array | None = None
    codes: Array | None = None
    levels: tuple[str, ...] = ()

    def __len__(self) -> int:
        values = self.codes if self.numbers is None else self.numbers
        return 0 if values is None else len(values)


@dataclass(frozen=True)
class Target:
    """A column that a task predicts.

    Attributes:
        name: Name of the column and of the task.
        values: float64 of shape (rows,) with NaN where missing for regression; int64 class numbers
            with -1 where missing for classification.
        classes: Names of the classes, empty for regression.
        unit: Unit of the error, where one is known.
        form: How its values are written.
    """

    name: str
    values: Array
    classes: tuple[str, ...] = ()
    unit: str = ""
    form: ColumnFormat = PLAIN

    @property
    def labeled(self) -> Array:
        """Where there is a label, bool of shape (rows,)."""
        known: Array = self.values >= 0 if self.classes else ~np.isnan(self.values)
        return known


@dataclass(frozen=True)
class Typed:
    """A table whose columns are understood.

    Attributes:
        features: What the network sees.
        targets: What it predicts.
        by: ``split``, ``group`` or ``time``: what the column that splits the rows is, if any.
        keys: Of that column 0, 1, 2 for train, val, test; codes of groups; or numbers in the order
            of time. None without such a column.
        ids: The columns that go through to predictions, by name.
        columns: What is shown.
        warnings: What a user should look at, as sentences.
    """

    features: tuple[Feature, ...]
    targets: tuple[Target, ...]
    by: str
    keys: Array | None
    ids: dict[str, RawColumn]
    columns: tuple[Column, ...]
    warnings: tuple[str, ...]


_ORDER = {"target": 0, "split": 1, "group": 2, "time": 3, "id": 4, "feature": 5, "left out": 6}


def type_columns(table: RawTable, roles: Roles, reading: Reading) -> Typed:
    """Find out what each column is.

    The columns of ``table`` are taken out of it one by one: a large table is not held twice.

    Raises:
        TableError: A column is not there, or cannot be what it is asked to be.
    """
    roles = roles.named_in(table)
    hints = find_hints(table, reading)
    found = _Found({}, [], [], [], {})
    for name in list(table.columns):
        _take(table, name, roles, reading, hints, found)
    if not found.features:
        reasons = "; ".join(f"{c.name}: {c.note}" for c in found.shown if c.role != "target")
        raise TableError(
            f"{table.path} has no column {'left ' if reasons else ''}to predict "
            f"{', '.join(roles.targets)} from"
            + (
                f" ({reasons[:300]}). Bring one back with types NAME=number or NAME=category."
                if reasons
                else ": all of its columns are targets."
            )
        )
    found.shown.sort(key=lambda column: _ORDER[column.role])
    return Typed(
        tuple(found.features),
        tuple(found.targets[t] for t in roles.targets),
        found.by,
        found.keys,
        {name: found.ids[name] for name in (c.name for c in found.shown) if name in found.ids},
        tuple(found.shown),
        tuple(found.warnings),
    )


@dataclass
class _Found:
    targets: dict[str, Target]
    features: list[Feature]
    shown: list[Column]
    warnings: list[str]
    ids: dict[str, RawColumn]
    by: str = ""
    keys: Array | None = None


def _take(
    table: RawTable, name: str, roles: Roles, reading: Reading, hints: Hints, found: _Found
) -> None:
    """Take a column out of the table and note what it is."""
    wanted, _, date = dict(roles.types).get(name, "").partition(":")
    raw = as_written = table.columns.pop(name)
    if not date and wanted in ("", "date", "regression"):
        date = raw.date
    if wanted in ("number", "date", "regression"):
        raw = replace(raw, levels=())  # words that the file declares are not numbers then
    kept_as_levels = wanted in ("category", "classification") or name == roles.group
    numeric = wanted in ("number", "regression")
    values = ColumnValues(table.path, raw, reading, hints, kept_as_levels, date, numeric)
    if raw.declared == "number" and not wanted and values.bad.any():
        raise TableError(
            f"{values.where(values.bad)} is not a number, as the file declares "
            f"({int(values.bad.sum()):,} such rows). Put it right, say that it stands for a "
            f"missing value with missing=TEXT, or overrule the file with types {name}="
            f"{'classification' if name in roles.targets else 'category'}."
        )
    if date and values.bad.any():
        raise TableError(
            f"{values.where(values.bad)} is not a date written as {date} "
            f"({int(values.bad.sum()):,} such rows)."
        )
    feature: Feature | None = None
    if name == roles.split:
        found.by, (found.keys, column) = "split", _split(values)
    elif name == roles.group:
        found.by, (found.keys, column) = "group", _group(values)
    elif name in roles.targets:
        found.targets[name], column = _target(values, wanted)
    elif name == roles.time:
        found.by, (found.keys, feature, column) = "time", _time(values, wanted)
    else:
        feature, column = _feature(values, wanted)
    if wanted not in ("ignore", "id", "text"):
        found.warnings += values.warnings
    if feature is not None:
        found.features.append(feature)
    if column.role in ("id", "group"):
        found.ids[name] = as_written
    notes = [note for note in (column.note, values.form.words(), *values.notes) if note]
    found.shown.append(replace(column, note="; ".join(notes)))


# ------------------------------------------------------------------------------------------------
# Columns that split the rows

_SPLIT_WORDS = {
    **{"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1},
    **{"test": 2, "testing": 2},
}


def _require_all(values: ColumnValues, what: str, needed: str) -> None:
    if values.missing:
        raise TableError(
            f"{values.path}, row {int(values.absent.argmax()) + 1}: the {what} column "
            f"{values.name!r} is empty there. Every row needs {needed}."
        )


def _split(values: ColumnValues) -> tuple[Array, Column]:
    _require_all(values, "split", "train, val or test")
    codes, levels = values.categories()
    unknown = [level for level in levels if level.lower() not in _SPLIT_WORDS]
    if unknown:
        bad = codes == levels.index(unknown[0])
        raise TableError(f"{values.where(bad)} must be train, val or test.")
    splits: Array = np.array([_SPLIT_WORDS[level.lower()] for level in levels])[codes]
    counts = np.bincount(splits, minlength=3)
    text = ", ".join(f"{c:,} {s}" for c, s in zip(counts, SPLITS, strict=True))
    return splits, _shown(values, "split", "split", text)


def _group(values: ColumnValues) -> tuple[Array, Column]:
    _require_all(values, "group", "a group")
    codes, levels = values.categories()
    if len(levels) < 3:
        raise TableError(
            f"{values.path}, column {values.name!r}: {len(levels)} groups; at least 3 are needed, "
            "one to train on, one to validate and one to test."
        )
    note = "each group on one side of the split, and not a feature"
    return codes, _shown(values, "group", "category", _list_levels(levels), note)


def _time(values: ColumnValues, wanted: str) -> tuple[Array, Feature | None, Column]:
    _require_all(values, "time", "a time")
    if values.bad.any():
        raise TableError(
            f"{values.where(values.bad)} is neither a number nor a date to order the rows by. "
            f"Give the format of dates, as types {values.name}=date:%d.%m.%Y."
        )
    values.require_finite()
    if wanted == "date":
        _require_kind(values, wanted, 0)
    elif wanted:
        feature, column = _feature(values, wanted)
        return values.numbers, feature, replace(column, note=f"orders the split; {column.note}")
    note = "orders the split: first train, then val, then test"
    if values.declared != "date":
        note += f"; not a feature (types {values.name}=number makes it one)"
        return values.numbers, None, _shown(values, "time", "number", values.range(), note)
    note += "; its season is a feature, its trend is not"
    feature = Feature(values.name, "season", values.form, numbers=values.numbers)
    return values.numbers, feature, _shown(values, "time", "date", values.range(), note)


# ------------------------------------------------------------------------------------------------
# Targets


def _target(values: ColumnValues, wanted: str) -> tuple[Target, Column]:
    name, path = values.name, values.path
    here = f"{path}, column {name!r}"
    if values.declared == "nested":
        raise TableError(f"{here}: lists, records and bytes cannot be predicted.")
    if not values.present:
        raise TableError(
            f"{here}: the target has no labeled row; all of them are missing{values.kept_by()}."
        )
    kind = wanted or _target_kind(values)
    if kind in ("regression", "date"):
        return _regression(values, here)
    codes, levels = values.categories()
    if len(levels) < 2:
        raise TableError(
            f"{here}: the target is constant, {shorten(levels[0])} in every labeled row"
            f"{values.kept_by()}."
        )
    if len(levels) > MAX_CLASSES or 2 * len(levels) > values.present:
        raise TableError(
            f"{here}: {len(levels):,} classes among {values.present:,} labeled rows are too many "
            f"(at most {MAX_CLASSES}, and two rows for each on average). "
            f"Found {_list_levels(levels)}. {_way_to_numbers(values)}; if it is a text or a name, "
            "it is not a target."
        )
    note = "F1, macro"
    if values.form.kind == "number" and not wanted and values.declared != "category":
        note += f"; two whole numbers (types {name}=regression predicts the number)"
    target = Target(name, codes, levels, form=values.form)
    return target, _shown(values, "target", "classification", _list_levels(levels), note)


def _way_to_numbers(values: ColumnValues) -> str:
    if values.mixed():
        return f"It has {values.mixed()}"
    if values.bad.any():
        row = int(values.bad.argmax())
        shown = shorten(values.texts.iloc[row], 30)
        return (
            f"If it holds numbers, write them as 1234.5: {shown} in row {row + 1} is not a number"
        )
    return f"If it holds numbers, try types {values.name}=regression"


def _target_kind(values: ColumnValues) -> str:
    bad = int(values.bad.sum())
    if values.declared in ("category", "yes/no"):
        return "classification"
    if bad > 0 and bad < 0.5 * values.present:
        raise TableError(
            f"{values.where(values.bad)} is not a number, where {values.present - bad:,} of "
            f"{values.present:,} are. Put it right, say that it stands for a missing label with "
            f"missing=TEXT, or ask for classes with types {values.name}=classification."
        )
    if bad:
        return "classification"
    distinct = len(np.unique(values.numbers[~values.absent][:100_000]))
    return "classification" if values.whole and distinct == 2 else "regression"


def _regression(values: ColumnValues, here: str) -> tuple[Target, Column]:
    name = values.name
    if values.bad.any():
        raise TableError(
            f"{values.where(values.bad)} is not a number, as types {name}=regression wants it "
            f"({int(values.bad.sum()):,} such rows).{_because(values)}"
        )
    values.require_finite(target=True)
    known = values.numbers[~values.absent]
    if known.min() == known.max():
        if values.rounded:
            raise TableError(
                f"{here}: its labels differ ({_list_levels(values.levels)}), but are all "
                f"{known[0]:g} as a float64. If they name classes, pass types "
                f"{name}=classification; if they are numbers, subtract one of them from all."
            )
        raise TableError(
            f"{here}: the target is constant, {values.said(known[0])} in every labeled row. "
            "There is nothing to learn: leave it out of the targets."
        )
    if _running(values):
        raise TableError(
            f"{here}: the target numbers the rows one after another. It is an index: leave it out "
            "of the targets."
        )
    distinct = len(np.unique(known[:100_000]))
    note = "RMSE"
    if values.whole and distinct <= 20 and values.declared != "date":
        note += f"; {distinct} {COUNTS.format(name=name)}"
    if values.measured:
        note += f" (types {name}=classification makes them classes)"
    unit = "days" if values.declared == "date" else values.form.number.unit
    target = Target(name, values.numbers.copy(), unit=unit, form=values.form)
    return target, _shown(values, "target", "regression", values.range(), note)


def _running(values: ColumnValues) -> bool:
    """Whether the column numbers the rows: whole, none missing, each one more than the last."""
    numbers = values.numbers
    if values.missing or len(numbers) < 20 or values.declared in ("date", "yes/no"):
        return False
    if not values.whole:
        return False
    with np.errstate(over="ignore"):
        return bool((np.diff(numbers) == 1).all())


# ------------------------------------------------------------------------------------------------
# Features


def _feature(values: ColumnValues, wanted: str) -> tuple[Feature | None, Column]:
    name = values.name
    if wanted == "ignore":
        return None, _shown(values, "left out", "-", "-", "as asked")
    if values.declared == "nested":
        return None, _shown(
            values, "left out", "nested", "-", "lists, records and bytes are not read"
        )
    if wanted == "id":
        return None, _shown(values, "id", "-", "-", "goes through to predictions")
    if not values.present:
        return None, _shown(values, "left out", "empty", "-", "all missing")
    bad = int(values.bad.sum())
    if not wanted and _almost_numbers(values, bad):
        bad = 0
    if wanted in ("number", "date"):
        _require_kind(values, wanted, bad)
    elif wanted in ("category", "text") or bad or values.declared == "category":
        return _category(values, wanted, bad)
    values.require_finite()
    known = values.numbers[~values.absent]
    if not wanted and values.long_ids:
        note = "whole numbers beyond a float64, almost every row has its own; goes through to "
        note += f"predictions (types {name}=number rounds them)"
        return None, _shown(values, "id", "text", _list_levels(values.levels), note)
    if known.min() == known.max() and not values.missing:
        note = "constant"
        if values.rounded:
            note += f" as a float64 (types {name}=category, or {name}=id, keeps its strings)"
        return None, _shown(values, "left out", "number", values.said(known[0], 4), note)
    if not wanted and _running(values):
        note = f"numbers the rows; goes through to predictions (types {name}=number uses it)"
        return None, _shown(values, "id", "number", values.range(), note)
    kind = values.declared if values.declared in ("date", "yes/no") else "number"
    note = {
        "date": f"trend, year, week and time of day (types {name}=ignore)",
        "yes/no": f"0 and 1 (types {name}=category)",
    }.get(kind, "")
    if values.padded:
        note = f"its leading zeros are dropped (types {name}=category keeps them)"
    if values.measured:
        note = f"types {name}=category keeps its strings"
    if values.missing:
        note = f"{note}; " if note else ""
        note += "mean for missing, and an indicator"
    feature = Feature(name, kind, values.form, numbers=values.numbers.copy())
    return feature, _shown(values, "feature", kind, values.range(), note)


def _almost_numbers(values: ColumnValues, bad: int) -> bool:
    """Take the few values of a column of numbers that are none as missing, with a warning."""
    count = len(np.unique(values.numbers[~np.isnan(values.numbers)]))
    if not 0 < bad <= 0.05 * values.present or count <= 20 or values.declared == "category":
        return False
    values.warnings.append(
        f"{values.where(values.bad)} is not a number, where {values.present - bad:,} of "
        f"{values.present:,} are; taken as missing (types {values.name}=category keeps it)."
    )
    values.form = replace(values.form, kind="number")
    values.absent = values.absent | values.bad
    values.missing, values.present = values.missing + bad, values.present - bad
    values.bad = np.zeros_like(values.bad)
    return True


def _require_kind(values: ColumnValues, wanted: str, bad: int) -> None:
    if bad or (wanted == "date" and values.declared != "date"):
        mask = values.bad if bad else ~values.absent
        if wanted == "date" and values.no_date is not None:
            mask = values.no_date
        form = " in a form that is known (2024-12-31, 31.12.2024; give another as date:%d-%b-%Y)"
        raise TableError(
            f"{values.where(mask)} is not a {wanted}{form if wanted == 'date' else ''}, as types "
            f"{values.name}={wanted} wants it ({int(mask.sum()):,} such rows).{_because(values)}"
        )


def _because(values: ColumnValues) -> str:
    mixed = values.mixed()
    return f" The column has {mixed}." if mixed else ""


def _category(values: ColumnValues, wanted: str, bad: int) -> tuple[Feature | None, Column]:
    name = values.name
    codes, levels = values.categories()
    content = _list_levels(levels)
    if len(levels) == 1 and not values.missing:
        return None, _shown(values, "left out", "category", content, "constant")
    unique = len(levels) > 0.9 * values.present and len(levels) >= 10
    few = 0 < bad < 0.5 * values.present
    numeric = f"{bad:,} of {values.present:,} are not numbers" if bad < values.present else ""
    if few:
        row = int(values.bad.argmax())
        first = shorten(values.texts.iloc[row], 20)
        numeric += f" (first in row {row + 1}: {first}; missing=TEXT leaves them out)"
    if unique and not wanted and values.declared != "category":
        note = f"almost every row has its own{', ' if numeric else ''}{numeric}; goes through to "
        note += f"predictions (types {name}=text reads its letters)"
        return None, _shown(values, "id", "text", content, note)
    note = numeric if few else ""
    if bad and not wanted and len(levels) > FEWEST and (mixed := values.mixed()):
        values.warnings.append(
            f"{values.path}, column {name!r} has {mixed}; taken as a category. Write all of them "
            f"in one unit, or say that it is one with types {name}=category."
        )
    kind = "text" if wanted == "text" else "category"
    feature = Feature(name, kind, values.form, codes=codes, levels=levels)
    return feature, _shown(values, "feature", kind, content, note)


def _shown(values: ColumnValues, role: Role, kind: str, content: str, note: str = "") -> Column:
    return Column(values.name, role, kind, values.missing, content, note)


def _list_levels(levels: Sequence[str]) -> str:
    listed = ", ".join(shorten(level, 20)[1:-1] for level in levels[:5])
    return f"{len(levels)}: {listed}{', ...' if len(levels) > 5 else ''}"
