"""Days since 1970 as people write dates."""

from __future__ import annotations

from typing import Any

import numpy as np

_MOST = 1e8
"""Days beyond which microseconds do not fit into 64 bits."""


def date_texts(days: Any) -> list[str]:
    """Return days since 1970 as ISO dates, with their times where one of them has a time.

    Args:
        days: float64 of shape (rows,), NaN where missing.

    Returns:
        Strings, ``""`` where missing. A number that is far beyond all calendars stays one.

    Example:
        >>> date_texts([19000.0, float("nan")]), date_texts([0.0, 0.5])
        (['2022-01-08', ''], ['1970-01-01 00:00:00', '1970-01-01 12:00:00'])
    """
    values = np.asarray(days, dtype=np.float64)
    known = np.abs(values) < _MOST
    moments = np.round(values[known] * 86_400e6).astype(np.int64).astype("datetime64[us]")
    unit = next(u for u in ("D", "s", "us") if (moments == moments.astype(f"M8[{u}]")).all())
    found = ["" if value != value else repr(float(value)) for value in values]
    for place, text in zip(
        np.flatnonzero(known), moments.astype(f"M8[{unit}]").astype(str), strict=True
    ):
        found[place] = str(text).replace("T", " ")
    return found
