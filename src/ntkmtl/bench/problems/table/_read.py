"""Reading a table: CSV, Parquet or ARFF, into columns of numbers or strings."""

from __future__ import annotations

import codecs
import csv
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ntkmtl.errors import missing_extra

try:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import psutil
except ImportError as error:
    raise missing_extra("table", "bench", error) from error

__all__ = ["RawColumn", "RawTable", "TableError", "read_table", "require_memory", "shorten"]

CSV, PARQUET, ARFF = (".csv", ".tsv", ".txt"), (".parquet", ".pq"), (".arff",)
SEPARATORS = (",", ";", "\t", "|")
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
    """

    name: str
    numbers: npt.NDArray[np.float64] | None = None
    texts: Any = None
    declared: str = ""
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawTable:
    """A table as the file has it.

    Attributes:
        path: The file.
        rows: Number of rows.
        columns: The columns, in the file's order.
        sha256: Digest of the file.
    """

    path: Path
    rows: int
    columns: dict[str, RawColumn]
    sha256: str


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

    Args:
        size: Bytes that it needs.
        what: The subject of the error's sentence.

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


def read_table(
    path: Path, encoding: str = "utf-8", separator: str | None = None, decimal: str = "."
) -> RawTable:
    """Read a table; the end of the file's name says its format.

    Args:
        path: A file that ends in .csv, .tsv, .txt, .parquet, .pq or .arff.
        encoding: Of CSV and ARFF files.
        separator: Between the cells of a CSV file; found from the header if None.
        decimal: Decimal sign of a CSV file, ``"."`` or ``","``.

    Raises:
        TableError: The file is missing, is none of these, or is malformed.
    """
    suffix = path.suffix.lower()
    if suffix not in (*CSV, *PARQUET, *ARFF):
        raise TableError(
            f"{path}: a table's name ends in {', '.join((*CSV, *PARQUET, *ARFF))}. "
            f"Found {path.suffix!r}."
        )
    if decimal not in (".", ","):
        raise TableError(f"decimal must be '.' or ','. Found {decimal!r}.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = _digest(file)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise TableError(f"{path} is empty.")
    # Measured: strings as Arrow has them, one chunk as Python has them, and a column of numbers.
    require_memory(size * (6 if suffix in PARQUET else 3), f"reading {path}")
    if suffix in PARQUET:
        columns = _read_parquet(path)
    else:
        try:
            codecs.lookup(encoding)
            if not isinstance("".encode(encoding), bytes):
                raise LookupError(encoding)
        except LookupError as error:
            raise TableError(
                f"there is no text encoding {encoding!r}; try utf-8, cp1252, latin-1 or utf-16"
            ) from error
        encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        if "\n".encode(encoding.removesuffix("-sig")) == b"\n":
            _refuse_null_bytes(path)
        try:
            if suffix in ARFF:
                columns = _read_arff(path, encoding)
            else:
                columns = _read_csv(path, encoding, separator, decimal)
        except UnicodeError as error:
            raise _encoding_error(path, encoding, error) from error
    rows = 0 if not columns else _length(columns[0])
    if rows == 0:
        raise TableError(f"{path} has a header, and no rows after it.")
    return RawTable(path, rows, {c.name: c for c in columns}, digest)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _refuse_null_bytes(path: Path) -> None:
    """Refuse a file with bytes 0, which no text has, but in encodings of two bytes and more.

    UTF-16 without its mark would else pass for UTF-8 with unprintable names and strings.
    """
    with path.open("rb") as file:
        for number, line in enumerate(_pieces(file), start=1):
            if b"\0" in line:
                raise TableError(
                    f"{path} is not text: byte 0x00 in line {number}. If it is a table in UTF-16, "
                    "pass --problem-option encoding=utf-16-le or utf-16-be, or save it as UTF-8."
                )


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; most files hold no byte 0, and are passed by in large blocks."""
    if any(b"\0" in block for block in iter(lambda: file.read(1 << 20), b"")):
        file.seek(0)
        yield from file


def _length(column: RawColumn) -> int:
    return len(column.texts) if column.numbers is None else len(column.numbers)


def _encoding_error(path: Path, encoding: str, error: UnicodeError) -> TableError:
    """Say where the bytes are that cannot be decoded, and which encoding to try."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            where, suggestion = "it starts with the mark of UTF-16", "utf-16"
        else:
            where, suggestion = str(error), "cp1252"
            for number, line in enumerate(file, start=1):
                byte = _undecodable(line, encoding)
                if byte is not None:
                    where = f"byte 0x{byte:02X} in line {number}"
                    break
            file.seek(0)
            if any(_undecodable(line, "cp1252") is not None for line in file):
                suggestion = "latin-1"
    if codecs.lookup(suggestion).name == codecs.lookup(encoding).name:
        suggestion = "utf-8"
    return TableError(
        f"{path} is not text in {encoding.removesuffix('-sig')}: {where}. "
        f"Pass its encoding, --problem-option encoding={suggestion} most likely, or save it as "
        "UTF-8."
    )


def _undecodable(line: bytes, encoding: str) -> int | None:
    """Return the first byte that is no text in the encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError as error:
        return line[error.start]
    return None


# ------------------------------------------------------------------------------------------------
# Rows of strings


def _texts(rows: Iterable[Sequence[str]], width: int) -> list[Any]:
    """Return the columns of rows as series of strings, a chunk of rows at a time."""
    kind = pd.StringDtype("pyarrow")
    parts: list[list[Any]] = [[] for _ in range(width)]
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        for part, cells in zip(parts, zip(*chunk, strict=True), strict=True):
            part.append(pd.Series(cells, dtype=kind))
    empty = pd.Series([], dtype=kind)
    return [pd.concat(part, ignore_index=True) if part else empty for part in parts]


def _clean(name: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def _check_names(path: Path, names: Sequence[str]) -> None:
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


def _read_csv(path: Path, encoding: str, separator: str | None, decimal: str) -> list[RawColumn]:
    if separator is None:
        with path.open(encoding=encoding, newline="") as file:
            separator = _find_separator(path, file)
    elif len(separator) != 1 or separator in '"\r\n':
        raise TableError(f"separator must be one character. Found {separator!r}.")
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        rows = _csv_rows(path, reader, separator)
        header = next(rows, None)
        if header is None:
            raise TableError(f"{path} holds nothing but empty lines.")
        names = [_clean(name) or f"column {i}" for i, name in enumerate(header, start=1)]
        _check_names(path, names)
        if all(_is_number(name) for name in names):
            raise TableError(
                f"{path}: the first line must name the columns, and it holds numbers only: "
                f"{shorten(', '.join(names))}. Add a line of names."
            )
        texts = _texts(rows, len(names))
    if decimal == ",":
        # Only what is a number with a decimal comma: other strings keep their commas.
        pattern = r"^\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*$"
        texts = [
            t.where(~t.str.match(pattern), t.str.replace(",", ".", regex=False)) for t in texts
        ]
    return [RawColumn(name, texts=text) for name, text in zip(names, texts, strict=True)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_separator(path: Path, file: Iterable[str]) -> str:
    """Return the separator that splits the first line that is not empty into the most cells."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                counts = {s: len(next(csv.reader([line], delimiter=s), [])) for s in SEPARATORS}
            except csv.Error as error:
                raise TableError(f"{path}, line {number}: {_csv_trouble(str(error))}") from error
            return max(SEPARATORS, key=lambda s: counts[s])
    return ","


def _csv_rows(path: Path, reader: Any, separator: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, every one as long as the header."""
    width = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise TableError(f"{path}, line {line}: {_csv_trouble(str(error))}") from error
        if row is None:
            return
        # The reader's own limit is one for the whole process, and scipy lifts it.
        if any(len(cell) > MAX_CELL for cell in row):
            raise TableError(f"{path}, line {line}: {_csv_trouble('field limit')}")
        if not row or (len(row) == 1 and not row[0].strip() and width != 1):
            continue
        if width is None:
            width = len(row)
        elif len(row) != width:
            more = "" if line == reader.line_num else f" to {reader.line_num}"
            raise TableError(
                f"{path}, line {line}{more}: {len(row)} cells, where the header has {width} "
                f"(separator {separator!r}): {shorten(separator.join(row))}. Put in what is "
                "missing, or put strings that hold the separator into double quotes."
            )
        yield row


def _csv_trouble(message: str) -> str:
    if "field limit" in message:
        return (
            f"a cell has more than {MAX_CELL:,} characters. Leave its column out, or "
            "look for a quote that is not closed."
        )
    if "unexpected end of data" in message:
        return "a quote is opened here or later and never closed."
    return f"malformed ({message})."


# ------------------------------------------------------------------------------------------------
# ARFF

# scipy.io.arff refuses strings, drops surplus cells in silence, and names no row.
_ATTRIBUTE = re.compile(
    r"@attribute\s+(?P<name>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s{]+)\s*(?P<type>.+)",
    re.IGNORECASE | re.DOTALL,
)


def _read_arff(path: Path, encoding: str) -> list[RawColumn]:
    with path.open(encoding=encoding, newline=None) as file:
        attributes, line = _arff_header(path, file)
        _check_names(path, [name for name, _, _ in attributes])
        texts = _texts(_arff_rows(path, file, line, len(attributes)), len(attributes))
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
        name = _clean(_unquote(found["name"])) or f"column {len(attributes) + 1}"
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


def _arff_cells(line: str) -> list[str]:
    quote = '"' if '"' in line and "'" not in line else "'"
    reader = csv.reader(
        [line], quotechar=quote, escapechar="\\", skipinitialspace=True, strict=True
    )
    # A line may hold both kinds of quotes; the reader takes one of them off.
    return [_unquote(cell.strip()) for cell in next(reader, [])]


def _arff_levels(path: Path, number: int, text: str) -> tuple[str, ...]:
    try:
        levels = tuple(_arff_cells(text.replace("\n", " ")))
    except csv.Error as error:
        raise TableError(f"{path}, line {number}: {_csv_trouble(str(error))}") from error
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
        except csv.Error as error:
            raise TableError(f"{path}, line {number}: {_csv_trouble(str(error))}") from error
        if len(row) != width:
            raise TableError(
                f"{path}, line {number}: {len(row)} cells, where the header has {width} "
                f"attributes: {shorten(text)}"
            )
        yield row


# ------------------------------------------------------------------------------------------------
# Parquet


def _read_parquet(path: Path) -> list[RawColumn]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("a Parquet file", "bench", error) from error
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} cannot be read as Parquet: {shorten(str(error), 200)}") from error
    names = [_clean(n) or f"column {i}" for i, n in enumerate(table.column_names, start=1)]
    _check_names(path, names)
    return [_arrow_column(path, name, table.column(place), pa) for place, name in enumerate(names)]


def _arrow_column(path: Path, name: str, column: Any, pa: Any) -> RawColumn:
    kinds, kind, declared = pa.types, column.type, ""
    try:
        if kinds.is_dictionary(kind):
            column, declared = column.cast(kind.value_type), "category"
            kind = column.type
        if kinds.is_null(kind):
            return RawColumn(name, numbers=np.full(len(column), np.nan))
        if kinds.is_temporal(kind) and not (kinds.is_time(kind) or kinds.is_duration(kind)):
            column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64())
            days = column.to_numpy(zero_copy_only=False) / 86_400e6
            return RawColumn(name, numbers=days.astype(np.float64), declared="date")
        if kinds.is_time(kind) or kinds.is_duration(kind):
            wide = kinds.is_duration(kind) or kinds.is_time64(kind)
            column = column.cast(pa.int64() if wide else pa.int32()).cast(pa.float64())
        numeric = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
        if (numeric and declared != "category") or column.type == pa.float64():
            # Whole numbers above 2 ** 53 are rounded, as they are in any network.
            column = column.cast(pa.float64(), safe=False)
            numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
            return RawColumn(name, numbers=numbers, declared="number")
        if (
            numeric
            or kinds.is_boolean(kind)
            or kinds.is_string(kind)
            or kinds.is_large_string(kind)
        ):
            texts = column.cast(pa.string()).to_pandas()
            texts = texts.astype(pd.StringDtype("pyarrow"))
            return RawColumn(name, texts=texts, declared=declared)
    except pa.ArrowException as error:
        raise TableError(
            f"{path}, column {name!r} of type {kind}: {shorten(str(error), 200)}"
        ) from error
    return RawColumn(name, numbers=np.full(len(column), np.nan), declared="nested")
