"""Columns as numbers: what the training rows say is applied to all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ntkmtl.bench.problems.table._columns import Feature

__all__ = ["CLIP", "Encoded", "encode", "width_of"]

Array = npt.NDArray[Any]

CLIP = 10.0
"""Standardised inputs are cut off at so many standard deviations from the training mean."""


@dataclass(frozen=True)
class Encoded:
    """What the network sees.

    Attributes:
        inputs: float32 of shape (rows, columns).
        names: Name of each of its columns.
    """

    inputs: npt.NDArray[np.float32]
    names: tuple[str, ...]


def width_of(features: Sequence[Feature], max_categories: int) -> int:
    """Return the largest number of columns that the features can take."""
    numbers = sum(2 for f in features if f.codes is None)
    return numbers + sum(
        min(len(f.levels), max_categories) + 2 for f in features if f.codes is not None
    )


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


def encode(features: Sequence[Feature], training: Array, max_categories: int = 20) -> Encoded:
    """Encode features.

    Numbers are standardized by the training rows; a missing one gets the mean, and a further
    column says which are missing. Of a category's levels the most frequent in the training rows
    get a column each; the others share one, and so do the missing.

    Args:
        features: The columns.
        training: Positions of the training rows.
        max_categories: Most levels that get their own column.
    """
    columns: list[Array] = []
    names: list[str] = []

    def add(name: str, values: Array) -> None:
        # What does not vary among the training rows cannot be learned from.
        seen = values[training]
        if len(seen) and (seen != seen[0]).any():
            columns.append(values.astype(np.float32))
            names.append(name)

    for feature in features:
        if feature.numbers is not None:
            absent = np.isnan(feature.numbers)
            mean, deviation = standardization(feature.numbers[training])
            if deviation > 0:
                # Halves: the difference of two of the largest floats would be infinite.
                with np.errstate(over="ignore"):
                    scaled = (feature.numbers / 2 - mean / 2) / deviation * 2
                scaled[absent] = 0.0
                add(feature.name, np.clip(scaled, -CLIP, CLIP))
            if absent.any():
                add(f"{feature.name} missing", absent.astype(np.float32))
            continue
        codes = feature.codes
        assert codes is not None
        seen = codes[training]
        counts = np.bincount(seen[seen >= 0], minlength=len(feature.levels))
        # Stable, so that levels of equal count keep their order.
        order = np.argsort(-counts, kind="stable")
        own = [int(code) for code in order[:max_categories] if counts[code] > 0]
        for code in sorted(own):
            add(f"{feature.name}={feature.levels[code]}", (codes == code).astype(np.float32))
        other = (codes >= 0) & ~np.isin(codes, own)
        if other.any():
            add(f"{feature.name} other", other.astype(np.float32))
        if (codes < 0).any():
            add(f"{feature.name} missing", (codes < 0).astype(np.float32))
    inputs = np.empty((len(training) if not features else _rows(features[0]), len(columns)), "f4")
    for place in range(len(columns)):
        inputs[:, place] = columns[place]
    return Encoded(inputs, tuple(names))


def _rows(feature: Feature) -> int:
    values = feature.codes if feature.numbers is None else feature.numbers
    assert values is not None
    return len(values)
