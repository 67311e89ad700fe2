"""Reading ARFF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ntkmtl.bench.problems.table._csv import csv_trouble
from ntkmtl.bench.problems.table._raw import (
    MAX_CELL,
    RawColumn,
    TableError,
    check_names,
    clean_name,
    rows_as_columns,
    shorten,
)

# scipy.io.arff refuses strings, drops surplus cells in silence, and names no row.
_ATTRIBUTE = re.compile(
    r"@attribute\s+(?P<name>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s{]+)\s*(?P<type>.+)",
    re.IGNORECASE | re.DOTALL,
)


def read_arff(path: Path, encoding: str) -> list[RawColumn]:
    """Read an ARFF file.

    Raises:
        TableError: It is malformed; the message names the line.
        UnicodeError: It is in another encoding.
    """
    with path.open(encoding=encoding, newline=None) as file:
        attributes, line = _arff_header(path, file)
        check_names(path, [name for name, _, _ in attributes])
        texts = rows_as_columns(_arff_rows(path, file, line, len(attributes)), len(attributes))
    columns = []
    for (name, kind, levels), text in zip(attributes, texts, strict=True):
        if levels:
            stripped = text.str.strip()
            foreign = ~(stripped.isin([*levels, "?"]) | (stripped == "")).to_numpy(bool)
            if foreign.any():
                row = int(foreign.argmax())
                raise TableError(
                    f"{path}, row {row + 1}, column {name!r}: {shorten(stripped.iloc[row])} is not "
                    f"among the declared values {shorten(', '.join(levels))}."
                )
        columns.append(RawColumn(name, texts=text, declared=kind, levels=levels))
    return columns


def _arff_header(
    path: Path, file: Iterable[str]
) -> tuple[list[tuple[str, str, tuple[str, ...]]], int]:
    """Return name, kind and levels of each attribute, and the number of the line ``@data``."""
    attributes: list[tuple[str, str, tuple[str, ...]]] = []
    number = 0
    for number, line in enumerate(file, start=1):
        text = line.strip()
        word = text.split(None, 1)[0].lower() if text else ""
        if not text or text.startswith("%") or word == "@relation":
            continue
        if word == "@data":
            if not attributes:
                raise TableError(f"{path}, line {number}: @data without any @attribute before it.")
            return attributes, number
        found = _ATTRIBUTE.fullmatch(text)
        if found is None:
            raise TableError(
                f"{path}, line {number}: an ARFF header holds @relation, @attribute NAME TYPE and "
                f"@data. Found {shorten(text)}."
            )
        name = clean_name(_unquote(found["name"])) or f"column {len(attributes) + 1}"
        kind = found["type"].strip()
        if kind.startswith("{"):
            if not kind.endswith("}"):
                raise TableError(f"{path}, line {number}: the list of {name!r} is not closed.")
            attributes.append((name, "category", _arff_levels(path, number, kind[1:-1])))
            continue
        first = kind.split(None, 1)[0].lower()
        known = {"numeric": "number", "real": "number", "integer": "number"}
        known |= {"string": "", "date": "date"}
        if first not in known:
            raise TableError(
                f"{path}, line {number}: the type of {name!r} must be numeric, a list in braces, "
                f"string or date. Found {shorten(kind)}."
            )
        attributes.append((name, known[first], ()))
    raise TableError(f"{path}: no line @data in its {number} lines.")


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


_CELL = re.compile(
    r"""\s*(?: '(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.|"")*)"
        | (?P<bare>(?:[^,'"\\]|\\.)(?:[^,\\]|\\.)* )? )\s*(?P<end>,|$)""",
    re.VERBOSE,
)


def _arff_cells(line: str) -> list[str]:
    r"""Return the cells of a row: each may be in single or double quotes, with backslashes.

    Raises:
        ValueError: A quote is not closed, or something stands after one.

    Example:
        >>> _arff_cells("\"O'Neil, Ann\",3, 'it\\'s' ,")
        ["O'Neil, Ann", '3', "it's", '']
    """
    cells, start = [], 0
    while True:
        found = _CELL.match(line, start)
        if found is None:
            raise ValueError(f"a quote is not closed, or text stands after one: {shorten(line)}")
        text = next((t for t in (found["single"], found["double"]) if t is not None), None)
        if text is None:
            text = (found["bare"] or "").strip()
        elif found["double"] is not None:
            text = text.replace('""', '"')
        if len(text) > MAX_CELL:
            raise ValueError(csv_trouble("field limit"))
        cells.append(re.sub(r"\\(.)", r"\1", text))
        if not found["end"]:
            return cells
        start = found.end()


def _arff_levels(path: Path, number: int, text: str) -> tuple[str, ...]:
    try:
        levels = tuple(_arff_cells(text.replace("\n", " ")))
    except ValueError as error:
        raise TableError(f"{path}, line {number}: {error}") from error
    if not levels:
        raise TableError(f"{path}, line {number}: a list without values.")
    return levels


def _arff_rows(path: Path, file: Iterable[str], before: int, width: int) -> Iterator[list[str]]:
    for number, line in enumerate(file, start=before + 1):
        text = line.strip()
        if not text or text.startswith("%"):
            continue
        if text.startswith("{"):
            raise TableError(
                f"{path}, line {number}: sparse rows are not read. Write the table with all its "
                "cells, as Weka's filter SparseToNonSparse does."
            )
        try:
            row = _arff_cells(text)
        except ValueError as error:
            raise TableError(f"{path}, line {number}: {error}") from error
        if len(row) != width:
            raise TableError(
                f"{path}, line {number}: {len(row)} cells, where the header has {width} "
                f"attributes: {shorten(text)}"
            )
        yield row
