"""What the readers of files share: columns of strings or numbers, names, errors, memory."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkmtl.errors import imports_for

with imports_for("table"):
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import psutil

Array = npt.NDArray[Any]

CHUNK = 50_000
"""Rows that are held as Python strings at a time."""
MAX_CELL = 131_072
"""Longest cell in characters, as many as a csv.reader allows by itself."""


class TableError(ValueError):
    """A table cannot be read or trained on as asked for; the message names file, column and row."""


@dataclass(frozen=True)
class RawColumn:
    """One column as the file has it.

    Attributes:
        name: Its name.
        numbers: float64 of shape (rows,), NaN where missing; None for strings.
        texts: A pandas series of strings, its missing entries NA; None for numbers.
        declared: What the file says it is: ``number``, ``category``, ``date``, ``nested``, or
            nothing.
        levels: The levels that the file declares for a category.
        date: The format that the file declares for dates, ``""`` if it declares none.
    """

    name: str
    numbers: npt.NDArray[np.float64] | None = None
    texts: Any = None
    declared: str = ""
    levels: tuple[str, ...] = ()
    date: str = ""

    def __len__(self) -> int:
        return len(self.texts) if self.numbers is None else len(self.numbers)


@dataclass(frozen=True)
class RawTable:
    """A table as the file has it.

    Attributes:
        path: The file.
        rows: Number of rows.
        columns: The columns, in the file's order.
        notes: What was found out about how it is written, as sentences.
        doubt: Why the first line may be no header, as a sentence; ``""`` if nothing says so.
        sha256: Digest of the file.
    """

    path: Path
    rows: int
    columns: dict[str, RawColumn]
    notes: tuple[str, ...] = ()
    doubt: str = ""
    sha256: str = ""

    @classmethod
    def of(
        cls,
        path: Path,
        columns: Sequence[RawColumn],
        notes: tuple[str, ...] = (),
        doubt: str = "",
    ) -> RawTable:
        """Return the table of these columns."""
        rows = len(columns[0]) if columns else 0
        return cls(path, rows, {column.name: column for column in columns}, notes, doubt)


def number_text(value: float) -> str:
    """Return a number as a string that gives it back, in as few digits as that takes.

    Example:
        >>> number_text(3.0), number_text(0.1), number_text(1234567890123456.0)
        ('3', '0.1', '1234567890123456')
    """
    if float(value).is_integer() and abs(value) < 2**53:
        return str(int(value))
    short = f"{value:.15g}"
    return short if float(short) == value else repr(float(value))


def shorten(text: object, length: int = 60) -> str:
    """Return the ``repr`` of a value, its middle left out where it is long.

    Example:
        >>> shorten("x" * 1000, 20)
        "'xxxxxxxx...xxxxxxx'"
    """
    # A cell may be megabytes long: it is cut before it is escaped.
    whole = str(text) if isinstance(text, str) else repr(text)
    shown = repr(whole[: length * 2] + whole[-length * 2 :] if len(whole) > length * 4 else whole)
    if len(shown) <= length:
        return shown
    half = (length - 3) // 2
    return f"{shown[: length - 3 - half]}...{shown[-half:]}" if half else shown[:length]


def require_memory(size: float, what: str) -> None:
    """Refuse what will not fit into memory.

    Raises:
        TableError: More than four fifths of the available memory is needed.
    """
    available = psutil.virtual_memory().available
    if size > 0.8 * available:
        raise TableError(
            f"{what} needs about {size / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB "
            "is available. Tables are trained on in memory, once per process: lower --jobs, "
            "leave columns out (types NAME=ignore), or take a sample of the rows."
        )


def rows_as_columns(rows: Iterable[Sequence[str]], width: int) -> list[Any]:
    """Return the columns of rows as series of strings, a chunk of rows at a time."""
    kind = pd.StringDtype("pyarrow")
    parts: list[list[Any]] = [[] for _ in range(width)]
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        for part, cells in zip(parts, zip(*chunk, strict=True), strict=True):
            part.append(pd.Series(cells, dtype=kind))
    empty = pd.Series([], dtype=kind)
    return [pd.concat(part, ignore_index=True) if part else empty for part in parts]


def clean_name(name: str) -> str:
    """Return a name without what cannot be printed, its spaces single and its accents composed."""
    composed = unicodedata.normalize("NFC", name)
    return " ".join("".join(c if c.isprintable() else " " for c in composed).split())


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse two columns of one name, and names that are too long.

    Raises:
        TableError: There are such.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name in places:
            raise TableError(
                f"{path}: columns {places[name]} and {place} are both named {shorten(name)}. "
                "Give every column its own name."
            )
        if len(name) > 200:
            raise TableError(
                f"{path}: the name of column {place} has {len(name):,} characters, more than 200: "
                f"{shorten(name)}. Is the first line the header, and is every quote closed?"
            )
        places[name] = place
