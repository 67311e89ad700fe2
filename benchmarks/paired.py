"""Differences that are paired by seed, with intervals, and what they say of a claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

__all__ = ["FAILS", "HOLDS", "UNKNOWN", "Difference", "difference"]

HOLDS, FAILS, UNKNOWN = "holds here", "does not", "cannot be told"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with the limits of its 95 % t interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"

    @property
    def verdict(self) -> str:
        """Whether the difference is negative."""
        return HOLDS if self.high < 0 else FAILS if self.low > 0 else UNKNOWN


def difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Difference | None:
    """Return the paired difference, None with fewer than two seeds of both.

    Example:
        >>> difference([1.0, 2.0, 3.0], [2.0, 4.0, 4.0])
        Difference(mean=-1.333..., low=-2.767..., high=0.100...)
    """
    found = [a - b for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    if len(found) < 2:
        return None
    mean = statistics.fmean(found)
    half = float(t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))
    return Difference(mean, mean - half, mean + half)
