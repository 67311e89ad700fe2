"""What a user asks of a table: names, types and numbers, checked before anything is read."""

from __future__ import annotations

import csv
import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ntkmtl.bench.problems.table._raw import RawTable, TableError, clean_name, shorten
from ntkmtl.bench.problems.table._read import check_reading
from ntkmtl.bench.problems.table._values import Reading

_Method = TypeVar("_Method", bound=Callable[..., None])

FEATURE_TYPES = ("number", "category", "date", "text", "id", "ignore")
TARGET_TYPES = ("regression", "classification")


@dataclass(frozen=True)
class Roles:
    """What columns are for, as a user names them.

    Attributes:
        targets: Columns to predict.
        types: Names of columns and their types, instead of those found.
        split: The column that says train, val or test.
        group: The column whose equal values stay on one side of the split.
        time: The column in whose order rows are split.
    """

    targets: tuple[str, ...]
    types: tuple[tuple[str, str], ...]
    split: str | None = None
    group: str | None = None
    time: str | None = None

    def named_in(self, table: RawTable) -> Roles:
        """Return the roles with names as the table has them.

        Raises:
            TableError: A column is not there, or is asked to be two things.
        """
        known = list(table.columns)
        if not self.targets:
            raise TableError(
                "say which columns to predict, as --target NAME or --targets NAME,NAME. "
                f"{table.path} has {_listed(known)}"
            )

        def named(name: str, role: str) -> str:
            if name in known:
                return name
            if clean_name(name) in known:
                return clean_name(name)
            raise TableError(_unknown(table, name, role))

        targets = tuple(named(name, "target") for name in self.targets)
        if len(set(targets)) != len(targets):
            raise TableError(f"a target is named twice in {', '.join(targets)}")
        types = {named(name, "column of types"): kind for name, kind in self.types}
        special = {
            what: None if name is None else named(name, f"{what} column")
            for what, name in (("split", self.split), ("group", self.group), ("time", self.time))
        }
        given = {what: name for what, name in special.items() if name is not None}
        if len(given) > 1:
            raise TableError(
                "rows are split by one column: "
                f"{', '.join(f'{w} {n!r}' for w, n in given.items())} are too many."
            )
        for what, name in given.items():
            if name in targets:
                raise TableError(f"{name!r} cannot be both a target and the {what} column")
        for name, kind in types.items():
            allowed = TARGET_TYPES if name in targets else FEATURE_TYPES
            if kind.partition(":")[0] not in (*allowed, *(("date",) if ":" in kind else ())):
                role = "target" if name in targets else "feature"
                raise TableError(
                    f"the type of the {role} {name!r} must be {' or '.join(allowed)}. "
                    f"Found {kind!r}."
                )
        return Roles(targets, tuple(types.items()), **special)


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(names), 300)[1:-1]


def _unknown(table: RawTable, name: str, role: str) -> str:
    known = list(table.columns)
    close = difflib.get_close_matches(name, known, n=1) or [
        k for k in known if k.lower() == name.lower()
    ]
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if not close and "," in name:
        hint = ". Name a column that has a comma by --target, or in double quotes."
    more = f" {table.doubt}" if table.doubt else ""
    return (
        f"{table.path} has no column {shorten(name)} to be a {role}{hint} "
        f"It has {_listed(known)}{more}"
    )


@dataclass(frozen=True)
class Shares:
    """How rows are shared out where no column says so.

    Attributes:
        val: Share of the rows for validation.
        test: Share of the rows for testing.
        seed: Seed of what is random.
    """

    val: float
    test: float
    seed: int

    def rows(self, count: int) -> tuple[int, int]:
        """Return the rows for validation and for testing among so many."""
        return max(1, round(self.val * count)), max(1, round(self.test * count))


class Asked(NamedTuple):
    """What determines the data; all of it is hashable so that a table is read once."""

    path: Path
    stamp: tuple[int, int]
    roles: Roles
    shares: Shares
    reading: Reading
    encoding: str
    separator: str | None
    header: bool
    max_categories: int


@dataclass(frozen=True)
class TableOptions:
    """What a user asks of a table.

    Attributes:
        csv: The file: .csv, .tsv, .txt, .parquet, .pq or .arff.
        targets: Names of the columns to predict, as a list, or with commas between them; a name
            that has a comma stands in double quotes.
        types: Types of columns instead of those found, as a mapping or as ``"a=regression,
            b=category"``. Targets are ``regression`` or ``classification``; other columns
            ``number``, ``category``, ``date``, ``date:%d.%m.%Y`` (or another format), ``text`` (its
            letters are hashed), ``id`` (goes through to predictions) or ``ignore``.
        split_column: A column that says train, val or test.
        group: A column whose equal values stay on one side of the split.
        time: A column in whose order rows are split, the latest for testing. Without any of the
            three, rows are split at random, and each class is shared out to all sides.
        split_seed: Seed of what is random in that. The runs of a comparison share one split.
        val: Share of the rows for validation.
        test: Share of the rows for testing.
        missing: Further strings that stand for a missing value, numbers in whatever form.
        not_missing: Strings that never do, as ``none`` or ``NA``.
        case_sensitive: Whether levels that are equal but for case are two.
        encoding: Encoding of a CSV or ARFF file.
        separator: Separator of a CSV file, a space for any number of them; found if None.
        header: Whether the first line of a CSV file names the columns.
        decimal: Decimal sign, found column by column if None.
        thousands: Sign between groups of digits, found if None.
        max_categories: Most levels of a category that get their own input; the rest share
            one, and all have the means of the targets over each level.
        width: Width of the network, by the number of rows if None.
        depth: Number of its layers.
        dropout: Probability of dropping an entry of a hidden layer.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc``,
            ``ple`` or ``dselect-k``, over the perceptron. See
            :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.
    """

    csv: str | Path | None = None
    targets: str | Sequence[str] = ()
    types: str | Mapping[str, str] | None = None
    split_column: str | None = None
    group: str | None = None
    time: str | None = None
    split_seed: int = 0
    val: float = 0.15
    test: float = 0.15
    missing: str | Sequence[str] = ()
    not_missing: str | Sequence[str] = ()
    case_sensitive: bool = False
    encoding: str = "utf-8"
    separator: str | None = None
    header: bool = True
    decimal: str | None = None
    thousands: str | None = None
    max_categories: int = 100
    width: int | None = None
    depth: int = 2
    dropout: float = 0.1
    architecture: str = "hard"
    architecture_options: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(str(self.csv)).expanduser()

    def of_data(self) -> Asked:
        """Check all but the architecture, and return what determines the data.

        Raises:
            TableError: There is no file, or an option is of another form or out of range.
        """
        if self.csv is None:
            raise TableError("say which file to read, as --csv FILE (CSV, Parquet or ARFF)")
        self._check_numbers()
        separator = _text(self.separator)
        check_reading(self.path, self.encoding, separator, self.decimal, self.thousands)
        targets, types = names_in(self.targets), types_in(self.types)
        try:
            stat = self.path.stat()
        except OSError as error:
            raise TableError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return Asked(
            self.path.resolve(),
            (stat.st_mtime_ns, stat.st_size),
            Roles(targets, types, _text(self.split_column), _text(self.group), _text(self.time)),
            Shares(float(self.val), float(self.test), self.split_seed),
            Reading(
                tuple(text.strip().lower() for text in names_in(self.missing)),
                tuple(text.strip().lower() for text in names_in(self.not_missing)),
                self.decimal,
                self.thousands,
                self.case_sensitive,
            ),
            self.encoding,
            separator,
            self.header,
            self.max_categories,
        )

    def _check_numbers(self) -> None:
        for key, (low, high) in _RANGES.items():
            value = getattr(self, key)
            if value is None and key == "width":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise TableError(
                    f"{key} must be a whole number from {low} to {high}. Found {value!r}."
                )
        for key in ("val", "test", "dropout"):
            share = getattr(self, key)
            if not isinstance(share, int | float) or isinstance(share, bool):
                raise TableError(f"{key} must be a number. Found {share!r}.")
            if not 0 <= share < 1 or (share == 0 and key != "dropout"):
                raise TableError(f"{key} must be a share between 0 and 1. Found {share!r}.")
        if self.val + self.test >= 1:
            raise TableError(
                f"val and test leave nothing to train on. Found {self.val} and {self.test}."
            )
        for key in ("header", "case_sensitive"):
            if not isinstance(getattr(self, key), bool):
                raise TableError(f"{key} must be true or false. Found {getattr(self, key)!r}.")


def takes_fields(initialize: _Method) -> _Method:
    """Let an ``__init__`` that makes :class:`TableOptions` say that it takes its fields."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    fields = inspect.signature(TableOptions)
    said = fields.replace(parameters=[own, *fields.parameters.values()])
    setattr(initialize, "__signature__", said)  # noqa: B010 - functions declare no such attribute
    return initialize


def _text(given: object) -> str | None:
    """Return a name as a string: the command line reads 5 as a number."""
    return None if given is None else str(given)


_RANGES = {
    "split_seed": (0, 2**63 - 1),
    "max_categories": (1, 1_000),
    "width": (1, 8_192),
    "depth": (1, 20),
}
"""Options that are whole numbers, and their least and largest values."""


def names_in(given: Any) -> tuple[str, ...]:
    """Return names that are given as a list, or with commas between them.

    A name that has a comma stands in double quotes, or in a JSON list. A line break within a name
    is a space, as in the names of columns.

    Example:
        >>> names_in("a, b")
        ('a', 'b')
        >>> names_in('"price, EUR",b'), names_in('["price, EUR"]'), names_in(["price, EUR"])
        (('price, EUR', 'b'), ('price, EUR',), ('price, EUR',))
    """
    if isinstance(given, str):
        if given.lstrip().startswith("["):
            try:
                return tuple(str(name) for name in json.loads(given))
            except (ValueError, TypeError, RecursionError):
                pass  # a name may begin with a bracket
        line = " ".join(given.splitlines())
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error as error:
            raise TableError(
                f"names are not a list with commas: {error}. Found {shorten(given)}."
            ) from error
        return tuple(cell.strip() for cell in cells if cell.strip())
    if given is None:
        return ()
    if not isinstance(given, Sequence):
        # The command line reads 5 as a number: a column may be named 5.
        return (json.dumps(given) if isinstance(given, bool) else str(given),)
    return tuple(str(name) for name in given)


def types_in(given: str | Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return pairs of name and type.

    Raises:
        TableError: They are not written NAME=TYPE, or a type is unknown or given twice.

    Example:
        >>> types_in("a=number, b=date:%d.%m.%Y")
        (('a', 'number'), ('b', 'date:%d.%m.%Y'))
        >>> types_in('"a, b=number"')
        (('a, b', 'number'),)
    """
    if given is None:
        return ()
    found: dict[str, str] = {}
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise TableError(f"types begin as JSON and are none: {error}") from error
    if isinstance(given, Mapping):
        found = {str(name): str(kind) for name, kind in given.items()}
    else:
        for pair in names_in(given):
            name, equals, kind = pair.rpartition("=")
            if not (name.strip() and equals):
                raise TableError(f"types are written NAME=TYPE,NAME=TYPE. Found {shorten(given)}.")
            if name.strip() in found:
                raise TableError(f"the type of {name.strip()!r} is given twice")
            found[name.strip()] = kind.strip()
    for name, kind in found.items():
        word, colon, form = kind.partition(":")
        if word not in FEATURE_TYPES + TARGET_TYPES or (colon and (word != "date" or not form)):
            raise TableError(
                f"the type of {name!r} must be {', '.join(TARGET_TYPES)} for a target, and "
                f"{', '.join(FEATURE_TYPES)} or date:FORMAT (date:%d.%m.%Y) for another column. "
                f"Found {kind!r}."
            )
    return tuple(sorted(found.items()))
