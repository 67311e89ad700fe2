"""Statistics of a series of measured weights: means, intervals and changes over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ntkmtl.errors import missing_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Priorities = Floats | None

__all__ = [
    "block_length",
    "center",
    "drift",
    "intervals",
    "means",
    "normalize",
    "settled",
    "switch",
]

RESAMPLES = 999
LEVEL = 0.95
PERMUTATIONS = 499
SIGNIFICANCE = 0.01
NEAR = math.log(1.1)
"""Largest difference of logarithms from the final values that counts as settled: 10 %."""
FAR = math.log(1.5)
"""Smallest difference of logarithms between two phases: a factor of 1.5."""


def _numpy() -> Any:
    try:
        import numpy
        import scipy.stats  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("ntkmtl.weigh", "weigh", error) from error
    return numpy


def center(logs: Floats) -> Floats:
    """Subtract from each row the offset common to its tasks, as the scale of weights is arbitrary.

    The offsets are the least-squares solution of ``x[t, i] = level[i] + offset[t]``. If no task is
    missing, an offset is the row's mean; a missing task does not shift the row's others.

    Args:
        logs: Log weights, shape (T, k), NaN for a task without a label.

    Example:
        >>> import numpy as np
        >>> center(np.array([[1.0, 3.0], [4.0, 6.0]])).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    np = _numpy()
    level = np.zeros(logs.shape[1])
    offset = np.nanmean(logs, axis=1, keepdims=True)
    for _ in range(1000):
        found = np.nanmean(logs - offset, axis=0)
        found -= found.mean()
        moved = float(np.abs(found - level).max())
        level = found
        offset = np.nanmean(logs - level, axis=1, keepdims=True)
        if moved < 1e-12:
            break
    centered: Floats = logs - offset
    return centered


def normalize(means: Floats, priorities: Priorities = None) -> Floats:
    """Return weights with mean 1 along the last dimension from mean logs, times priorities.

    Args:
        means: Mean log weights, shape (..., k).
        priorities: Priorities with mean 1, shape (k,); None for 1 each.

    Example:
        >>> import numpy as np
        >>> normalize(np.log(np.array([1.0, 3.0]))).round(12).tolist()
        [0.5, 1.5]
    """
    np = _numpy()
    weights = np.exp(means - means.max(axis=-1, keepdims=True))
    weights = weights / weights.mean(axis=-1, keepdims=True)
    found: Floats = weights if priorities is None else weights * priorities
    return found


def block_length(logs: Floats) -> int:
    """Return the block length for a bootstrap: the longest autocorrelation time of a task.

    At least T^(1/3), the usual length for independent values, and at most T / 5.

    Example:
        >>> import numpy as np
        >>> block_length(np.random.default_rng(0).normal(size=(64, 2)))
        4
    """
    np = _numpy()
    count = len(logs)
    rest = logs - np.nanmean(logs, axis=0)
    rest = np.where(np.isfinite(rest), rest, 0.0)
    longest = count ** (1 / 3)
    for task in rest.T:
        variance = float(task @ task)
        time = 1.0
        for lag in range(1, count // 2):
            if variance == 0.0 or (rho := float(task[lag:] @ task[:-lag]) / variance) <= 0:
                break
            time += 2 * rho
        longest = max(longest, time)
    return int(max(1, min(math.ceil(longest - 1e-9), count // 5)))


def _blocks(logs: Floats) -> tuple[Floats, Floats]:
    """Return the sums and the numbers of values of the blocks, each of shape (blocks, k)."""
    np = _numpy()
    pieces = np.array_split(logs, max(2, len(logs) // block_length(logs)))
    sums = np.stack([np.nansum(piece, axis=0) for piece in pieces])
    counts = np.stack([np.isfinite(piece).sum(axis=0) for piece in pieces]).astype(float)
    return sums, counts


def intervals(logs: Floats, priorities: Priorities) -> tuple[Floats, Floats]:
    """Return 95 % intervals of the constant weights, by a block bootstrap.

    Args:
        logs: Centered log weights, shape (T, k).
        priorities: As for :func:`normalize`.

    Returns:
        Lower and upper ends, shape (k,) each.
    """
    np = _numpy()
    from scipy.stats import bootstrap

    sums, counts = _blocks(logs)

    def weights(chosen: Floats, axis: int = -1) -> Floats:
        totals, numbers = sums[chosen].sum(axis=-2), counts[chosen].sum(axis=-2)
        # A resample without values of some task uses the mean of all its values.
        means = np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nanmean(logs, axis=0))
        found: Floats = np.moveaxis(normalize(means, priorities), -1, 0)
        return found

    found = bootstrap(
        (np.arange(len(sums)),),
        weights,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


def settled(logs: Floats) -> int:
    """Return the first row from which on the running geometric means stay within 10 %.

    Example:
        >>> import numpy as np
        >>> settled(np.array([[2.0, -2.0]] + 99 * [[0.0, 0.0]]))
        17
    """
    np = _numpy()
    known = np.isfinite(logs)
    numbers = np.cumsum(known, axis=0)
    sums = np.cumsum(np.where(known, logs, 0.0), axis=0)
    running = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.inf)
    away = (np.abs(running - running[-1]) > NEAR).any(axis=1)
    return int(away.nonzero()[0].max()) + 1 if away.any() else 0


def drift(logs: Floats) -> Floats:
    """Return the factors by which weights changed from the first half of the rows to the second.

    Example:
        >>> import numpy as np
        >>> drift(np.array([[0.0, 0.0], [1.0, -1.0]])).round(3).tolist()
        [2.718, 0.368]
    """
    np = _numpy()
    middle = len(logs) // 2
    early, late = (means(part, logs) for part in (logs[:middle], logs[middle:]))
    factor: Floats = np.exp(late - early)
    return factor


def means(part: Floats, logs: Floats) -> Floats:
    """Return the means of some rows; for a task without values there, the mean of all rows."""
    np = _numpy()
    numbers = np.isfinite(part).sum(axis=0)
    found: Floats = np.where(
        numbers > 0, np.nansum(part, axis=0) / np.maximum(numbers, 1), np.nanmean(logs, axis=0)
    )
    return found


def switch(logs: Floats) -> int | None:
    """Return the row at which the weights change from one level to another, if they do.

    A permutation test of the largest standardized difference of means before and after a row,
    summed over tasks. Blocks of rows are permuted, as neighboring rows are correlated.

    Args:
        logs: Centered log weights, shape (T, k).

    Returns:
        The first row of the second phase; None if more than 1 % of the permutations have as large a
        difference, or if no weight changes by a factor of 1.5.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(scale=0.1, size=(80, 1))
        >>> step = noise + np.where(np.arange(80) < 30, 0.0, 1.0)[:, None]
        >>> switch(np.hstack([step, -step])), switch(np.hstack([noise, -noise]))
        (30, None)
    """
    np = _numpy()
    filled = np.where(np.isfinite(logs), logs, np.nanmean(logs, axis=0))
    # The variance is estimated from differences of neighbors, which ignore a change of level.
    variance = np.square(np.diff(filled, axis=0)).mean(axis=0) / 2
    scaled = filled / np.sqrt(variance + 1e-12)
    # A series with a step looks correlated, so the block length is computed within each phase.
    found, at = _largest(scaled)
    length = max(block_length(filled[:at]), block_length(filled[at:]))
    blocks = np.array_split(scaled, max(2, len(scaled) // length))
    generator = np.random.default_rng(0)
    larger = sum(
        _largest(np.concatenate([blocks[i] for i in generator.permutation(len(blocks))]))[0]
        >= found
        for _ in range(PERMUTATIONS)
    )
    change = np.abs(filled[at:].mean(axis=0) - filled[:at].mean(axis=0)).max()
    if (larger + 1) / (PERMUTATIONS + 1) > SIGNIFICANCE or change < FAR:
        return None
    return at


def _largest(scaled: Floats) -> tuple[float, int]:
    """Return the largest difference of means before and after a row, and that row."""
    np = _numpy()
    count = len(scaled)
    margin = max(2, count // 10)
    before = np.arange(margin, count - margin + 1)[:, None]
    sums = np.cumsum(scaled, axis=0)
    first = sums[before[:, 0] - 1] / before
    second = (sums[-1] - sums[before[:, 0] - 1]) / (count - before)
    found = (before * (count - before) / count * np.square(second - first)).sum(axis=1)
    best = int(found.argmax())
    return float(found[best]), int(before[best, 0])
