"""Columns as inputs of a network: what the training rows say is applied to all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ntkmtl.bench.problems.table._columns import Feature
from ntkmtl.bench.problems.table._raw import Array
from ntkmtl.bench.problems.table._values import ColumnFormat

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
    # What is left of a constant after rounding is no spread.
    if deviation <= 1e-12 * max(abs(mean), 1e-300):
        return mean * largest, 0.0
    return mean * largest, deviation * largest


def standardized(values: Array, center: float, scale: float) -> Array:
    """Return standardized values, 0 where missing, cut off at :data:`CLIP`."""
    # Halves: the difference of two of the largest floats would be infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: Array = (values / 2 - center / 2) / scale * 2
    scaled[np.isnan(values)] = 0.0
    return np.clip(scaled, -CLIP, CLIP)


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

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "form": self.form.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureEncoder:
        """Recreate the encoder from :meth:`to_json`."""
        found: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in content.items()
        }
        found["means"] = tuple(tuple(row) for row in content["means"])
        return cls(**{**found, "form": ColumnFormat.from_json(content["form"])})

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
        encoder = replace(encoder, center=center, scale=scale)
    elif feature.kind != "text":
        assert feature.codes is not None
        counts = np.bincount(
            feature.codes[training][feature.codes[training] >= 0], minlength=len(feature.levels)
        )
        # Stable, so that levels of equal count keep their order.
        order = np.argsort(-counts, kind="stable")
        seen = int((counts > 0).sum())
        own = sorted(int(code) for code in order[: min(max_categories, seen)])
        encoder = replace(
            encoder,
            levels=tuple(level for level, n in zip(feature.levels, counts, strict=True) if n),
            own=tuple(feature.levels[code] for code in own),
        )
        if seen > len(own) and targets:
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
