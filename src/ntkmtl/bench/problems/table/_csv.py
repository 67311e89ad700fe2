"""Reading CSV and its like, by Python's reader in strict mode.

pandas fills short rows without a word; here a row of another length is refused by its line.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ntkmtl.bench.problems.table._raw import (
    MAX_CELL,
    RawColumn,
    RawTable,
    TableError,
    check_names,
    clean_name,
    rows_as_columns,
    shorten,
)

SEPARATORS = (",", ";", "\t", "|")
SPACES = " "
_EXCEL_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*')
"""The first line by which Excel tells itself the separator; it is not a row."""
LINES = 20
"""Lines that a separator is found from."""


def read_csv(path: Path, encoding: str, separator: str | None, header: bool) -> RawTable:
    """Read a file of separated cells.

    Args:
        path: The file.
        encoding: Its encoding.
        separator: One character, a space for any number of spaces; found from the first lines if
            None.
        header: Whether the first line names the columns.

    Raises:
        TableError: It is malformed; the message names the line.
        UnicodeError: It is in another encoding.
    """
    notes: tuple[str, ...] = ()
    with path.open(encoding=encoding, newline="") as file:
        named = _EXCEL_SEPARATOR.fullmatch(file.readline())
        file.seek(0)
        if named is not None:
            separator = separator or named[1]
        elif separator is None:
            separator = _find_separator(path, file)
            if separator == SPACES:
                notes = (
                    "Cells are separated by spaces (separator=, or another one changes that).",
                )
    with path.open(encoding=encoding, newline="") as file:
        before = int(named is not None)
        if before:
            file.readline()
        lines = _single_spaces(file) if separator == SPACES else file
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        rows = _csv_rows(path, reader, separator, before)
        first = next(rows, None)
        if first is None:
            raise TableError(f"{path} holds nothing but empty lines.")
        if header:
            names = [clean_name(name) or f"column {i}" for i, name in enumerate(first, start=1)]
            _refuse_numbers(path, names)
            check_names(path, names)
        else:
            names = [f"column {i}" for i in range(1, len(first) + 1)]
            rows = itertools.chain([first], rows)
            notes += ("There is no header, as asked: columns are named column 1, column 2, ...",)
        texts = rows_as_columns(rows, len(names))
    columns = [RawColumn(name, texts=text) for name, text in zip(names, texts, strict=True)]
    return RawTable.of(path, columns, notes, _doubt(path, columns) if header else "")


HEADERLESS = (
    "Add a line of names, or pass --problem-option header=false and call the columns 'column 1', "
    "'column 2', ..."
)


def _refuse_numbers(path: Path, names: Sequence[str]) -> None:
    twice = {name for name in names if _is_number(name) and names.count(name) > 1}
    if all(_is_number(name) for name in names) or twice:
        raise TableError(
            f"{path}: the first line must name the columns, and it holds numbers"
            f"{'' if twice else ' only'}: {shorten(', '.join(names))}. {HEADERLESS}"
        )


def _doubt(path: Path, columns: Sequence[RawColumn]) -> str:
    """Return why the first line may be data; refuse it where it cannot be anything else.

    Raises:
        TableError: Its numbers stand over numbers, and its words occur in their columns.
    """
    numbers = [column.name for column in columns if _is_number(column.name)]
    if not numbers:
        return ""
    words = [column for column in columns if not _is_number(column.name)]
    if all(bool((column.texts.str.strip() == column.name).any()) for column in words):
        names = ", ".join(column.name for column in columns)
        raise TableError(f"{path}: the first line looks like data: {shorten(names)}. {HEADERLESS}")
    return (
        f"Is its first line, which has the number {shorten(numbers[0], 20)}, a header? {HEADERLESS}"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _single_spaces(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield re.sub(r"[ \t]+", " ", line.strip()) + "\n"


def _find_separator(path: Path, file: Iterable[str]) -> str:
    """Return the separator that splits the first lines into the most cells, as many in each."""
    counts = _counted(path, file)
    if not counts:
        return ","
    even = [s for s in SEPARATORS if len({row[s] for row in counts}) == 1 and counts[0][s] > 1]
    if even:
        return max(even, key=lambda s: counts[0][s])
    best = max(SEPARATORS, key=lambda s: counts[0][s])
    if counts[0][best] > 1:
        return best
    spaced = {row[SPACES] for row in counts}
    # One column of sentences has as many words in every line by chance only.
    if len(spaced) == 1 and counts[0][SPACES] > 1 and len(counts) > 2:
        return SPACES
    return ","


def _counted(path: Path, file: Iterable[str]) -> list[dict[str, int]]:
    """Return the number of cells of the first lines by each separator."""
    counts: list[dict[str, int]] = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = {s: len(next(csv.reader([line], delimiter=s), [])) for s in SEPARATORS}
            single = next(_single_spaces([line]))
            row[SPACES] = len(next(csv.reader([single], delimiter=SPACES), []))
        except csv.Error as error:
            if counts:
                break
            raise TableError(f"{path}, line {number}: {csv_trouble(str(error))}") from error
        counts.append(row)
        if len(counts) == LINES:
            break
    return counts


def _csv_rows(path: Path, reader: Any, separator: str, before: int) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, every one as long as the header, after so many other lines."""
    width = None
    while True:
        line = before + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise TableError(f"{path}, line {line}: {csv_trouble(str(error))}") from error
        if row is None:
            return
        # The reader's own limit is one for the whole process, and scipy lifts it.
        if any(len(cell) > MAX_CELL for cell in row):
            raise TableError(f"{path}, line {line}: {csv_trouble('field limit')}")
        if not row or (len(row) == 1 and not row[0].strip() and width != 1):
            continue
        if width is None:
            width = len(row)
        elif len(row) != width:
            last = before + reader.line_num
            more = "" if line == last else f" to {last}"
            raise TableError(
                f"{path}, line {line}{more}: {len(row)} cells, where the header has {width} "
                f"(separator {separator!r}): {shorten(separator.join(row))}. Put in what is "
                "missing, or put strings that hold the separator into double quotes."
            )
        yield row


def csv_trouble(message: str) -> str:
    """Return what an error of Python's reader means."""
    if "field limit" in message:
        return (
            f"a cell has more than {MAX_CELL:,} characters. Leave its column out, or "
            "look for a quote that is not closed."
        )
    if "unexpected end of data" in message:
        return "a quote is opened here or later and never closed."
    return f"malformed ({message})."
