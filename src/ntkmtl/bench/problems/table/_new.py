"""Reading new rows, which may be written otherwise than the table that was trained on."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from ntkmtl.bench.problems.table._csv import HEADERLESS
from ntkmtl.bench.problems.table._raw import RawTable, TableError
from ntkmtl.bench.problems.table._read import MARKS, is_frame, read_any
from ntkmtl.files import require_regular

_ENCODING = re.compile(r"(?:[Pp]ass|If it is a table)[^.]*--problem-option encoding.*", re.DOTALL)
"""What to do about an encoding in training; new rows have no options."""


def read_new(
    source: Any, reading: Mapping[str, Any], wanted: Set[str]
) -> tuple[RawTable, list[str]]:
    """Read a file of new rows by its own encoding and separator, or a data frame.

    Args:
        source: A CSV, Parquet or ARFF file, or a pandas data frame.
        reading: ``encoding``, ``separator`` and ``header`` of the training file.
        wanted: Names of the columns to find.

    Returns:
        The rows, and what differs from the training file.

    Raises:
        TableError: It cannot be read.
    """
    if is_frame(source):
        return read_any(source), []
    path = Path(str(source)).expanduser()
    encoding = _encoding(path, reading["encoding"])
    try:
        raw = _read(path, {**reading, "encoding": encoding}, wanted)
    except TableError as error:
        told = str(error).replace(HEADERLESS, "Add a line of names.")
        raise TableError(_ENCODING.sub("Save it as UTF-8.", told)) from error
    if encoding == reading["encoding"]:
        return raw, []
    return raw, [f"{path} was read as {encoding}; the training table was {reading['encoding']}."]


def _read(path: Path, reading: Mapping[str, Any], wanted: Set[str]) -> RawTable:
    """Read a file by the separator that was asked for in training, or by the one that is found."""
    if reading["separator"] is None:
        return read_any(path, **reading)
    found: list[RawTable] = []
    trouble: list[TableError] = []
    for separator in (reading["separator"], None):
        try:
            found.append(read_any(path, **{**reading, "separator": separator}))
        except TableError as error:
            trouble.append(error)
        if found and wanted <= set(found[0].columns):
            break
    if not found:
        raise trouble[0]
    return max(found, key=lambda raw: len(wanted & set(raw.columns)))


def _encoding(path: Path, trained: str) -> str:
    """Return the encoding that a byte-order mark names, UTF-8 if it is that, or that of training.

    Other text than UTF-8 is next to never valid UTF-8, but for letters of ASCII alone, which
    encodings of one byte share.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(4)
            marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
            name = codecs.lookup(trained).name
            if marked is not None:
                return trained if name.startswith(marked) else marked
            if name == "utf-8":
                return trained
            file.seek(0)
            decoder = codecs.getincrementaldecoder("utf-8")()
            beyond = "\n".encode(trained) != b"\n"
            for block in iter(lambda: file.read(1 << 20), b""):
                if b"\0" in block:
                    return trained
                beyond |= not decoder.decode(block).isascii()
            decoder.decode(b"", final=True)
    except (OSError, UnicodeDecodeError):  # who reads it says what is wrong
        return trained
    return "utf-8" if beyond else trained
