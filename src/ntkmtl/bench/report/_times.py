"""Times per epoch, without those of runs that shared their cores with something else."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ntkmtl.bench.report._table import SeedMean
from ntkmtl.bench.runs import SINGLE_TASK, Run

LEAST_CPU_SHARE = 0.9
"""Least share of its training time with a processor core for a run's time to count."""


def is_busy(run: Run) -> bool:
    """Return whether the machine was too busy for a run's time to count."""
    share = run.result.cpu_share
    return share is not None and share < LEAST_CPU_SHARE


class RunTimes:
    """Seconds per epoch by method and seed, as far as they count.

    Args:
        multi: Complete runs by method.
        single: Complete runs of the single-task baselines by task and seed, all of the tasks that
            there are: their time is the sum over the tasks.
        plain: The method that others are compared with.
    """

    def __init__(
        self,
        multi: Mapping[str, Iterable[Run]],
        single: Mapping[str, Mapping[int, Run]],
        plain: str,
    ) -> None:
        self._seconds: dict[str, list[float]] = {
            method: [run.result.seconds_per_epoch for run in group if not is_busy(run)]
            for method, group in multi.items()
        }
        by_seed: dict[int, list[float]] = defaultdict(list)
        for group in single.values():
            for seed, run in group.items():
                if not is_busy(run):
                    by_seed[seed].append(run.result.seconds_per_epoch)
        self._seconds[SINGLE_TASK] = [
            math.fsum(seconds) for seconds in by_seed.values() if len(seconds) == len(single)
        ]
        self._plain = self.seconds(plain)

    def seconds(self, method: str) -> float | None:
        """Return the mean over seeds, None where no time counts."""
        found: Sequence[float] = self._seconds.get(method, ())
        return statistics.fmean(found) if found else None

    def relative(self, method: str) -> SeedMean | None:
        """Return seconds per epoch over the mean of the plain sum, None where one is not known."""
        found = self._seconds.get(method)
        if not found or not self._plain:
            return None
        return SeedMean.of([seconds / self._plain for seconds in found])
