"""The statistics of a study: paired tests, hierarchical bootstrap, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkmtl.errors import imports_for

__all__ = ["Interval", "Ranking", "bootstrap", "paired_p_values", "posthocs", "rank_test"]

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Ranking:
    """Ranks of methods over problems.

    Attributes:
        methods: Names.
        ranks: Mean rank of each, 1 is best.
        p_value: Friedman's test that all are alike.
        pairs: P-values of Nemenyi's test, method by method.
        problems: Number of problems.
    """

    methods: list[str]
    ranks: list[float]
    p_value: float
    pairs: list[list[float]]
    problems: int


def bootstrap(sources: Sequence[Sequence[Sequence[float]]], draws: int = DRAWS) -> Interval:
    """Return the mean over sources of paired differences, by a hierarchical bootstrap.

    A draw resamples the sources, with replacement; in each, every problem gives the mean of its
    seeds, resampled with replacement. Sources count alike, and so do the problems of one source.

    Args:
        sources: By source, by problem, the differences of the seeds.
        draws: Number of draws.

    Example:
        >>> bootstrap([[[1.0, 1.0]], [[3.0, 3.0]]])
        Interval(mean=2.0, low=1.0, high=3.0)
    """
    generator = np.random.default_rng(0)
    count, total = len(sources), np.zeros(draws)
    for _ in range(count):
        values = np.stack([_draw(problems, draws, generator) for problems in sources])
        total += values[generator.integers(count, size=draws), np.arange(draws)]
    low, high = np.quantile(total / count, [0.025, 0.975])
    mean = np.mean([np.mean([np.mean(seeds) for seeds in problems]) for problems in sources])
    return Interval(float(mean), float(low), float(high))


def _draw(problems: Sequence[Sequence[float]], draws: int, generator: np.random.Generator) -> Any:
    means = []
    for seeds in problems:
        values = np.asarray(seeds)
        means.append(values[generator.integers(len(values), size=(draws, len(values)))].mean(1))
    return np.mean(means, axis=0)


def paired_p_values(
    values: Mapping[str, Sequence[float | None]], reference: str
) -> dict[str, float]:
    """Return p-values of paired t-tests against one method, with Holm's correction.

    Args:
        values: Numbers by method, paired by their place; None for a run that diverged. A method
            with one of these, with fewer than two numbers, or always as far from the reference as
            in the first run is not tested.
        reference: The method that the others are compared with.

    Example:
        >>> p = paired_p_values({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.1, 3.9]}, "a")
        >>> {name: round(value, 4) for name, value in p.items()}
        {'b': 0.0033}
    """
    from scipy.stats import ttest_rel

    base, found = values[reference], {}
    for name, own in values.items():
        if name == reference or len(own) != len(base) or len(own) < 2 or None in (*own, *base):
            continue
        differences = np.subtract(np.asarray(own, float), np.asarray(base, float))
        if np.ptp(differences) > 0:
            found[name] = float(ttest_rel(own, base).pvalue)
    # Holm: the smallest p times their number, the next times one less; none below the one before.
    corrected, worst = {}, 0.0
    for place, name in enumerate(sorted(found, key=found.__getitem__)):
        worst = max(worst, min(1.0, found[name] * (len(found) - place)))
        corrected[name] = worst
    return corrected


def posthocs() -> Any:
    """Import scikit-posthocs."""
    with imports_for("ranking methods", "study"):
        import scikit_posthocs
    return scikit_posthocs


def rank_test(methods: Sequence[str], means: Sequence[Sequence[float]]) -> Ranking:
    """Rank methods over problems, and test their ranks (Friedman, then Nemenyi).

    Args:
        methods: Names, three or more.
        means: By problem, one number per method, lower is better.

    Raises:
        MissingExtraError: scikit-posthocs is not installed.

    Example:
        >>> found = rank_test(["a", "b", "c"], [[1, 2, 3], [1, 2, 3], [1, 3, 2]])
        >>> [round(rank, 2) for rank in found.ranks], round(found.p_value, 3)
        ([1.0, 2.33, 2.67], 0.097)
    """
    from scipy.stats import friedmanchisquare, rankdata

    table = np.asarray(means, dtype=np.float64)
    ranks = rankdata(table, axis=1).mean(axis=0)
    pairs = posthocs().posthoc_nemenyi_friedman(table).to_numpy()
    return Ranking(
        methods=list(methods),
        ranks=ranks.tolist(),
        p_value=float(friedmanchisquare(*table.T).pvalue),
        pairs=pairs.tolist(),
        problems=len(table),
    )
