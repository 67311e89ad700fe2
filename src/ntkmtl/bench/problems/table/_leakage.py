"""Features that give a target away: equal to it, or one of the two follows from the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ntkmtl.bench.problems.table._columns import Feature, Target
from ntkmtl.bench.problems.table._raw import Array

ROWS = 20_000
"""Rows that are looked at."""
LEAST = 20
"""Least number of rows with both values for a statement."""


def leaks(features: Sequence[Feature], targets: Sequence[Target], rows: Array) -> Iterator[str]:
    """Yield a sentence for each feature that gives a target away.

    Told are features that are equal to the target, rise or fall with it without exception, as its
    logarithm or its classes do, and those whose every level, each of several rows, has one value of
    the target.
    """
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    for target in targets:
        for feature in features:
            known, values = _known(feature, rows)
            some = known & target.labeled[rows]
            if some.sum() < LEAST:
                continue
            x, y = values[some], target.values[rows][some]
            if how := _how(x, y, feature.codes is None, not target.classes):
                yield (
                    f"{feature.name!r} {how} the target {target.name!r}: will it be known when you "
                    f"predict? If not, leave it out with types {feature.name}=ignore."
                )


def _known(feature: Feature, rows: Array) -> tuple[Array, Array]:
    if feature.numbers is not None:
        values = feature.numbers[rows]
        return ~np.isnan(values), values
    assert feature.codes is not None
    values = feature.codes[rows]
    return values >= 0, values


def _how(x: Array, y: Array, x_ordered: bool, y_ordered: bool) -> str:
    """Return what two columns have to do with each other, ``""`` for nothing certain."""
    if min(len(np.unique(x)), len(np.unique(y))) < 2:
        return ""
    if x_ordered and y_ordered and np.array_equal(x, y):
        return "is equal to"
    if _determines(x, y) and _determines(y, x):
        return "says the same as"
    if _determines(x, y):
        return "determines"
    if x_ordered and y_ordered and (_monotone(x, y) or _monotone(x, -y)):
        return "rises or falls without exception with"
    if y_ordered and _blocks(y, x):
        return "follows from"
    if x_ordered and _blocks(x, y):
        return "alone tells"
    return ""


def _determines(x: Array, y: Array) -> bool:
    """Whether rows of equal x have equal y, where that is no chance: two rows a level or more."""
    levels, codes = np.unique(x, return_inverse=True)
    if 2 * len(levels) > len(x) or len(levels) < 2:
        return False
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    return bool((y[order][1:][same] == y[order][:-1][same]).all())


def _monotone(x: Array, y: Array) -> bool:
    """Whether y never falls where x rises, both of many values."""
    if min(len(np.unique(x)), len(np.unique(y))) < LEAST // 2:
        return False
    order = np.lexsort((y, x))
    return bool((np.diff(y[order]) >= 0).all())


def _blocks(x: Array, y: Array) -> bool:
    """Whether each value of y is an interval of x: y is a step function of x."""
    if len(np.unique(x)) < LEAST // 2:
        return False
    order = np.argsort(x, kind="stable")
    levels = len(np.unique(y))
    if 2 * levels > len(y):
        return False
    changes = y[order][1:] != y[order][:-1]
    # Rows of equal x on both sides of a step are no step.
    crossing = changes & (x[order][1:] == x[order][:-1])
    return bool(changes.sum() == levels - 1 and not crossing.any())
