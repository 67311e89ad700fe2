"""What training rows say of columns, and new rows read by it: JSON values only, no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from ntkmtl.bench.problems._dates import date_texts
from ntkmtl.bench.problems.table._columns import Feature
from ntkmtl.bench.problems.table._formats import ISO, ColumnFormat, date_text, read_dates
from ntkmtl.bench.problems.table._model import RowBatch
from ntkmtl.bench.problems.table._new import read_new
from ntkmtl.bench.problems.table._raw import (
    Array,
    RawColumn,
    RawTable,
    TableError,
    number_text,
    shorten,
)

CLIP = 10.0
"""Standardized inputs are cut off at so many standard deviations from the training mean."""

HASHED = 32
"""Inputs that the letters of a text are hashed to."""


def standardization(values: Array) -> tuple[float, float]:
    """Return mean and standard deviation of what is not missing, (0, 1) if nothing is.

    Example:
        >>> import numpy as np
        >>> standardization(np.array([1.0, 3.0, np.nan, 5.0, 7.0]))[0]
        4.0
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0
    # Sums and squares of the largest floats are infinite: both are taken at a scale of 1.
    largest = float(np.abs(known).max()) or 1.0
    scaled = known / largest
    mean = float(scaled.mean())
    deviation = float(scaled.std())
    # What is left of a constant after rounding is not a spread.
    if deviation <= 1e-12 * max(abs(mean), 1e-300):
        return mean * largest, 0.0
    return mean * largest, deviation * largest


def scaled(values: Any, center: float, scale: float) -> Any:
    """Return values, an array or a tensor, less a center and in units of a scale."""
    # Halves: the difference of two of the largest floats would be infinite.
    return (values / 2 - center / 2) / scale * 2


def standardized(values: Array, center: float, scale: float) -> Array:
    """Return standardized values, 0 where missing, cut off at :data:`CLIP`."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = scaled(values, center, scale)
    found[np.isnan(values)] = 0.0
    return np.clip(found, -CLIP, CLIP)


@dataclass(frozen=True)
class FeatureEncoder:
    """A column that has been fitted on training rows: JSON values are all that it needs.

    Attributes:
        name: Name of the column.
        kind: ``number``, ``yes/no``, ``date``, ``season``, ``category`` or ``text``.
        form: How its values are written.
        center: Mean of numbers.
        scale: Their standard deviation.
        levels: Levels of a category that the training rows have, in the order of their names.
        own: Those that have an input of their own.
        means: For each level of a category with many, the mean of each target, standardized;
            nothing for the others.
        prior: Means for a level that is new.
        keep: Which of its inputs vary among the training rows.
        seen: Least and greatest number of the training rows, nothing for categories.
    """

    name: str
    kind: str
    form: ColumnFormat
    center: float = 0.0
    scale: float = 1.0
    levels: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    means: tuple[tuple[float, ...], ...] = ()
    prior: tuple[float, ...] = ()
    keep: tuple[int, ...] = ()
    seen: tuple[float, ...] = ()

    # ------------------------------------------------------------------ names and columns

    @property
    def names(self) -> list[str]:
        """Names of its inputs, those that are kept."""
        every = self._names()
        return [every[place] for place in self.keep]

    def _names(self) -> list[str]:
        missing = f"{self.name} missing"
        if self.kind in ("number", "yes/no"):
            return [self.name, missing]
        if self.kind in ("date", "season"):
            trend = [self.name] if self.kind == "date" else []
            return [*trend, *(f"{self.name} {part}" for part in _CALENDAR), missing]
        if self.kind == "text":
            return [*(f"{self.name} letters {i}" for i in range(HASHED)), missing]
        own = [f"{self.name}={level}" for level in self.own]
        targets = [f"{self.name} target {i}" for i in range(len(self.prior))]
        return [*own, f"{self.name} other", missing, *targets]

    def encode(self, feature: Feature) -> Array:
        """Return inputs, float32 of shape (rows, kept inputs)."""
        return self._all(feature)[:, list(self.keep)].astype(np.float32)

    def _all(self, feature: Feature) -> Array:
        if feature.numbers is not None:
            values = feature.numbers
            absent = np.isnan(values)
            columns = []
            if self.kind != "season":
                columns.append(
                    standardized(values, self.center, self.scale)
                    if self.scale > 0
                    else np.zeros(len(values))
                )
            if self.kind in ("date", "season"):
                columns += list(_calendar(values))
            return np.column_stack([*columns, absent])
        codes, levels = feature.codes, feature.levels
        assert codes is not None
        per_level = self._letters(levels) if self.kind == "text" else self._levels(levels)
        # The last row is that of a missing value.
        width = per_level.shape[1]
        blank = np.zeros((1, width))
        if self.prior:
            blank[0, width - len(self.prior) :] = self.prior
        whole = np.concatenate([per_level, blank])[codes]
        place = self._names().index(f"{self.name} missing")
        return np.insert(whole, place, codes < 0, axis=1)

    def _letters(self, levels: Sequence[str]) -> Array:
        from sklearn.feature_extraction.text import HashingVectorizer

        hashed = HashingVectorizer(n_features=HASHED, analyzer="char_wb", ngram_range=(2, 4))
        if not levels:
            return np.zeros((0, HASHED))
        found: Array = hashed.transform(levels).toarray() * np.sqrt(HASHED)
        return found

    def _levels(self, levels: Sequence[str]) -> Array:
        places = {self.form.key(level): i for i, level in enumerate(self.own)}
        known = {self.form.key(level): i for i, level in enumerate(self.levels)}
        found = np.zeros((len(levels), len(self.own) + 1 + len(self.prior)))
        for row, level in enumerate(levels):
            key = self.form.key(level)
            found[row, places.get(key, len(self.own))] = 1.0
            if self.prior:
                at = known.get(key)
                found[row, len(self.own) + 1 :] = self.prior if at is None else self.means[at]
        return found

    def unseen(self, feature: Feature) -> list[str]:
        """Return the levels of new rows that the training rows did not have."""
        if feature.codes is None or self.kind == "text":
            return []
        known = {self.form.key(level) for level in self.levels}
        used = np.unique(feature.codes[feature.codes >= 0])
        return [feature.levels[i] for i in used if self.form.key(feature.levels[i]) not in known]

    def far(self, feature: Feature) -> Array:
        """Return which numbers are far from all of the training rows: no network knows of them.

        They are further outside the range of these than the range is wide, or cut off at
        :data:`CLIP`.
        """
        values = feature.numbers
        if values is None or not self.seen or self.scale <= 0 or self.kind == "yes/no":
            return np.zeros(len(feature), dtype=bool)
        low, high = self.seen
        # Halves: the width of the range may be infinite.
        outside = np.maximum(low / 2 - values / 2, values / 2 - high / 2)
        with np.errstate(over="ignore", invalid="ignore"):
            cut = np.abs(scaled(values, self.center, self.scale)) > CLIP
            far: Array = (outside > 0) & (cut | (outside > high / 2 - low / 2))
        return far


_CALENDAR = (
    *("year cos 1", "year sin 1", "year cos 2", "year sin 2"),
    *("week cos 1", "week sin 1", "week cos 2", "week sin 2", "day cos", "day sin"),
)
YEAR = 365.2425


def _calendar(days: Array) -> Array:
    """Return the season of days since 1970, float64 of shape (10, rows), 0 where missing.

    These are two harmonics of year and week, and one of the day.
    """
    turns = 2 * np.pi * np.nan_to_num(days)
    angles = [turns / YEAR, 2 * turns / YEAR, turns / 7, 2 * turns / 7, turns]
    found = np.stack([f(angle) for angle in angles for f in (np.cos, np.sin)])
    found[:, np.isnan(days)] = 0.0
    return found


# ------------------------------------------------------------------------------------------------
# Fitting


def fit_encoder(
    feature: Feature, training: Array, targets: Sequence[Array] = (), max_categories: int = 100
) -> tuple[FeatureEncoder, Array]:
    """Fit the encoder of a column, and encode the column.

    Numbers are standardized by the training rows; a missing one gets the mean, and a further
    input says which are missing. Of a category's levels the most frequent in the training rows
    get an input each; the others share one, and so do the missing. Where some share one, further
    inputs are the means of the targets over each level, estimated for training rows from the
    other folds (:class:`sklearn.preprocessing.TargetEncoder`).

    Args:
        feature: The column.
        training: Positions of the training rows.
        targets: For each target its standardized values, shape (rows,), NaN where not known; for
            classes one for each class.
        max_categories: Most levels with an input of their own.

    Returns:
        The encoder, and inputs of all rows, float32 of shape (rows, inputs).
    """
    encoder = FeatureEncoder(feature.name, feature.kind, feature.form)
    if feature.numbers is not None:
        center, scale = standardization(feature.numbers[training])
        known = feature.numbers[training][~np.isnan(feature.numbers[training])]
        seen = (float(known.min()), float(known.max())) if len(known) else ()
        encoder = replace(encoder, center=center, scale=scale, seen=seen)
    elif feature.kind != "text":
        assert feature.codes is not None
        counts = np.bincount(
            feature.codes[training][feature.codes[training] >= 0], minlength=len(feature.levels)
        )
        # Stable, so that levels of equal count keep their order.
        order = np.argsort(-counts, kind="stable")
        varied = int((counts > 0).sum())
        own = sorted(int(code) for code in order[: min(max_categories, varied)])
        encoder = replace(
            encoder,
            levels=tuple(level for level, n in zip(feature.levels, counts, strict=True) if n),
            own=tuple(feature.levels[code] for code in own),
        )
        if varied > len(own) and targets:
            return _with_targets(encoder, feature, training, targets)
    return _kept(encoder, encoder._all(feature), training)


def _kept(encoder: FeatureEncoder, inputs: Array, training: Array) -> tuple[FeatureEncoder, Array]:
    """Leave out what does not vary among the training rows: it cannot be learned from."""
    seen = inputs[training]
    varies = (seen != seen[:1]).any(axis=0) if len(seen) else np.zeros(inputs.shape[1], bool)
    keep = tuple(int(place) for place in np.flatnonzero(varies))
    return replace(encoder, keep=keep), inputs[:, list(keep)].astype(np.float32)


def _with_targets(
    encoder: FeatureEncoder, feature: Feature, training: Array, targets: Sequence[Array]
) -> tuple[FeatureEncoder, Array]:
    """Add the means of targets over levels."""
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import TargetEncoder

    codes = feature.codes
    assert codes is not None
    trained = set(encoder.levels)
    known = [i for i, level in enumerate(feature.levels) if level in trained]
    means = np.zeros((len(known), len(targets)))
    crossed = np.zeros((len(training), len(targets)))
    for number, values in enumerate(targets):
        rows = np.flatnonzero(~np.isnan(values[training]) & (codes[training] >= 0))
        if len(rows) < 10 or np.ptp(values[training][rows]) == 0:
            continue
        some, labels = codes[training][rows].reshape(-1, 1), values[training][rows]
        for others, fold in KFold(5, shuffle=True, random_state=0).split(some):
            partly = TargetEncoder(target_type="continuous").fit(some[others], labels[others])
            crossed[rows[fold], number] = partly.transform(some[fold])[:, 0]
        fitted = TargetEncoder(target_type="continuous").fit(some, labels)
        means[:, number] = fitted.transform(np.array(known).reshape(-1, 1))[:, 0]
    encoder = replace(
        encoder,
        means=tuple(tuple(map(float, row)) for row in means),
        prior=tuple(0.0 for _ in targets),
    )
    inputs = encoder._all(feature)
    inputs[training, inputs.shape[1] - len(targets) :] = crossed
    return _kept(encoder, inputs, training)


# ------------------------------------------------------------------------------------------------
# A table as it was trained on, and new rows


class NewRows(NamedTuple):
    """Rows of another file, encoded as the training rows were.

    Attributes:
        inputs: The rows in the file's order, without labels.
        ids: Columns that go through to the predictions, by name.
        warnings: What is unlike the training rows: new levels, numbers far outside their range,
            missing and further columns, values that could not be read.
    """

    inputs: RowBatch
    ids: dict[str, list[str]]
    warnings: list[str]


@dataclass(frozen=True)
class FittedTarget:
    """A target as it was trained on.

    Attributes:
        name: Name of the column and of the task.
        classes: Names of the classes, empty for regression.
        center: Mean over the training rows, 0 for classification.
        scale: Standard deviation over the training rows, 1 for classification.
        unit: Unit of the error, where one is known.
        judged: Classes that have a test row; all for regression.
        date: Whether it is a date, as days since 1970.
    """

    name: str
    classes: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    unit: str = ""
    judged: int = 0
    date: bool = False

    @property
    def size(self) -> int:
        """Number of outputs of its head."""
        return len(self.classes) or 1

    def known(self, labels: Any) -> Any:
        """Return where there is a label, of an array or a tensor: no NaN, or no class of -1."""
        return labels >= 0 if self.classes else labels == labels

    def scaled(self, values: Any) -> Any:
        """Return standardized values, an array or a tensor, of those in the target's unit."""
        return scaled(values, self.center, self.scale)


@dataclass(frozen=True)
class FittedTable:
    """How rows become inputs of the network, and its outputs predictions.

    Attributes:
        encoders: One per column that the network sees.
        targets: What it predicts.
        ids: Names of the columns that go through to predictions.
        others: Names of the columns of the training file that are not used otherwise.
        reading: ``encoding``, ``separator`` and ``header`` of a CSV file.
    """

    encoders: tuple[FeatureEncoder, ...]
    targets: tuple[FittedTarget, ...]
    ids: tuple[str, ...]
    others: tuple[str, ...]
    reading: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(name for encoder in self.encoders for name in encoder.names)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FittedTable:
        """Recreate the table from :meth:`to_json`.

        Raises:
            TableError: It is something else.
        """
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise TableError(f"the saved encoders are damaged: {error!r}") from error

    # ------------------------------------------------------------------ new rows

    def encode(self, source: Any) -> NewRows:
        """Read and encode the rows of a file or a pandas data frame.

        Args:
            source: A CSV, Parquet or ARFF file, or a data frame. Targets may be missing.

        Raises:
            TableError: It cannot be read, or has none of the columns that the network sees.
        """
        raw, told = read_new(source, self.reading, {encoder.name for encoder in self.encoders})
        ids = {name: as_strings(raw.columns[name]) for name in self.ids if name in raw.columns}
        warnings = [*told, *self._about_columns(raw)]
        parts = []
        for encoder in self.encoders:
            feature, told = _feature(raw, encoder)
            warnings += told
            parts.append(encoder.encode(feature))
        inputs = np.concatenate(parts, axis=1)
        return NewRows(RowBatch(torch.from_numpy(inputs), ()), ids, warnings)

    def _about_columns(self, raw: RawTable) -> list[str]:
        needed = [encoder.name for encoder in self.encoders]
        absent = [name for name in needed if name not in raw.columns]
        if len(absent) == len(needed):
            raise TableError(
                f"{raw.path} has none of the columns that the network was trained on: "
                f"{shorten(', '.join(needed), 200)[1:-1]}. It has "
                f"{shorten(', '.join(raw.columns), 200)[1:-1]}."
            )
        known = {*needed, *self.ids, *self.others, *(target.name for target in self.targets)}
        extra = [name for name in raw.columns if name not in known]
        lost = [name for name in self.ids if name not in raw.columns]
        told = (
            (absent, f"not in {raw.path}; taken as missing in every row."),
            (lost, f"not in {raw.path}, so rows have no such id."),
            (extra, "not known from training, and not used."),
        )
        return [f"{_names(names)} {what}" for names, what in told if names]


def _names(names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"Column {listed} is" if len(names) == 1 else f"Columns {listed} are"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def as_strings(column: RawColumn) -> list[str]:
    """Return the values of a column as they are written beside predictions."""
    if column.numbers is None:
        return [str(text) for text in column.texts.fillna("")]
    if column.declared == "date":
        return date_texts(column.numbers)
    return ["" if np.isnan(v) else number_text(v) for v in column.numbers]


def _feature(raw: RawTable, encoder: FeatureEncoder) -> tuple[Feature, list[str]]:
    """Return a column as the encoder takes it, and sentences on what training rows did not have."""
    column, name = raw.columns.get(encoder.name), encoder.name
    levels_wanted = encoder.kind in ("category", "text")
    if column is None:
        if levels_wanted:
            return Feature(name, encoder.kind, codes=np.full(raw.rows, -1), levels=()), []
        return Feature(name, encoder.kind, numbers=np.full(raw.rows, np.nan)), []
    told = []
    if levels_wanted:
        codes, levels = _levels(column, encoder)
        feature = Feature(name, encoder.kind, encoder.form, codes=codes, levels=tuple(levels))
        missing = codes < 0
        if unseen := encoder.unseen(feature):
            rows = int(np.isin(codes, [levels.index(level) for level in unseen]).sum())
            listed = ", ".join(shorten(level, 30) for level in unseen[:5])
            told.append(
                f"Column {name!r} has {len(unseen)} {'level' if len(unseen) == 1 else 'levels'} "
                f"that no training row had ({listed}{', ...' if len(unseen) > 5 else ''}), in "
                f"{_rows(rows)}."
            )
    else:
        values, missing, bad = encoder.form.read(column)
        feature = Feature(name, encoder.kind, encoder.form, numbers=np.where(bad, np.nan, values))
        if bad.any():
            row = int(bad.argmax())
            shown = column.texts.iloc[row] if column.numbers is None else column.numbers[row]
            wanted = encoder.form.words() or f"a {encoder.form.kind}"
            told.append(
                f"Column {name!r}: {int(bad.sum()):,} values are not as in training ({wanted}) and "
                f"count as missing, the first in row {row + 1}: {shorten(str(shown), 40)}."
            )
        if (far := encoder.far(feature)).any():
            row = int(np.where(far, np.abs(values / 2 - encoder.center / 2), -1.0).argmax())
            date = encoder.form.kind == "date"
            low, high, worst = (
                date_text(value) if date else f"{value:,.6g}"
                for value in (*encoder.seen, float(values[row]))
            )
            told.append(
                f"Column {name!r} is far outside the training rows' range of {low} to {high} in "
                f"{_rows(int(far.sum()))}, the furthest in row {row + 1}: {worst}. "
                f"{'' if date else 'Is it in another unit? '}Predictions there are guesses."
            )
    if missing.any() and f"{name} missing" not in encoder.names:
        told.append(
            f"Column {name!r} is empty in {_rows(int(missing.sum()))}; no training row was."
        )
    return feature, told


def _levels(column: RawColumn, encoder: FeatureEncoder) -> tuple[np.ndarray, list[str]]:
    codes, levels, _ = encoder.form.levels(column)
    if encoder.form.kind == "date" and column.declared in ("date", ""):
        return codes, _as_trained(column, levels, encoder)
    if encoder.form.kind != "number" or column.numbers is not None:
        return codes, levels
    # 1 and 1.0 are one level of a category of numbers; what is not a number is a new level.
    numbers = encoder.form.numbers(levels) if levels else np.zeros(0)
    names = [
        level if np.isnan(number) else number_text(number)
        for level, number in zip(levels, numbers, strict=True)
    ]
    unique = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(unique)}
    to = np.array([*(place[name] for name in names), -1])
    return to[codes], unique


def _as_trained(column: RawColumn, levels: list[str], encoder: FeatureEncoder) -> list[str]:
    """Return levels that are dates as the training rows write the same time."""
    if not levels:
        return []
    written = {encoder.form.key(level) for level in encoder.levels}
    dates = ISO if column.declared == "date" else encoder.form.date
    known = dict(zip(_moments(encoder.levels, encoder.form.date), encoder.levels, strict=True))
    same = [known.get(moment, "") for moment in _moments(levels, dates)]
    return [
        level if encoder.form.key(level) in written else other or level
        for level, other in zip(levels, same, strict=True)
    ]


def _moments(levels: Sequence[str], dates: str) -> list[float]:
    """Return the microseconds of dates since 1970, NaN where a string is not a date."""
    found: list[float] = np.round(read_dates(levels, dates) * 86_400e6).tolist()
    return found
