"""Reading a table: CSV, Parquet, ARFF or a data frame, into columns of numbers or strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from ntkmtl.bench.problems._arrays import file_digest
from ntkmtl.bench.problems.table._arff import read_arff
from ntkmtl.bench.problems.table._csv import read_csv
from ntkmtl.bench.problems.table._raw import (
    RawColumn,
    RawTable,
    TableError,
    check_names,
    clean_name,
    require_memory,
    shorten,
)
from ntkmtl.errors import imports_for

CSV, PARQUET, ARFF = (".csv", ".tsv", ".txt"), (".parquet", ".pq"), (".arff",)

_UNPACK = "Unpack it first."
_SAVE = "Save the sheet as CSV first."
_PARQUET = b"PAR1\x15"
_INSTEAD = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zip", ".zst", ".7z", ".tar", ".tgz"), _UNPACK),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), _SAVE),
}
_SIGNATURES = (
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh91AY&SY", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", _UNPACK),
    (
        b"PK\x03\x04",
        "a zip archive or a workbook of Excel",
        f"{_UNPACK[:-1]}, or save the sheet as CSV.",
    ),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook of Excel", _SAVE),
    (_PARQUET, "in Parquet's format", "Let its name end in .parquet."),
)
"""First bytes of what is not text, what it is, and what to do."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)
"""Byte-order marks; the first one that fits counts, as that of UTF-32 begins with one of UTF-16."""


def check_reading(
    path: Path,
    encoding: str = "utf-8",
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
) -> None:
    """Check the options of reading before anything is read.

    Raises:
        TableError: One is invalid.
    """
    suffix = path.suffix.lower()
    if suffix not in (*CSV, *PARQUET, *ARFF):
        raise TableError(
            f"{path}: a table's name ends in {', '.join((*CSV, *PARQUET, *ARFF))}. "
            f"Found {path.suffix!r}. {_INSTEAD.get(suffix, '')}".rstrip()
        )
    if decimal not in (None, ".", ","):
        raise TableError(f"decimal must be '.' or ','. Found {decimal!r}.")
    if thousands not in (None, "", ".", ",", " ", "'") or (thousands and thousands == decimal):
        raise TableError(
            "thousands must be a comma, a dot, a space or an apostrophe, and not the decimal sign. "
            f"Found {thousands!r}."
        )
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise TableError(
            "separator must be one character, no double quote and no line break; a tab is written "
            f"""separator='"\\t"' on the command line. Found {separator!r}."""
        )
    try:
        codecs.lookup(encoding)
        if not isinstance("".encode(encoding), bytes):
            raise LookupError(encoding)
    except LookupError as error:
        raise TableError(
            f"there is no text encoding {encoding!r}; try utf-8, cp1252, latin-1 or utf-16"
        ) from error


def read_any(
    source: Any, encoding: str = "utf-8", separator: str | None = None, header: bool = True
) -> RawTable:
    """Read a file, or a pandas data frame.

    Raises:
        TableError: It cannot be read.
    """
    if is_frame(source):
        return read_frame(source)
    return read_table(Path(str(source)).expanduser(), encoding, separator, header)


def is_frame(source: Any) -> bool:
    """Return whether it is a data frame of pandas."""
    return hasattr(source, "columns") and hasattr(source, "iloc")


def read_table(
    path: Path, encoding: str = "utf-8", separator: str | None = None, header: bool = True
) -> RawTable:
    """Read a table; the end of the file's name says its format.

    Args:
        path: A file that ends in .csv, .tsv, .txt, .parquet, .pq or .arff.
        encoding: Of CSV and ARFF files.
        separator: Between the cells of a CSV file; found from its first lines if None.
        header: Whether the first line of a CSV file names the columns.

    Raises:
        TableError: The file is missing, is none of these, or is malformed.
    """
    check_reading(path, encoding, separator)
    suffix = path.suffix.lower()
    try:
        size = path.stat().st_size
        digest = file_digest(path)
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise TableError(f"{path} is empty.")
    for signature, what, instead in _SIGNATURES:
        if start.startswith(signature) and not (signature == _PARQUET and suffix in PARQUET):
            raise TableError(f"{path} is not a table as its name says: it is {what}. {instead}")
    # Measured: strings as Arrow has them, one chunk as Python has them, and a column of numbers.
    require_memory(size * (6 if suffix in PARQUET else 3), f"reading {path}")
    if suffix in PARQUET:
        found = read_parquet(path)
    else:
        encoding = _without_mark(path, encoding, start)
        if "\n".encode(encoding.removesuffix("-sig")) == b"\n":
            _refuse_null_bytes(path)
        try:
            if suffix in ARFF:
                found = read_arff(path, encoding)
            else:
                found = read_csv(path, encoding, separator, header)
        except UnicodeError as error:
            raise _encoding_error(path, encoding, error) from error
    if found.rows == 0:
        raise TableError(f"{path} has a header, and no rows after it.")
    return replace(found, sha256=digest)


def _without_mark(path: Path, encoding: str, start: bytes) -> str:
    """Return the encoding that leaves out the byte-order mark that a file may start with.

    Args:
        path: The file.
        encoding: Its encoding, as given.
        start: Its first bytes.

    Raises:
        TableError: The mark is that of another encoding.
    """
    name = codecs.lookup(encoding).name
    marked = next((found for mark, found in MARKS if start.startswith(mark)), "")
    if marked and not name.startswith(marked):
        raise TableError(
            f"{path} is not text in {encoding}: it starts with the mark of {marked.upper()}. "
            f"Pass --problem-option encoding={marked}."
        )
    if name == "utf-8":
        return "utf-8-sig"
    return marked or encoding


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


def _encoding_error(path: Path, encoding: str, error: UnicodeError) -> TableError:
    """Say where the bytes are that cannot be decoded, and which encoding to try."""
    with path.open("rb") as file:
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
    """Return the first byte that is not text in the encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError as error:
        return line[error.start]
    return None


# ------------------------------------------------------------------------------------------------
# Parquet, and data frames of pandas

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def read_parquet(path: Path) -> RawTable:
    """Read a Parquet file.

    Raises:
        TableError: It cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    with imports_for("a Parquet file"):
        import pyarrow as pa
        from pyarrow import parquet
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} cannot be read as Parquet: {shorten(str(error), 200)}") from error
    return _arrow_table(path, table, pa)


def read_frame(frame: Any) -> RawTable:
    """Read a pandas data frame, its index left out.

    Raises:
        TableError: A column has values that Arrow has no type for.
        MissingExtraError: pyarrow is not installed.
    """
    with imports_for("a Parquet file"):
        import pyarrow as pa
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise TableError(f"the data frame cannot be read: {shorten(str(error), 200)}") from error
    return _arrow_table(Path("data frame"), table, pa)


def _arrow_table(path: Path, table: Any, pa: Any) -> RawTable:
    names = [clean_name(n) or f"column {i}" for i, n in enumerate(table.column_names, start=1)]
    check_names(path, names)
    columns = [_arrow_column(path, n, table.column(place), pa) for place, n in enumerate(names)]
    return RawTable.of(path, columns)


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
            # Seconds, whatever the unit: new rows may come in another one.
            seconds = column.to_numpy(zero_copy_only=False) / _PER_SECOND[kind.unit]
            return RawColumn(name, numbers=seconds.astype(np.float64), declared="number")
        numeric = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
        # Ids, most likely: as strings they are kept whole.
        long = kinds.is_integer(kind) and _long(column)
        if not long and ((numeric and declared != "category") or column.type == pa.float64()):
            column = column.cast(pa.float64(), safe=False)
            numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
            return RawColumn(name, numbers=numbers, declared="number")
        if (
            numeric
            or kinds.is_boolean(kind)
            or kinds.is_string(kind)
            or kinds.is_large_string(kind)
            or kinds.is_string_view(kind)
        ):
            texts = column.cast(pa.string()).to_pandas().astype(pd.StringDtype("pyarrow"))
            levels = tuple(texts.dropna().unique()) if declared else ()
            return RawColumn(name, texts=texts, declared=declared, levels=levels)
    except pa.ArrowException as error:
        raise TableError(
            f"{path}, column {name!r} of type {kind}: {shorten(str(error), 200)}"
        ) from error
    return RawColumn(name, numbers=np.full(len(column), np.nan), declared="nested")


def _long(column: Any) -> bool:
    """Return whether whole numbers have more digits than a float64."""
    from pyarrow import compute

    ends = compute.min_max(column)
    known = [end for end in (ends["min"].as_py(), ends["max"].as_py()) if end is not None]
    return any(abs(end) > 2**53 for end in known)
