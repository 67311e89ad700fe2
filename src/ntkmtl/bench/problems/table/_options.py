"""What a user asks of a table: names, types and numbers, checked before anything is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ntkmtl.bench.problems.table._columns import FEATURE_TYPES, TARGET_TYPES, Roles
from ntkmtl.bench.problems.table._raw import TableError, shorten
from ntkmtl.bench.problems.table._splits import Shares
from ntkmtl.bench.problems.table._values import Reading


class Asked(NamedTuple):
    """What determines the data; all of it is hashable so that a table is read once."""

    path: Path
    stamp: tuple[int, int]
    targets: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    split: str | None
    group: str | None
    time: str | None
    shares: Shares
    reading: Reading
    encoding: str
    separator: str | None
    header: bool
    max_categories: int

    @property
    def roles(self) -> Roles:
        """What columns are for."""
        return Roles(self.targets, dict(self.types), self.split, self.group, self.time)


def names_in(given: Any) -> tuple[str, ...]:
    """Return names that are given as a list, or with commas between them.

    A name that has a comma stands in double quotes, or in a JSON list. A line break within a name
    is a space, as in the names of columns.

    Example:
        >>> names_in("a, b")
        ('a', 'b')
        >>> names_in('"price, EUR",b'), names_in('["price, EUR"]'), names_in(["price, EUR"])
        (('price, EUR', 'b'), ('price, EUR',), ('price, EUR',))
    """
    if isinstance(given, str):
        if given.lstrip().startswith("["):
            try:
                return tuple(str(name) for name in json.loads(given))
            except (ValueError, TypeError, RecursionError):
                pass  # a name may begin with a bracket
        line = " ".join(given.splitlines())
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error as error:
            raise TableError(
                f"names are no list with commas: {error}. Found {shorten(given)}."
            ) from error
        return tuple(cell.strip() for cell in cells if cell.strip())
    if not isinstance(given, Sequence):
        # The command line reads 5 as a number: a column may be named 5.
        return (json.dumps(given) if isinstance(given, bool) else str(given),)
    return tuple(str(name) for name in given)


def types_in(given: str | Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return pairs of name and type.

    Raises:
        TableError: They are not written NAME=TYPE, or a type is unknown or given twice.

    Example:
        >>> types_in("a=number, b=date:%d.%m.%Y")
        (('a', 'number'), ('b', 'date:%d.%m.%Y'))
        >>> types_in('"a, b=number"')
        (('a, b', 'number'),)
    """
    if given is None:
        return ()
    found: dict[str, str] = {}
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise TableError(f"types begin as JSON and are none: {error}") from error
    if isinstance(given, Mapping):
        found = {str(name): str(kind) for name, kind in given.items()}
    else:
        for pair in names_in(given):
            name, equals, kind = pair.rpartition("=")
            if not (name.strip() and equals):
                raise TableError(f"types are written NAME=TYPE,NAME=TYPE. Found {shorten(given)}.")
            if name.strip() in found:
                raise TableError(f"the type of {name.strip()!r} is given twice")
            found[name.strip()] = kind.strip()
    for name, kind in found.items():
        word, colon, form = kind.partition(":")
        if word not in FEATURE_TYPES + TARGET_TYPES or (colon and (word != "date" or not form)):
            raise TableError(
                f"the type of {name!r} must be {', '.join(TARGET_TYPES)} for a target, and "
                f"{', '.join(FEATURE_TYPES)} or date:FORMAT (date:%d.%m.%Y) for another column. "
                f"Found {kind!r}."
            )
    return tuple(sorted(found.items()))


def check_ranges(ranges: Mapping[str, tuple[Any, int, int]]) -> None:
    """Check whole numbers against their ranges.

    Raises:
        TableError: One is no whole number, or out of its range.
    """
    for key, (value, low, high) in ranges.items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise TableError(f"{key} must be a whole number from {low} to {high}. Found {value!r}.")


def check_shares(val: Any, test: Any, dropout: Any) -> None:
    """Check the shares of rows for validation and testing, and the dropout.

    Raises:
        TableError: One is out of range, or no row is left to train on.
    """
    for key, share in (("val", val), ("test", test), ("dropout", dropout)):
        low_open = key != "dropout"
        if not isinstance(share, int | float) or isinstance(share, bool):
            raise TableError(f"{key} must be a number. Found {share!r}.")
        if not (0 <= share < 1) or (low_open and share == 0):
            raise TableError(f"{key} must be a share between 0 and 1. Found {share!r}.")
    if val + test >= 1:
        raise TableError(f"val and test leave nothing to train on. Found {val} and {test}.")
