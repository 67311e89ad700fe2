"""How numbers, dates and columns are written, by the evidence of the strings themselves."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from ntkmtl.bench.problems._dates import date_texts
from ntkmtl.bench.problems.table._raw import Array, RawColumn, number_text

# ------------------------------------------------------------------------------------------------
# Numbers

MAX_LENGTH = 100
"""Most characters of a number with its signs."""

_SIGN = "[+\\-\u2212]"
_CURRENCY = (
    "(?:[A-Z]{1,3})?[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf]|"
    "(?:USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|CZK|BRL|kr\\.?|z\u0142|Fr\\.?)"
)
_DRESSED = re.compile(
    rf"(?P<open>\()?\s*(?P<sign>{_SIGN})?\s*(?P<before>{_CURRENCY})?\s*(?P<inner>{_SIGN})?\s*"
    r"(?P<digits>[0-9.,][0-9.,'\u2019 \u00a0\u2009\u202f]*?)(?P<power>[eE][+-]?[0-9]+)?\s*"
    rf"(?P<after>%|{_CURRENCY})?\s*(?P<close>\))?"
)
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2009\u202f"), " ") | {ord("\u2019"): "'"}


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a column are written.

    Attributes:
        decimal: ``"."`` or ``","``.
        thousands: What stands between groups of digits, ``""`` for nothing.
        unit: The currency, per cent sign or unit of every number, ``""`` for none.
    """

    decimal: str = "."
    thousands: str = ""
    unit: str = ""

    @property
    def plain(self) -> bool:
        """Whether numbers are written as Python writes them."""
        return self == NumberFormat()

    def words(self) -> str:
        """Return what is not plain about it, for people."""
        found = ["decimal commas"] if self.decimal == "," else []
        names = {",": "commas", ".": "dots", " ": "spaces", "'": "apostrophes"}
        found += [f"{names[self.thousands]} between thousands"] if self.thousands else []
        found += [f"in {self.unit}"] if self.unit else []
        return ", ".join(found)


_FORMATS = (*(NumberFormat(*signs) for signs in (".", ".,", ",", ",.", ". ", ", ", ".'", ",'")),)


def _pattern(form: NumberFormat) -> re.Pattern[str]:
    decimal, whole = re.escape(form.decimal), "[0-9]+"
    if form.thousands:
        gap = re.escape(form.thousands)
        # Groups of three, or of two before the last one, as in India. No number of thousands begins
        # with 0: 0,739 has a decimal comma.
        whole += (
            f"|[1-9][0-9]{{0,2}}(?:{gap}[0-9]{{3}})+|[1-9][0-9]?(?:{gap}[0-9]{{2}})+{gap}[0-9]{{3}}"
        )
    return re.compile(f"(?:(?:{whole})(?:{decimal}[0-9]*)?|{decimal}[0-9]+)")


_COMMAS = NumberFormat(",")
_ONE_SIGN = re.compile("[0-9]*[.,][0-9]*")
_PATTERNS = {form: _pattern(form) for form in _FORMATS}


def _undressed(text: str) -> tuple[str, str, bool, str] | None:
    """Return digits with their separators, unit, whether negative, and power; None for a word."""
    found = _DRESSED.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if found is None or bool(found["open"]) != bool(found["close"]):
        return None
    signs = [s for s in (found["sign"], found["inner"]) if s]
    units = {u for u in (found["before"], found["after"]) if u}
    if len(signs) > 1 or len(units) > 1 or (signs and found["open"]):
        return None
    negative = bool(found["open"]) or (bool(signs) and signs[0] != "+")
    digits = found["digits"].translate(_SPACES)
    return digits, units.pop() if units else "", negative, found["power"] or ""


def number_formats(texts: Iterable[str]) -> list[NumberFormat]:
    """Return the formats, without units, that all strings which look like numbers can be read in.

    Args:
        texts: Strings without spaces around them; those that are not numbers at all are passed by.

    Example:
        >>> [(f.decimal, f.thousands) for f in number_formats(["1,001.66", "no"])]
        [('.', ',')]
        >>> [(f.decimal, f.thousands) for f in number_formats(["1.001,66"])]
        [(',', '.')]
        >>> number_formats(["1,500", "12,5"])[0].decimal
        ','
    """
    digits = {found[::3] for found in map(_undressed, texts) if found is not None}
    return [
        form for form in _FORMATS if digits and all(_is_written(*each, form) for each in digits)
    ]


def _is_written(digits: str, power: str, form: NumberFormat) -> bool:
    """Whether digits are a number in a format; a sign before a power of ten is the decimal one."""
    if power and _ONE_SIGN.fullmatch(digits):
        form = _FORMATS[0] if form.decimal == "." else _COMMAS
    return _PATTERNS[form].fullmatch(digits) is not None


def choose_numbers(
    texts: Sequence[str], decimal: str | None = None, thousands: str | None = None, hint: str = ""
) -> tuple[NumberFormat | None, bool]:
    """Return the format that strings are read in, and whether another one would do as well.

    Args:
        texts: The distinct strings of a column.
        decimal: The decimal sign, where it is known.
        thousands: What stands between groups of digits, where it is known.
        hint: Decimal sign of the file's other columns, ``""`` if they do not tell.

    Returns:
        The format, None where strings that look like numbers cannot all be read in one; and whether
        the strings alone do not tell which.

    Example:
        >>> choose_numbers(["$1,008.43", "$12.00"])
        (NumberFormat(decimal='.', thousands=',', unit='$'), False)
        >>> choose_numbers(["1,500", "2,250"])
        (NumberFormat(decimal='.', thousands=',', unit=''), True)
    """
    if decimal in (None, ".") and not thousands and hint != "," and _plain(texts):
        return NumberFormat(), False
    found = [each for each in map(_undressed, texts) if each is not None]
    units = {unit for _, unit, _, _ in found}
    if len(units) > 1:
        return None, False
    unit = units.pop() if units else ""
    possible = number_formats(texts)
    able = [form for form in possible if decimal in (None, form.decimal)]
    able = [form for form in able or possible if thousands in (None, form.thousands)] or able
    if not able:
        return None, False
    chosen, unsure = able[0], False
    rivals = [form for form in able if form.decimal != chosen.decimal]
    if rivals and any(
        _value(digits, chosen, power) != _value(digits, rivals[0], power)
        for digits, _, _, power in found
    ):
        # A dot before three digits in every number may separate thousands; hardly anyone does so.
        unsure = chosen.thousands != "" or _only_groups(found, chosen.decimal)
        if unsure and hint == rivals[0].decimal:
            chosen = rivals[0]
        unsure = unsure and not hint
    return NumberFormat(chosen.decimal, chosen.thousands, unit), unsure


def _plain(texts: Sequence[str]) -> bool:
    """Return whether strings are numbers as Python writes them beyond doubt: the fast way."""
    read = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce")
    if len(read) == 0 or read.isna().any():
        return False
    some = [found for found in map(_undressed, texts[:1_000]) if found is not None]
    return not _only_groups(some, ".")


def _only_groups(found: Sequence[tuple[str, str, bool, str]], sign: str) -> bool:
    pattern = re.compile(f"[1-9][0-9]{{0,2}}{re.escape(sign)}[0-9]{{3}}")
    marked = [(digits, power) for digits, _, _, power in found if sign in digits]
    return bool(marked) and all(pattern.fullmatch(digits) and not power for digits, power in marked)


def _value(digits: str, form: NumberFormat, power: str = "") -> float:
    if not _is_written(digits, power, form):
        return float("nan")
    if form.thousands:
        digits = digits.replace(form.thousands, "")
    return float(digits.replace(form.decimal, ".") + power)


def read_numbers(texts: Sequence[str], form: NumberFormat) -> Array:
    """Return strings as numbers, NaN where one is not written in the format.

    Args:
        texts: Strings without spaces around them.
        form: The format. A number without its unit is none.

    Returns:
        float64 of shape (strings,).

    Example:
        >>> read_numbers(["$1,008.43", "($5)", "8"], NumberFormat(".", ",", "$")).tolist()
        [1008.43, -5.0, nan]
    """
    plain: Array = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(
        np.float64
    )
    if form.plain and not np.isnan(plain).any():
        return plain
    bare = NumberFormat(form.decimal, form.thousands)
    if form.unit and _UNIT.fullmatch(form.unit):
        parts = map(_measured, texts)
        same = [part["number"] if part and part["unit"] == form.unit else "" for part in parts]
        return read_numbers(same, bare)
    values = np.full(len(texts), np.nan)
    for place, text in enumerate(texts):
        found = _undressed(text)
        if found is None:
            # Infinities and their like; they are refused later, in words.
            if not form.unit and np.isinf(plain[place]):
                values[place] = plain[place]
            continue
        digits, unit, negative, power = found
        if unit == form.unit:
            number = _value(digits, bare, power)
            values[place] = -number if negative else number
    return values


_CURRENCY_SIGN = re.compile(f"%|{_CURRENCY}")
_UNIT_LETTERS = (
    '(?:[^\\W\\d_]|[\u00b0\u2030\u2032\u2033"])(?:[^\\W\\d_]|[\u00b0\u00b7\u00b2\u00b3/^%])*'
)
# Neither a currency nor half a day, as in 12 PM.
_UNIT = re.compile(
    f"(?!(?:{_CURRENCY_SIGN.pattern}|[AaPp][Mm])$){_UNIT_LETTERS}(?: {_UNIT_LETTERS})?[23]?"
)
_MEASURED = re.compile(
    rf"(?P<number>{_SIGN}?[0-9][0-9.,'\u2019 \u00a0\u2009\u202f]*?(?:[eE][+-]?[0-9]+)?)"
    rf"(?P<gap>[ \u00a0\u2009\u202f]*)(?P<unit>{_UNIT.pattern})"
)
FEWEST = 5
"""Least distinct numbers with a unit that are read as numbers unasked: ``2 doors`` is a level."""


def _measured(text: str) -> re.Match[str] | None:
    return _MEASURED.fullmatch(text) if len(text) <= MAX_LENGTH else None


def choose_unit(
    texts: Sequence[str],
    decimal: str | None = None,
    thousands: str | None = None,
    hint: str = "",
    fewest: int = 1,
) -> NumberFormat | None:
    """Return the format of numbers that all have one and the same unit behind them, else None.

    Args:
        texts: The distinct strings of a column.
        decimal: The decimal sign, where it is known.
        thousands: What stands between groups of digits, where it is known.
        hint: Decimal sign of the file's other columns, ``""`` if they do not tell.
        fewest: Least number of strings.

    Example:
        >>> choose_unit(["10,5 kg", "9 kg"])
        NumberFormat(decimal=',', thousands='', unit='kg')
        >>> choose_unit(["10.5 kg", "9 g"])
    """
    first = _measured(texts[0]) if len(texts) >= max(1, fewest) else None
    if first is None:
        return None
    unit = first["unit"]
    parts = [part for part in map(_measured, texts) if part is not None and part["unit"] == unit]
    numbers = [part["number"] for part in parts]
    # 12A is a seat: one letter is a unit behind a space or a decimal fraction.
    seats = len(unit) == 1 and not any(p["gap"] for p in parts) and all(map(str.isdecimal, numbers))
    if len(parts) < len(texts) or seats:
        return None
    form, _ = choose_numbers(numbers, decimal, thousands, hint)
    if form is None or form.unit or not np.isfinite(read_numbers(numbers, form)).all():
        return None
    return NumberFormat(form.decimal, form.thousands, unit)


def units_of(texts: Iterable[str]) -> list[str]:
    """Return the units and currencies behind or before numbers, ``""`` for none; [] for words.

    Example:
        >>> units_of(["10.5 kg", "9 g", "3"]), units_of(["red", "9 g"])
        (['', 'g', 'kg'], [])
    """
    units = set()
    for text in texts:
        number, measured = _undressed(text), _measured(text)
        if number is not None:
            units.add(number[1])
        elif measured and (measured["gap"] or not measured["number"].isdecimal()):
            units.add(measured["unit"])
        else:
            return []
    return sorted(units)


# ------------------------------------------------------------------------------------------------
# Dates

ISO = "ISO8601"
"""Dates as 2024-12-31, with or without a time."""

_DAYS = (
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%m-%d-%y", "%Y-%m", "%m/%Y", "%m.%Y"),
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d-%b-%Y"),
    *("%d-%b-%y", "%d. %B %Y", "%d. %b %Y", "%b %Y", "%B %Y", "%b-%Y", "%b-%y"),
    *("%A, %B %d, %Y", "%a, %b %d, %Y", "%A, %d %B %Y", "%a, %d %b %Y", "%A, %d. %B %Y"),
)
_TIMES = (
    *("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M:%S", ", %H:%M", ", %H:%M:%S"),
    *(" %I:%M %p", " %I:%M:%S %p", ", %I:%M %p", ", %I:%M:%S %p", " %H:%M:%S %z", " %H:%M:%S GMT"),
)
_DATES = (
    *(day + time for day in _DAYS for time in _TIMES),
    *("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S UTC %Y"),
)
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
    able += [form for form in _DATES if _fits(texts[0], form) and _all_dates(sample, form)]
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
        The format, None if the strings are not dates; and the other format, ``""`` if none is left.

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
        for form in (ISO, *_DATES):
            if (form == ISO or _fits(text, form)) and _all_dates([text], form):
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
    """Return days since 1970, NaN where a string is not a date in the format.

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


# ------------------------------------------------------------------------------------------------
# Columns

_YES_NO_LETTERS = (frozenset("yn"), frozenset("tf"))
YES_NO = {"false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0, "true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0}
PLAIN_NUMBERS = NumberFormat()


@dataclass(frozen=True)
class ColumnFormat:
    """How the values of a column are written, so that new ones are read alike.

    Attributes:
        kind: ``number``, ``yes/no``, ``date`` or ``text``.
        number: The format of numbers.
        date: The format of dates.
        absent: Strings that stand for a missing value, in small letters.
        gaps: Numbers that do.
        case_sensitive: Whether levels that are equal but for case are two.
    """

    kind: str
    number: NumberFormat = PLAIN_NUMBERS
    date: str = ""
    absent: tuple[str, ...] = ()
    gaps: tuple[float, ...] = ()
    case_sensitive: bool = False

    def words(self) -> str:
        """Return how values are written, for people; ``""`` where it is plain."""
        if self.kind == "number":
            return self.number.words()
        return f"written {self.date}" if self.kind == "date" and self.date[:1] == "%" else ""

    def key(self, level: str) -> str:
        """Return a key that equal levels share."""
        return level if self.case_sensitive else folded(level)

    def numbers(self, levels: Sequence[str]) -> Array:
        """Return distinct strings as numbers, NaN where one is none."""
        if self.kind == "yes/no":
            return np.array([YES_NO.get(level.lower(), np.nan) for level in levels], dtype=float)
        if self.kind == "date":
            return read_dates(levels, self.date)
        return read_numbers(levels, self.number)

    def read(self, column: RawColumn) -> tuple[Array, Array, Array]:
        """Return the numbers of a column, which are missing, and which are not numbers."""
        if column.numbers is not None:
            values = np.where(np.isin(column.numbers, self.gaps), np.nan, column.numbers)
            absent = np.isnan(values)
            bad = np.isinf(values)
            if (column.declared == "date") != (self.kind == "date"):
                bad = ~absent  # days since 1970 are not numbers, and numbers are not days
            elif self.kind == "yes/no":
                bad = ~absent & ~np.isin(values, (0.0, 1.0))
            return values, absent, bad
        codes, levels, absent = self.levels(column)
        read = np.append(self.numbers(levels) if len(levels) else [], np.nan)
        gone = np.isin(read, self.gaps)
        read[gone] = np.nan
        values, absent = read[codes], absent | gone[codes]
        bad = ~absent & ~np.isfinite(values)
        return np.where(bad, np.nan, values), absent, bad

    def levels(self, column: RawColumn) -> tuple[Array, list[str], Array]:
        """Return codes, -1 where missing, the distinct strings, and what is missing."""
        if column.numbers is not None:
            codes, found = pd.factorize(column.numbers)
            return codes.astype(np.int64), texts_of(found, column.declared == "date"), codes < 0
        texts = column.texts.str.strip()
        low = texts.str.lower()
        absent = texts.isna().to_numpy(bool) | low.isin(self.absent).to_numpy(bool)
        codes = np.full(len(absent), -1, dtype=np.int64)
        some, found = pd.factorize(texts[~absent].to_numpy(object))
        codes[~absent] = some
        if self.gaps and len(found):
            out = np.isin(read_numbers(list(found), PLAIN_NUMBERS), self.gaps)
            absent[~absent] = out[some]
            codes[absent] = -1
        return codes, [str(level) for level in found], absent


def texts_of(numbers: Array, dates: bool) -> list[str]:
    """Return numbers as strings that give them back, days since 1970 as dates."""
    return date_texts(numbers) if dates else [number_text(value) for value in numbers]


PLAIN = ColumnFormat("number")
"""Numbers as Python writes them."""


def folded(level: str) -> str:
    """Return a key for strings that are equal but for case and how accents are encoded."""
    return unicodedata.normalize("NFC", level).casefold()


def says_yes_or_no(levels: Iterable[str]) -> bool:
    """Return whether strings are yes and no; ``n`` beside ``f`` is a code, no second ``no``."""
    low = {level.lower() for level in levels}
    return low <= YES_NO.keys() and not all(low & letters for letters in _YES_NO_LETTERS)


def numbers_among(texts: Iterable[str]) -> tuple[float, ...]:
    """Return the numbers among strings, and what a column of float32 has for them."""
    read = pd.to_numeric(pd.Series(list(texts), dtype=object), errors="coerce").to_numpy(np.float64)
    numbers = read[~np.isnan(read)]
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32).astype(np.float64)
    # What a column of float32 has for -999.9; but neither 0 for 1e-99 nor infinity for 1e99.
    rounded = rounded[np.isclose(rounded, numbers, rtol=1e-6, atol=0.0)]
    return tuple(dict.fromkeys([*numbers.tolist(), *rounded.tolist()]))
