"""What each column of a table is: its role, its type, and its values as numbers or codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from ntkmtl.bench.problems.table._read import RawColumn, RawTable, TableError, shorten

__all__ = [
    "COUNTS",
    "MISSING",
    "Column",
    "Feature",
    "Target",
    "Typed",
    "type_columns",
]

Array = npt.NDArray[Any]

MISSING = frozenset(("", "?", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "nil", "missing"))
"""Texts that stand for a missing value, in small letters."""

YES_NO = {"false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0, "true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0}

FEATURE_TYPES = ("number", "category", "date", "ignore")
TARGET_TYPES = ("regression", "classification")

COUNTS = "whole numbers, taken as counts"

MAX_CLASSES = 100
MAX_LEVELS = 1_000


@dataclass(frozen=True)
class Column:
    """A line of what is shown before training.

    Attributes:
        name: Name of the column.
        role: ``target``, ``feature``, ``split`` or ``left out``.
        kind: What its values are.
        missing: How many are missing.
        content: Its range or its values.
        note: Why it was left out, or what was done to it.
    """

    name: str
    role: Literal["target", "feature", "split", "left out"]
    kind: str
    missing: int
    content: str
    note: str = ""


@dataclass(frozen=True)
class Feature:
    """A column that the network sees.

    Attributes:
        name: Name of the column.
        numbers: float64 of shape (rows,), NaN where missing; None for categories.
        codes: int64 of shape (rows,), -1 where missing; None for numbers.
        levels: What the codes stand for.
    """

    name: str
    numbers: Array | None = None
    codes: Array | None = None
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A column that a task predicts.

    Attributes:
        name: Name of the column and of the task.
        values: float64 of shape (rows,) with NaN where missing for regression; int64 class numbers
            with -1 where missing for classification.
        classes: Names of the classes, empty for regression.
        unit: Unit of the error, where one is known.
    """

    name: str
    values: Array
    classes: tuple[str, ...] = ()
    unit: str = ""

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
        splits: 0, 1, 2 for train, val, test; None without a split column.
        columns: What is shown.
    """

    features: tuple[Feature, ...]
    targets: tuple[Target, ...]
    splits: Array | None
    columns: tuple[Column, ...]


def type_columns(
    table: RawTable,
    targets: Sequence[str],
    types: Mapping[str, str] | None = None,
    split_column: str | None = None,
    missing: Iterable[str] = (),
) -> Typed:
    """Find out what each column is.

    The columns of ``table`` are taken out of it one by one: a large table is not held twice.

    Args:
        table: What was read.
        targets: Names of the columns to predict.
        types: Types of columns, instead of those found.
        split_column: Name of the column that says train, val or test.
        missing: Further strings that stand for a missing value; one that is a number stands for
            every cell of that value, as ``-999`` for ``-999.0``.

    Raises:
        TableError: A column is not there, or cannot be what it is asked to be.
    """
    types = dict(types or {})
    _check_asked(table, targets, types, split_column)
    path, missing = table.path, [text.strip().lower() for text in missing]
    tokens, gaps = MISSING.union(missing), _numbers_of(missing)
    found_features: list[Feature] = []
    found_targets: dict[str, Target] = {}
    shown: list[Column] = []
    splits = None
    for name in list(table.columns):
        values = _Values(path, table.columns.pop(name), tokens, gaps)
        if name == split_column:
            splits = values.splits()
            counts = np.bincount(splits, minlength=3)
            text = ", ".join(f"{c:,} {s}" for c, s in zip(counts, _SPLITS, strict=True))
            shown.append(Column(name, "split", "split", values.missing, text))
        elif name in targets:
            target, column = _target(values, types.get(name))
            found_targets[name] = target
            shown.append(column)
        else:
            feature, column = _feature(values, types.get(name))
            shown.append(column)
            if feature is not None:
                found_features.append(feature)
    if not found_features:
        reasons = "; ".join(f"{c.name}: {c.note}" for c in shown if c.role == "left out")
        raise TableError(
            f"{path} has no column left to predict {', '.join(targets)} from"
            f"{'' if not reasons else ' (' + reasons[:300] + ')'}. "
            "Bring one back with types NAME=number or NAME=category."
        )
    order = {"target": 0, "split": 1, "feature": 2, "left out": 3}
    shown.sort(key=lambda column: order[column.role])
    return Typed(
        tuple(found_features), tuple(found_targets[t] for t in targets), splits, tuple(shown)
    )


_SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    **{"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1},
    **{"test": 2, "testing": 2},
}


def _check_asked(
    table: RawTable, targets: Sequence[str], types: Mapping[str, str], split_column: str | None
) -> None:
    known = list(table.columns)
    listed = shorten(", ".join(known), 300)[1:-1]
    if not targets:
        raise TableError(
            f"say which columns to predict, as --targets NAME,NAME. {table.path} has {listed}"
        )
    if len(set(targets)) != len(targets):
        raise TableError(f"a target is named twice in {', '.join(targets)}")
    asked = [(name, "target") for name in targets] + [(name, "column of types") for name in types]
    asked += [] if split_column is None else [(split_column, "split column")]
    for name, role in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1) or [
                k for k in known if k.lower() == name.lower()
            ]
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TableError(
                f"{table.path} has no column {shorten(name)} to be a {role}{hint} It has {listed}"
            )
    if split_column in targets:
        raise TableError(f"{split_column!r} cannot be both a target and the split column")
    for name, kind in types.items():
        allowed = TARGET_TYPES if name in targets else FEATURE_TYPES
        if kind not in allowed:
            role = "target" if name in targets else "feature"
            raise TableError(
                f"the type of the {role} {name!r} must be {' or '.join(allowed)}. Found {kind!r}."
            )


def _numbers_of(texts: Sequence[str]) -> Array:
    """Return the numbers among strings."""
    read = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)
    numbers = read[~np.isnan(read)]
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32).astype(np.float64)
    # What a column of float32 has for -999.9; but neither 0 for 1e-99 nor infinity for 1e99.
    rounded = rounded[np.isclose(rounded, numbers, rtol=1e-6, atol=0.0)]
    return np.concatenate([numbers, rounded])


class _Values:
    """The values of one column, read as the type asked for."""

    def __init__(self, path: Any, raw: RawColumn, tokens: frozenset[str], gaps: Array) -> None:
        self.path, self.name, self.raw, self.gaps = path, raw.name, raw, gaps
        self.declared = raw.declared
        if raw.numbers is not None:
            self.texts: Any = None
            self.numbers: Array = raw.numbers
            if gaps.size and raw.declared != "date":  # a date is a number of days
                self.numbers = np.where(np.isin(raw.numbers, gaps), np.nan, raw.numbers)
            self.absent: Array = np.isnan(self.numbers)
            self.bad = np.zeros_like(self.absent)
        else:
            self.texts = raw.texts.str.strip()
            low = self.texts.str.lower()
            self.absent = self.texts.isna().to_numpy(bool) | low.isin(tokens).to_numpy(bool)
            self._read_texts()
        self.missing = int(self.absent.sum())
        self.present = len(self.absent) - self.missing

    def _read_texts(self) -> None:
        known = ~self.absent
        self.numbers = np.full(len(known), np.nan)
        if not known.any():
            self.bad = np.zeros_like(known)
            return
        # Most strings of a column repeat: each distinct one is read once.
        codes, levels = pd.factorize(self.texts[known].to_numpy(object))
        read = pd.to_numeric(pd.Series(levels, dtype=object), errors="coerce").to_numpy(np.float64)
        gone = np.isin(read, self.gaps)
        if gone.any():
            self.absent[known] = gone[codes]
            self._read_texts()
            return
        self.numbers[known] = read[codes]
        self.bad = known & np.isnan(self.numbers)
        self.codes, self.levels = np.full(len(known), -1, dtype=np.int64), levels
        self.codes[known] = codes
        if not self.bad.any():
            return
        small = {str(level).lower() for level in levels}
        if small <= YES_NO.keys() and self.declared != "category":
            yes = np.array([YES_NO[str(level).lower()] for level in levels])
            self.numbers[known] = yes[codes]
            self.bad = np.zeros_like(known)
            self.declared = "yes/no"
        elif self.declared in ("", "date") and self.bad.sum() == known.sum():
            self._read_dates(levels, codes, known)

    def _read_dates(self, levels: Any, codes: Array, known: Array) -> None:
        sample = pd.Series(levels[:100], dtype=object)
        if _days(sample) is None:
            return
        days = _days(pd.Series(levels, dtype=object))
        if days is None:
            return
        self.numbers[known] = days[codes]
        self.bad = np.zeros_like(known)
        self.declared = "date"

    # -------------------------------------------------------------------------------------------

    def where(self, mask: Array) -> str:
        """Return the place and the value of the first row that a mask is true for."""
        row = int(mask.argmax())
        value = self.numbers[row] if self.texts is None else self.texts.iloc[row]
        shown = f"{value:g}" if self.texts is None else shorten(str(value))
        return f"{self.path}, row {row + 1}, column {self.name!r}: {shown}"

    def require_finite(self) -> None:
        infinite = np.isinf(self.numbers)
        if infinite.any():
            raise TableError(
                f"{self.where(infinite)} is infinite as a float64 "
                f"({int(infinite.sum())} such rows). Put the value right, leave the cell empty, "
                f"or leave the column out with types {self.name}=ignore."
            )

    def categories(self) -> tuple[Array, tuple[str, ...]]:
        """Return codes, -1 where missing, and levels in order."""
        if self.texts is None:
            self.require_finite()
            codes, values = pd.factorize(self.numbers, sort=True)
            return codes.astype(np.int64), tuple(f"{v:.15g}" for v in values)
        if not self.present:
            return np.full(len(self.absent), -1, dtype=np.int64), ()
        levels = [str(level) for level in self.levels]
        if not (self.bad.any() or self.declared in ("yes/no", "date")):
            # Levels that are numbers stand in the order of numbers, and 1 is 1.0.
            self.require_finite()
            numbers = [float(level) for level in levels]
            order: list[Any] = sorted(set(numbers))
            place = {number: i for i, number in enumerate(order)}
            to = np.array([place[number] for number in numbers])
            names = tuple(f"{number:.15g}" for number in order)
        else:
            order = sorted(levels)
            place = {level: i for i, level in enumerate(order)}
            to, names = np.array([place[level] for level in levels]), tuple(order)
        codes = np.full(len(self.codes), -1, dtype=np.int64)
        known = self.codes >= 0
        codes[known] = to[self.codes[known]]
        return codes, names

    def splits(self) -> Array:
        """Return 0, 1, 2 for train, val, test."""
        if self.missing:
            raise TableError(
                f"{self.path}, row {int(self.absent.argmax()) + 1}: the split column "
                f"{self.name!r} is empty there. Every row needs train, val or test."
            )
        codes, levels = self.categories()
        unknown = [level for level in levels if level.lower() not in _SPLIT_WORDS]
        if unknown:
            bad = codes == levels.index(unknown[0])
            raise TableError(f"{self.where(bad)} must be train, val or test.")
        to = np.array([_SPLIT_WORDS[level.lower()] for level in levels])
        splits: Array = to[codes]
        return splits

    @property
    def whole(self) -> bool:
        """Whether all numbers are whole."""
        known = self.numbers[~self.absent]
        return bool((known == np.floor(known)).all())

    def range(self) -> str:
        known = self.numbers[~self.absent]
        low, high = known.min(), known.max()
        if self.declared == "date":
            return f"{_date(low)} to {_date(high)}"
        return f"{low:.4g} to {high:.4g}"


def _days(texts: Any) -> Array | None:
    """Return days since 1970 of dates in ISO 8601, None where a string is not one."""
    parsed = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if parsed.isna().any():
        return None
    epoch = pd.Timestamp("1970-01-01", tz="UTC")
    days: Array = ((parsed - epoch) / pd.Timedelta(days=1)).to_numpy(np.float64)
    return days


def _date(days: float) -> str:
    try:
        return str((pd.Timestamp("1970-01-01") + pd.Timedelta(days=days)).date())
    except (OverflowError, ValueError):
        return f"day {days:.6g} from 1970"


def _list_levels(levels: Sequence[str]) -> str:
    listed = ", ".join(shorten(level, 20)[1:-1] for level in levels[:5])
    return f"{len(levels)}: {listed}{', ...' if len(levels) > 5 else ''}"


# ------------------------------------------------------------------------------------------------
# Targets


def _target(values: _Values, wanted: str | None) -> tuple[Target, Column]:
    name, path = values.name, values.path
    here = f"{path}, column {name!r}"
    if values.declared == "nested":
        raise TableError(f"{here}: lists, records and bytes cannot be predicted.")
    if not values.present:
        raise TableError(f"{here}: the target has no labeled row; all of them are missing.")
    kind = wanted or _target_kind(values)
    if kind == "regression":
        return _regression(values, here)
    codes, levels = values.categories()
    if len(levels) < 2:
        raise TableError(
            f"{here}: the target is constant, {shorten(levels[0])} in every labeled row."
        )
    if len(levels) > MAX_CLASSES or 2 * len(levels) > values.present:
        raise TableError(
            f"{here}: {len(levels):,} classes among {values.present:,} labeled rows are too many "
            f"(at most {MAX_CLASSES}, and two rows for each on average). "
            f"Found {_list_levels(levels)}. If it holds numbers, try types {name}=regression; if "
            "it is a text or a name, it is no target."
        )
    return Target(name, codes, levels), Column(
        name, "target", "classification", values.missing, _list_levels(levels), "F1, macro"
    )


def _target_kind(values: _Values) -> str:
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


def _regression(values: _Values, here: str) -> tuple[Target, Column]:
    name = values.name
    if values.bad.any():
        raise TableError(
            f"{values.where(values.bad)} is not a number, as types {name}=regression wants it "
            f"({int(values.bad.sum()):,} such rows)."
        )
    values.require_finite()
    known = values.numbers[~values.absent]
    if known.min() == known.max():
        raise TableError(
            f"{here}: the target is constant, {known[0]:g} in every labeled row. "
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
        note += f"; {distinct} {COUNTS}"
    unit = "days" if values.declared == "date" else ""
    return Target(name, values.numbers.copy(), unit=unit), Column(
        name, "target", "regression", values.missing, values.range(), note
    )


def _running(values: _Values) -> bool:
    """Whether the column numbers the rows: whole, none missing, each one more than the last."""
    numbers = values.numbers
    if values.missing or len(numbers) < 20 or values.declared in ("date", "yes/no"):
        return False
    with np.errstate(over="ignore"):
        return bool((np.diff(numbers) == 1).all())


# ------------------------------------------------------------------------------------------------
# Features


def _feature(values: _Values, wanted: str | None) -> tuple[Feature | None, Column]:
    name = values.name

    def left_out(kind: str, content: str, note: str) -> tuple[None, Column]:
        return None, Column(name, "left out", kind, values.missing, content, note)

    if wanted == "ignore":
        return left_out("-", "-", "as asked")
    if values.declared == "nested":
        return left_out("nested", "-", "lists, records and bytes are not read")
    if not values.present:
        return left_out("empty", "-", "all missing")
    bad = int(values.bad.sum())
    if wanted in ("number", "date"):
        if bad or (wanted == "date" and values.declared != "date"):
            mask = values.bad if bad else ~values.absent
            raise TableError(
                f"{values.where(mask)} is not a {wanted}"
                f"{' in the form 2024-12-31' if wanted == 'date' else ''}, as types "
                f"{name}={wanted} wants it ({int(mask.sum()):,} such rows)."
            )
    elif wanted == "category" or bad or values.declared == "category":
        return _category(values, wanted, bad, left_out)
    values.require_finite()
    known = values.numbers[~values.absent]
    if known.min() == known.max() and not values.missing:
        return left_out("number", f"{known[0]:.4g}", "constant")
    if wanted is None and _running(values):
        return left_out(
            "number", values.range(), f"numbers the rows; to use it: types {name}=number"
        )
    kind = values.declared if values.declared in ("date", "yes/no") else "number"
    note = {"date": "as days", "yes/no": "as 0 and 1"}.get(kind, "")
    if values.missing:
        note = f"{note}, " if note else ""
        note += "mean for missing, and an indicator"
    return Feature(name, numbers=values.numbers.copy()), Column(
        name, "feature", kind, values.missing, values.range(), note
    )


def _category(
    values: _Values, wanted: str | None, bad: int, left_out: Any
) -> tuple[Feature | None, Column]:
    name = values.name
    codes, levels = values.categories()
    content = _list_levels(levels)
    if len(levels) == 1 and not values.missing:
        return left_out("category", content, "constant")  # type: ignore[no-any-return]
    many = len(levels) > MAX_LEVELS or 2 * len(levels) > values.present
    numeric = f", {bad:,} of {values.present:,} are not numbers" if bad < values.present else ""
    if many and wanted is None and values.declared != "category":
        note = f"too many distinct texts{numeric}"
        if 0 < bad < 0.5 * values.present:
            note += f" (first in row {int(values.bad.argmax()) + 1}); missing=TEXT leaves them out"
        return left_out("text", content, note)  # type: ignore[no-any-return]
    note = numeric[2:] if bad and bad < 0.5 * values.present else ""
    return Feature(name, codes=codes, levels=levels), Column(
        name, "feature", "category", values.missing, content, note
    )
