"""Reading ARFF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ntkmtl.bench.problems.table._csv import csv_trouble
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

# scipy.io.arff refuses strings, drops surplus cells in silence, and names no row.
_ATTRIBUTE = re.compile(
    r"@attribute\s+(?P<name>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s{]+)\s*(?P<type>.+)",
    re.IGNORECASE | re.DOTALL,
)
# A comment may follow; braces and per cent signs within quotes are part of a level.
_LIST = re.compile(
    r"""\{(?P<levels>(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^'"{}\\]|\\.)*)\}\s*(?:%.*)?""",
    re.DOTALL,
)


def read_arff(path: Path, encoding: str) -> RawTable:
    """Read an ARFF file.

    Raises:
        TableError: It is malformed; the message names the line.
        UnicodeError: It is in another encoding.
    """
    with path.open(encoding=encoding, newline=None) as file:
        attributes, line = _arff_header(path, file)
        check_names(path, [each.name for each in attributes])
        texts = rows_as_columns(_arff_rows(path, file, line, len(attributes)), len(attributes))
    columns = []
    for (name, kind, levels, date), text in zip(attributes, texts, strict=True):
        if levels:
            stripped = text.str.strip()
            foreign = ~(stripped.isin([*levels, "?"]) | (stripped == "")).to_numpy(bool)
            if foreign.any():
                row = int(foreign.argmax())
                raise TableError(
                    f"{path}, row {row + 1}, column {name!r}: {shorten(stripped.iloc[row])} is not "
                    f"among the declared values {shorten(', '.join(levels))}."
                )
        columns.append(RawColumn(name, texts=text, declared=kind, levels=levels, date=date))
    return RawTable.of(path, columns)


class _Attribute(NamedTuple):
    """A line ``@attribute``: see :class:`RawColumn`."""

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    date: str = ""


def _arff_header(path: Path, file: Iterable[str]) -> tuple[list[_Attribute], int]:
    """Return the attributes, and the number of the line ``@data``."""
    attributes: list[_Attribute] = []
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
            closed = _LIST.fullmatch(kind)
            if closed is None:
                raise TableError(f"{path}, line {number}: the list of {name!r} is not closed.")
            levels = _arff_levels(path, number, closed["levels"])
            attributes.append(_Attribute(name, "category", levels))
            continue
        first = kind.split(None, 1)[0].lower()
        known = {"numeric": "number", "real": "number", "integer": "number"}
        known |= {"string": "", "date": "date"}
        if first not in known:
            raise TableError(
                f"{path}, line {number}: the type of {name!r} must be numeric, a list in braces, "
                f"string or date. Found {shorten(kind)}."
            )
        date = date_format(_unquote(kind[len(first) :].partition("%")[0].strip()))
        attributes.append(_Attribute(name, known[first], date=date if first == "date" else ""))
    raise TableError(f"{path}: no line @data in its {number} lines.")


_JAVA = {
    **{"yyyy": "%Y", "yy": "%y", "MMMM": "%B", "MMM": "%b", "MM": "%m", "M": "%m", "dd": "%d"},
    **{"d": "%d", "HH": "%H", "H": "%H", "hh": "%I", "h": "%I", "mm": "%M", "m": "%M", "ss": "%S"},
    **{"s": "%S", "SSS": "%f", "a": "%p", "EEEE": "%A", "EEE": "%a", "Z": "%z", "X": "%z"},
    **{"XX": "%z", "XXX": "%z"},
}
_JAVA_PARTS = re.compile(r"'(?P<quoted>(?:[^']|'')*)'|(?P<letters>([A-Za-z])\3*)|(?P<other>.)")


def date_format(java: str) -> str:
    """Return the format of a date as Python writes it, ``""`` where Java's says what Python cannot.

    Example:
        >>> date_format("dd.MM.yyyy HH:mm"), date_format("yyyy-MM-dd'T'HH:mm:ss")
        ('%d.%m.%Y %H:%M', '%Y-%m-%dT%H:%M:%S')
        >>> date_format("YYYY-ww"), date_format("")
        ('', '')
    """
    found = ""
    for part in _JAVA_PARTS.finditer(java):
        if part["letters"] and part["letters"] not in _JAVA:
            return ""
        literal = part["other"] or (part["quoted"] or "").replace("''", "'")
        found += _JAVA[part["letters"]] if part["letters"] else literal.replace("%", "%%")
    return found


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


_CELL = re.compile(
    r"""\s*(?: '(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.|"")*)"
        | (?P<bare>(?:[^,'"\\]|\\.)(?:[^,\\]|\\.)* )? )\s*(?P<end>,|$)""",
    re.VERBOSE,
)

_QUOTED = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
# Without quotes a backslash before a letter or digit is one, as in C:\new.
_BARE = re.compile(r"\\([^0-9A-Za-z])")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t"}


def _escaped(found: re.Match[str]) -> str:
    """Return the character that a backslash and what follows it stand for, as Weka has it."""
    what = found[1]
    return chr(int(what[1:], 16)) if len(what) == 5 else _CONTROL.get(what, what)


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
        quoted = found["single"] is not None or found["double"] is not None
        cells.append(_QUOTED.sub(_escaped, text) if quoted else _BARE.sub(r"\1", text))
        if not found["end"]:
            return cells
        start = found.end()


def _arff_levels(path: Path, number: int, text: str) -> tuple[str, ...]:
    try:
        levels = tuple(level.strip() for level in _arff_cells(text.replace("\n", " ")))
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
