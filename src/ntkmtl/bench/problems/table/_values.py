"""One column as numbers or levels: the parser of targets and features alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ntkmtl.bench.problems.table._formats import (
    FEWEST,
    ISO,
    ColumnFormat,
    NumberFormat,
    choose_date,
    choose_numbers,
    choose_unit,
    date_text,
    folded,
    nearly_dates,
    numbers_among,
    read_numbers,
    says_yes_or_no,
    texts_of,
    units_of,
)
from ntkmtl.bench.problems.table._raw import (
    Array,
    RawColumn,
    RawTable,
    TableError,
    shorten,
)

_EXCEL_ERRORS = ("#n/a", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!")
MISSING = frozenset(("", "?", "nan", "<na>", *_EXCEL_ERRORS))
"""Strings that stand for a missing value, in small letters."""

WORDS = frozenset(("na", "n/a", "null", "none", "nil", "missing"))
"""Words that stand for a missing value among numbers, dates, and more frequent words."""


@dataclass(frozen=True)
class Reading:
    """How a user wants the strings of a file to be read.

    Attributes:
        missing: Further strings that stand for a missing value, in small letters.
        not_missing: Strings that never do.
        decimal: The decimal sign, None to find it.
        thousands: What stands between groups of digits, None to find it.
        case_sensitive: Whether ``yes`` and ``Yes`` are two levels.
    """

    missing: tuple[str, ...] = ()
    not_missing: tuple[str, ...] = ()
    decimal: str | None = None
    thousands: str | None = None
    case_sensitive: bool = False


@dataclass(frozen=True)
class Hints:
    """What the columns of a file tell about each other.

    Attributes:
        decimal: Decimal sign of the columns that leave no doubt, ``""`` if there are none.
        day_first: Whether their dates have days before months, None if there are none.
        markers: Words that stand for missing numbers, as written.
    """

    decimal: str = ""
    day_first: bool | None = None
    markers: frozenset[str] = frozenset()


def find_hints(table: RawTable, reading: Reading, rows: int = 2_000) -> Hints:
    """Look at the first rows of all columns for what they tell about each other."""
    decimals, orders, markers = set(), set(), set()
    for column in table.columns.values():
        if column.texts is None or column.declared == "category":
            continue
        some = column.texts.iloc[:rows].dropna().str.strip().unique().tolist()
        levels = [t for t in some if t.lower() not in MISSING | WORDS | set(reading.missing)]
        if not levels:
            continue
        form, unsure = choose_numbers(levels, reading.decimal, reading.thousands)
        readable = 0 if form is None else int(np.isfinite(read_numbers(levels, form)).sum())
        if form is not None and readable > 0.9 * len(levels):
            markers |= {text for text in some if text.lower() in WORDS}
            signs = (form.decimal, form.thousands or form.decimal)
            if not unsure and any(sign in text for text in levels for sign in signs):
                decimals.add(form.decimal)
        elif readable == 0:
            date, rival = choose_date(levels, ())
            if date is not None and not rival and "%d" in date and "%m" in date:
                orders.add(date.index("%d") < date.index("%m"))
    decimal = decimals.pop() if len(decimals) == 1 else ""
    day_first = orders.pop() if len(orders) == 1 else None
    return Hints(decimal, day_first, frozenset(markers))


class ColumnValues:
    """The values of one column, and how they are written.

    Args:
        path: The file.
        raw: The column.
        reading: What the user says.
        hints: What other columns say.
        wanted: Whether the user asks for levels, so that words are not missing numbers.
        date: Format of dates that the user gives.
        numeric: Whether the user asks for numbers, so that few with a unit are read as such.

    Attributes:
        numbers: float64 of shape (rows,), NaN where missing or no number.
        absent: Where there is no value.
        bad: Where there is a value that is not a number.
        declared: ``number``, ``category``, ``date``, ``yes/no``, ``nested`` or nothing.
        form: How it is written.
        notes: What people may want to overrule, as sentences with the option.
        warnings: The same, where it may be wrong.
        measured: Whether all numbers have a unit behind them.
        dropped: Distinct strings that are taken as missing.
        no_date: Where a value is that is not a date among dates, None if there is no such value.
    """

    def __init__(
        self,
        path: Any,
        raw: RawColumn,
        reading: Reading,
        hints: Hints,
        wanted: bool = False,
        date: str = "",
        numeric: bool = False,
    ) -> None:
        self.path, self.name, self.raw = path, raw.name, raw
        self.reading, self.hints = reading, hints
        self.fewest = 1 if numeric else FEWEST
        self.measured = False
        self.declared = raw.declared
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.no_date: Array | None = None
        self.dropped: list[str] = []
        self.gaps = numbers_among(reading.missing)
        self.form = ColumnFormat("number", gaps=self.gaps, case_sensitive=reading.case_sensitive)
        if raw.numbers is not None:
            self.texts: Any = None
            gaps = () if raw.declared == "date" else self.gaps  # a date is a number of days
            self.numbers: Array = np.where(np.isin(raw.numbers, gaps), np.nan, raw.numbers)
            self.absent: Array = np.isnan(self.numbers)
            self.bad = np.zeros_like(self.absent)
            # Of a file of strings, in which new rows may come.
            absent = (MISSING | WORDS | {*reading.missing}) - {*reading.not_missing} | {""}
            self.form = replace(self.form, absent=tuple(sorted(absent)))
            if raw.declared == "date":
                self.form = replace(self.form, kind="date", date=ISO, gaps=())
        else:
            self._read_texts(wanted or raw.declared == "category", date)
        self.missing = int(self.absent.sum())
        self.present = len(self.absent) - self.missing

    # ------------------------------------------------------------------ strings

    def _read_texts(self, wanted: bool, date: str) -> None:
        self.texts = self.raw.texts.str.strip()
        codes, levels = pd.factorize(self.texts.to_numpy(object), use_na_sentinel=True)
        counts = np.bincount(codes[codes >= 0], minlength=len(levels))
        levels = [str(level) for level in levels]
        gone = self._absent_levels(levels, counts, wanted)
        plain = [level for level, out in zip(levels, gone, strict=True) if not out]
        read = self._read_levels(plain, date, wanted)
        values = np.full(len(levels) + 1, np.nan)
        values[:-1][~gone] = read
        if self.gaps and self.form.kind in ("number", "text"):
            gone |= np.isin(values[:-1], self.gaps)
            values[:-1][gone] = np.nan
        absent = np.append(gone, True)
        self.numbers, self.absent = values[codes], absent[codes]
        self.bad = ~self.absent & np.isnan(self.numbers)
        place = np.cumsum(~gone) - 1
        place[gone] = -1
        self.codes = np.append(place, -1)[codes].astype(np.int64)
        self.levels = [level for level, out in zip(levels, gone, strict=True) if not out]

    def _absent_levels(
        self, levels: Sequence[str], counts: Array, wanted: bool
    ) -> npt.NDArray[np.bool_]:
        """Return which distinct strings stand for a missing value."""
        asked, kept = set(self.reading.missing), self._kept()
        low = [level.lower() for level in levels]
        stands = ((asked | MISSING) - kept) | {""}
        out = np.array([text in stands for text in low], dtype=bool)
        words = [i for i, t in enumerate(low) if t in WORDS and not out[i] and t not in kept]
        if words:
            rest = [i for i in range(len(levels)) if not out[i] and i not in set(words)]
            held = self._words_held(levels, counts, words, rest, int(counts[out].sum()), wanted)
            dropped = [i for i in words if low[i] not in held]
            out[dropped] = True
            self._tell_words(levels, counts, words, set(dropped))
        elif ours := [t for t, gone in zip(levels, out, strict=True) if gone and t]:
            self.notes.append(f"{', '.join(map(repr, ours[:3]))} missing")
        self.dropped = [t for t, gone in zip(levels, out, strict=True) if gone and t]
        tokens = sorted({low[i] for i in np.flatnonzero(out)} | (MISSING - kept) | asked)
        self.form = ColumnFormat(
            "number", absent=tuple(tokens), gaps=self.gaps, case_sensitive=self.form.case_sensitive
        )
        return out

    def _kept(self) -> set[str]:
        """Return strings, in small letters, that are values: those that the file declares too."""
        declared = {level.strip().lower() for level in self.raw.levels}
        return set(self.reading.not_missing) | (declared - {"?", ""} - set(self.reading.missing))

    def _words_held(
        self,
        levels: Sequence[str],
        counts: Array,
        words: Sequence[int],
        rest: Sequence[int],
        empty: int,
        wanted: bool,
    ) -> set[str]:
        """Return the words, in small letters, that are values: none among numbers and dates.

        A word is a value where it is frequent. "none" and "nil" may well be an answer, as is any
        word in a column that also has empty cells; the other words are one if they are as frequent
        as what surrounds them.
        """
        others = [levels[i] for i in rest]
        if not others or (not wanted and self._not_words(others, counts[list(rest)])):
            return set()
        total = int(counts[[*words, *rest]].sum())
        usual = counts[list(rest)].sum() / len({folded(text) for text in others})
        frequency: dict[str, int] = defaultdict(int)
        for i in words:
            frequency[levels[i].lower()] += int(counts[i])
        markers = {text.lower() for text in self.hints.markers if text in levels}
        return {
            word
            for word, count in frequency.items()
            if word not in markers
            and (
                count >= 0.2 * total
                or 2 * count >= usual
                or (count >= 0.05 * total and (word in ("none", "nil") or empty > 0))
            )
        }

    def _not_words(self, others: Sequence[str], counts: Array) -> bool:
        """Return whether most of these strings are numbers, or all of them dates or quantities."""
        number, _ = choose_numbers(others, self.reading.decimal, self.reading.thousands)
        if number is not None:
            readable = np.isfinite(read_numbers(others, number))
            if 2 * counts[readable].sum() > counts.sum():
                return True
        if choose_date(others, ())[0] is not None:
            return True
        signs = (self.reading.decimal, self.reading.thousands, self.hints.decimal)
        return choose_unit(others, *signs, fewest=self.fewest) is not None

    def _tell_words(
        self, levels: Sequence[str], counts: Array, words: Sequence[int], dropped: set[int]
    ) -> None:
        for i in words:
            level, count = levels[i], int(counts[i])
            rule = (
                f"missing (not_missing={level} keeps it)"
                if i in dropped
                else f"kept as a level (missing={level} drops it)"
            )
            self.notes.append(f"{level!r} in {count:,} rows is {rule}")

    def _read_levels(self, plain: list[str], date: str, wanted: bool) -> Array:
        """Return distinct strings as numbers, NaN where one is none, and note the format."""
        blank = np.full(len(plain), np.nan)
        if not plain:
            return blank
        if date:
            self._found("date", date=date)
            return self._dated(plain)
        if self.declared != "category" and says_yes_or_no(plain):
            self._found("yes/no")
            return self.form.numbers(plain)
        reading = self.reading
        number, unsure = choose_numbers(
            plain, reading.decimal, reading.thousands, self.hints.decimal
        )
        read = read_numbers(plain, number or NumberFormat())
        if np.isnan(read).all() and self.declared in ("", "date"):
            among = set(plain)
            order = [text for text in self.texts.iloc[:1_000].dropna() if text in among]
            found, rival = choose_date(plain, order, self.hints.day_first)
            if found is not None:
                self._found("date", date=found)
                if rival:
                    self.warnings.append(
                        f"{self.name!r}: {plain[0]} may be {found} or {rival}; read as {found} "
                        f"(types {self.name}=date:{rival} reads it the other way)"
                    )
                return self._dated(plain)
            if not wanted:
                self._tell_nearly_dates(plain)
        if np.isnan(read).all() and not wanted and self.declared == "":
            signs = (reading.decimal, reading.thousands, self.hints.decimal)
            measured = choose_unit(plain, *signs, fewest=self.fewest)
            if measured is not None:
                self._found("number", number=measured)
                self.measured = True
                return self.form.numbers(plain)
        if np.isnan(read).all():
            self._found("text")
            return blank
        self._found("number" if not np.isnan(read).any() else "text", number=number)
        if unsure and number is not None and self.form.kind == "number":
            other, word = (",", "comma") if number.decimal == "." else (".", "point")
            self.warnings.append(
                f"{self.name!r}: {plain[0]} may have a decimal {word}; read as "
                f"{read[0]:.10g} (decimal={other} reads it the other way)"
            )
        return read

    def _dated(self, plain: Sequence[str]) -> Array:
        """Return dates as numbers; say so where two digits of a year give a date to come."""
        days = self.form.numbers(plain)
        latest = int(days.argmax())
        today = int(np.datetime64("today").astype(int))  # in days since 1970, as all dates
        if "%y" in self.form.date and days[latest] > today:
            self.warnings.append(
                f"{self.name!r}: {plain[latest]} is read as {date_text(days[latest])}, as years "
                "from 00 to 68 are of this century and those from 69 to 99 of the last one. If "
                "that is wrong, write years in four digits"
            )
        return days

    def _tell_nearly_dates(self, plain: Sequence[str]) -> None:
        date, bad = nearly_dates(plain)
        if date:
            self.no_date = (self.texts == plain[bad]).to_numpy(bool, na_value=False)
            known = "dates" if date == ISO else f"dates written as {date}"
            self.warnings.append(
                f"{self.where(self.no_date)} is not a date, where most values are {known}; so none "
                f"is read as one. Put it right, or leave it out with missing={plain[bad]}"
            )

    def _found(self, kind: str, number: NumberFormat | None = None, date: str = "") -> None:
        absent = set(self.form.absent)
        if kind != "text":
            absent |= WORDS - self._kept()
        self.form = ColumnFormat(
            kind,
            number or NumberFormat(),
            date,
            tuple(sorted(absent)),
            self.form.gaps if kind in ("number", "text") else (),
            self.form.case_sensitive,
        )
        if kind in ("date", "yes/no"):
            self.declared = kind

    # ------------------------------------------------------------------ what others ask

    def where(self, mask: Array) -> str:
        """Return the place and the value of the first row that a mask is true for."""
        row = int(mask.argmax())
        shown = (
            self.said(self.numbers[row])
            if self.texts is None
            else shorten(str(self.texts.iloc[row]))
        )
        return f"{self.path}, row {row + 1}, column {self.name!r}: {shown}"

    def mixed(self) -> str:
        """Return why strings that look like numbers are not read as such, ``""`` for words."""
        units = [] if self.texts is None else units_of(self.levels[:1_000])
        # Streets are not units: few of these have many numbers each.
        if not 2 <= len(units) <= 6 or len(self.levels) < 3 * len(units):
            return ""
        return (
            f"numbers with {', '.join(map(repr, filter(None, units)))}"
            f"{' and without a unit' if units[0] == '' else ''}, which are read as numbers only if "
            "all of them have the same unit"
        )

    def kept_by(self) -> str:
        """Return how to keep strings that are taken as missing, ``""`` if there are none."""
        if not self.dropped:
            return ""
        low = dict.fromkeys(text.lower() for text in self.dropped)
        names = ",".join(f'"{text}"' if "," in text else text for text in [*low][:8])
        return (
            f" ({', '.join(map(repr, self.dropped[:8]))} taken as missing; not_missing={names} "
            "keeps such values)"
        )

    def require_finite(self, target: bool = False) -> None:
        """Refuse infinite numbers.

        Args:
            target: Whether the column is to be predicted.

        Raises:
            TableError: There is one.
        """
        without = " of the targets" if target else f" with types {self.name}=ignore"
        infinite = np.isinf(self.numbers)
        if infinite.any():
            raise TableError(
                f"{self.where(infinite)} is infinite as a float64 "
                f"({int(infinite.sum())} such rows). Put the value right, leave the cell empty, "
                f"or leave the column out{without}."
            )

    def categories(self) -> tuple[Array, tuple[str, ...]]:
        """Return codes, -1 where missing, and levels in order; those equal but for case are one."""
        if not self.present:
            return np.full(len(self.absent), -1, dtype=np.int64), ()
        if self.texts is None or (self.form.kind == "number" and not self._codes_of_digits()):
            self.require_finite()
            codes, values = pd.factorize(self.numbers, sort=True)
            return codes.astype(np.int64), tuple(texts_of(values, self.declared == "date"))
        if self.form.kind != "date":
            self.form = replace(self.form, kind="text")
        counts = np.bincount(self.codes[self.codes >= 0], minlength=len(self.levels))
        groups: dict[str, list[int]] = defaultdict(list)
        for i, level in enumerate(self.levels):
            groups[self.form.key(level)].append(i)
        named = {}
        for group in groups.values():
            # The most frequent spelling; the first in order where several are.
            best = min(group, key=lambda i: (-counts[i], self.levels[i]))
            named[self.levels[best]] = group
        order = sorted(named)
        to = np.full(len(self.levels) + 1, -1, dtype=np.int64)
        for code, name in enumerate(order):
            to[named[name]] = code
        merged = [(n, [self.levels[i] for i in g if self.levels[i] != n]) for n, g in named.items()]
        told = [f"{', '.join(others[:2])} is {name}" for name, others in merged if others]
        if told:
            more = ", ..." if len(told) > 3 else ""
            self.notes.append(f"{'; '.join(told[:3])}{more} (case_sensitive=true keeps them apart)")
        return to[self.codes], tuple(order)

    def _codes_of_digits(self) -> bool:
        """Return whether strings are more than their numbers: ``007``, or an id of 18 digits."""
        digits = [level for level in self.levels if level.isdecimal()]
        padded = any(level[0] == "0" and len(level) > 1 for level in digits)
        long = any(len(level) > 15 for level in digits)
        if long:
            return True
        # Where both 01 and 1 occur, they are one level.
        return padded and len(set(read_numbers(self.levels, self.form.number))) == len(self.levels)

    @property
    def padded(self) -> bool:
        """Whether numbers of one length begin with zeros, as postal codes do."""
        if self.texts is None or self.form.kind != "number":
            return False
        return (
            len({len(level) for level in self.levels}) == 1
            and all(level.isdecimal() for level in self.levels)
            and any(level[0] == "0" for level in self.levels)
            and len(self.levels[0]) > 1
        )

    @property
    def rounded(self) -> bool:
        """Whether strings of more digits than a float64 has differ."""
        return (
            self.texts is not None
            and len(self.levels) > 1
            and any(sum(map(str.isdigit, level)) > 15 for level in self.levels)
        )

    @property
    def long_ids(self) -> bool:
        """Whether whole numbers that differ from row to row are about equal as float64."""
        if not self.rounded or not all(level.isdecimal() for level in self.levels):
            return False
        known = self.numbers[~self.absent]
        alike = len(np.unique(known)) < len(self.levels) or np.ptp(known) < 1e-9 * known.max()
        return alike and len(self.levels) >= max(10, 0.9 * self.present)

    @property
    def whole(self) -> bool:
        """Whether all numbers are whole."""
        known = self.numbers[~self.absent]
        return bool((known == np.floor(known)).all())

    def said(self, value: float, digits: int = 6) -> str:
        """Return one of its numbers for people."""
        return date_text(value) if self.declared == "date" else f"{value:.{digits}g}"

    def range(self) -> str:
        """Return the least and the largest value."""
        known = self.numbers[~self.absent]
        return f"{self.said(known.min(), 4)} to {self.said(known.max(), 4)}"
