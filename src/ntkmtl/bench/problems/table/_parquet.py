"""Reading Parquet, and pandas' data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ntkmtl.bench.problems.table._raw import RawColumn, TableError, check_names, clean_name, shorten
from ntkmtl.errors import imports_for

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def read_parquet(path: Path) -> list[RawColumn]:
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
    return _arrow_columns(path, table, pa)


def read_frame(frame: Any) -> list[RawColumn]:
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
    return _arrow_columns(Path("data frame"), table, pa)


def _arrow_columns(path: Path, table: Any, pa: Any) -> list[RawColumn]:
    names = [clean_name(n) or f"column {i}" for i, n in enumerate(table.column_names, start=1)]
    check_names(path, names)
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
            # Seconds, whatever the unit: new rows may come in another one.
            seconds = column.to_numpy(zero_copy_only=False) / _PER_SECOND[kind.unit]
            return RawColumn(name, numbers=seconds.astype(np.float64), declared="number")
        numeric = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
        if kinds.is_integer(kind) and _long(column):
            # Ids, most likely: as strings they are kept whole.
            texts = column.cast(pa.string()).to_pandas().astype(pd.StringDtype("pyarrow"))
            return RawColumn(name, texts=texts, declared=declared)
        if (numeric and declared != "category") or column.type == pa.float64():
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
            texts = column.cast(pa.string()).to_pandas()
            texts = texts.astype(pd.StringDtype("pyarrow"))
            return RawColumn(name, texts=texts, declared=declared)
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
