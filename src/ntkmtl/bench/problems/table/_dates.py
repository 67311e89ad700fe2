"""Strings as dates, in a format that the strings themselves give evidence for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from ntkmtl.bench.problems.table._raw import Array

ISO = "ISO8601"
"""Dates as 2024-12-31, with or without a time."""

_DAYS = (
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%m-%d-%y", "%Y-%m", "%m/%Y", "%m.%Y"),
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d-%b-%Y"),
    *("%d-%b-%y", "%d. %B %Y", "%d. %b %Y", "%b %Y", "%B %Y", "%b-%Y", "%b-%y"),
)
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M:%S", ", %H:%M", " %I:%M %p")
_LOOKS = re.compile(r"(?=.*[0-9])(?:[0-9]+|[A-Za-z]{3,})[./\- ,]")
_EPOCH = pd.Timestamp("1970-01-01", tz="UTC")


def date_formats(texts: Sequence[str]) -> list[str]:
    """Return the formats in which all strings are dates, ISO 8601 first.

    Example:
        >>> date_formats(["11.02.2023", "28.02.2023"])
        ['%d.%m.%Y']
        >>> date_formats(["11/02/2023", "03/04/2023"])
        ['%d/%m/%Y', '%m/%d/%Y']
        >>> date_formats(["2023-02-11", "a"])
        []
    """
    if not len(texts) or not all(_LOOKS.match(text) for text in itertools.islice(texts, 5)):
        return []
    sample = texts[:200]
    able = [ISO] if _all_dates(sample, ISO) else []
    able += [
        form
        for form in (day + time for day in _DAYS for time in _TIMES)
        if _fits(texts[0], form) and _all_dates(sample, form)
    ]
    if ISO in able:
        able = [ISO]
    return [form for form in able if len(sample) == len(texts) or _all_dates(texts, form)]


def _fits(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def _parsed(texts: Sequence[str], form: str) -> Any:
    return pd.to_datetime(pd.Series(texts, dtype=object), format=form, errors="coerce", utc=True)


def _all_dates(texts: Sequence[str], form: str) -> bool:
    return not bool(_parsed(texts, form).isna().any())


def choose_date(
    texts: Sequence[str], in_order: Sequence[str], day_first: bool | None = None
) -> tuple[str | None, str]:
    """Return the format of dates, and another one that the strings do not rule out.

    Where day and month could change places, the file's other columns decide; then the rows, if they
    are in the order of one reading alone; then convention: days first with dots and dashes, months
    first with slashes.

    Args:
        texts: The distinct strings of a column.
        in_order: The same in the order of the rows, repeated as they are.
        day_first: What other columns say.

    Returns:
        The format, None if the strings are no dates; and the other format, ``""`` if none is left.

    Example:
        >>> choose_date(["11.02.2023"], ["11.02.2023"])
        ('%d.%m.%Y', '')
        >>> choose_date(["03/04/2023", "05/06/2023"], ["05/06/2023", "03/04/2023"])
        ('%m/%d/%Y', '%d/%m/%Y')
    """
    able = date_formats(texts)
    if not able:
        return None, ""
    first = read_dates(texts, able[0])
    able = [able[0], *(f for f in able[1:] if (read_dates(texts, f) != first).any())][:2]
    if len(able) == 1:
        return able[0], ""
    if day_first is not None:
        for form in able:
            if _day_first(form) is day_first:
                return form, ""
    rising = [form for form in able if _in_order(in_order, form)]
    if len(rising) == 1:
        return rising[0], ""
    if "/" in able[0] and _day_first(able[0]):
        able.reverse()
    return able[0], able[1]


def nearly_dates(texts: Sequence[str]) -> tuple[str, int]:
    """Return a format in which nine of ten strings are dates, and the place of one that is none.

    Returns:
        ``("", -1)`` where there is no such format, or all strings are dates in it.

    Example:
        >>> nearly_dates([f"{day:02d}.02.2023" for day in range(10, 30)])
        ('%d.%m.%Y', 19)
        >>> nearly_dates(["a", "b"])
        ('', -1)
    """
    for text in [text for text in texts[:20] if _LOOKS.match(text)][:3]:
        for form in (ISO, *(day + time for day in _DAYS for time in _TIMES)):
            if _all_dates([text], form):
                bad = np.isnan(read_dates(texts, form))
                if 0 < bad.sum() <= 0.1 * len(texts):
                    return form, int(bad.argmax())
    return "", -1


def _day_first(form: str) -> bool | None:
    """Return whether days stand before months in a format of numbers; None if it has names."""
    if "%d" not in form or "%m" not in form or form.startswith("%Y"):
        return None
    return form.index("%d") < form.index("%m")


def _in_order(texts: Sequence[str], form: str) -> bool:
    days = read_dates(texts, form)
    steps = np.diff(days)
    return len(days) >= 12 and bool(steps.any() and ((steps >= 0).all() or (steps <= 0).all()))


def read_dates(texts: Sequence[str], form: str) -> Array:
    """Return days since 1970, NaN where a string is no date in the format.

    Example:
        >>> read_dates(["02.01.1970", "x"], "%d.%m.%Y").tolist()
        [1.0, nan]
    """
    days: Array = ((_parsed(texts, form) - _EPOCH) / pd.Timedelta(days=1)).to_numpy(np.float64)
    return days


def date_text(days: float) -> str:
    """Return a number of days since 1970 as a date.

    Example:
        >>> date_text(19000.0)
        '2022-01-08'
    """
    try:
        return str((pd.Timestamp("1970-01-01") + pd.Timedelta(days=days)).date())
    except (NotImplementedError, OverflowError, ValueError):  # years before 1 or after 9999
        return f"day {days:.6g} from 1970"
