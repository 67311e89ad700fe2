"""Medians, quartiles, and ratios of turns to the turns of plain training beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["median_interval", "ratios", "spread", "summarize"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        {'median': 3.0, 'lower': 2.0, 'upper': 4.0}
    """
    if len(values) == 1:
        return {"median": values[0], "lower": values[0], "upper": values[0]}
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper}


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for the median that needs no assumption on the distribution.

    It runs from the r-th smallest to the r-th largest value, with the largest r whose chance of
    holding the median is at least ``confidence``. Fewer than six values cannot reach 0.95; then it
    runs from the smallest to the largest.

    Example:
        >>> median_interval(list(range(1, 11)))
        (2, 9)
        >>> median_interval([3, 1, 2])
        (1, 3)
    """
    ordered = sorted(values)
    count = len(ordered)
    rank = 0
    tail = 0.0  # chance of at most `rank` values below the median
    while rank < count // 2:
        tail += math.comb(count, rank) * 0.5**count
        if 1.0 - 2.0 * tail < confidence:
            break
        rank += 1
    first = max(rank - 1, 0)
    return ordered[first], ordered[count - 1 - first]


def ratios(turns: Sequence[tuple[int, float]], base: Sequence[tuple[int, float]]) -> list[float]:
    """Return each turn's seconds over those of the base's turns just before and just after it.

    Args:
        turns: A contender's turns: place in the order of all turns, and seconds per step.
        base: The same for plain training. Places rise.

    Raises:
        ValueError: The base took no turn.

    Example:
        >>> ratios([(1, 3.0), (4, 6.0)], base=[(0, 1.0), (2, 2.0), (3, 4.0)])
        [2.0, 1.5]
    """
    if not base:
        raise ValueError("plain training took no turn, so there is nothing to compare with")
    found = []
    for place, seconds in turns:
        before = [s for p, s in base if p < place][-1:]
        after = [s for p, s in base if p > place][:1]
        found.append(seconds / statistics.fmean(before + after))
    return found


def summarize(
    turns: Sequence[tuple[int, float]], base: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    """Return seconds per step and their ratio to plain training.

    Args:
        turns: See :func:`ratios`.
        base: See :func:`ratios`.

    Returns:
        ``seconds`` (median, quartiles), ``extra`` (seconds on top of the base's), ``ratio`` (median
        of the pairwise ratios, 95 % interval), ``paired`` (those ratios), ``turns``.
    """
    paired = ratios(turns, base)
    seconds = spread([s for _, s in turns])
    lower, upper = median_interval(paired)
    median = statistics.median(paired)
    return {
        "seconds": seconds,
        "extra": statistics.median(
            [s - s / ratio for (_, s), ratio in zip(turns, paired, strict=True)]
        ),
        "ratio": {"median": median, "lower": lower, "upper": upper},
        "paired": [round(ratio, 5) for ratio in paired],
        "turns": len(turns),
    }
