"""Which of several runs to use: the best on the validation split."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ntkmtl.bench.runs import Run

__all__ = ["best_run"]


def best_run(runs: Sequence[Run]) -> Run | None:
    """Return the run with the best mean rank over metrics on the validation split.

    The test split takes no part, so the winner's numbers in the table stay honest. Single-task
    networks predict one task each and are left out, as are runs that kept no network.

    Args:
        runs: Complete runs of one problem.

    Returns:
        The run, the first of equals; None where there is none to choose.
    """
    chosen = [run for run in runs if run.config.single_task is None and run.result.model]
    if not chosen:
        return None
    metrics = chosen[0].config.metrics
    if any(run.config.metrics != metrics for run in chosen):
        return None

    def mean_rank(run: Run) -> float:
        return statistics.fmean(
            sum(
                other.result.val[place] > run.result.val[place]
                if metric.higher_is_better
                else other.result.val[place] < run.result.val[place]
                for other in chosen
            )
            for place, metric in enumerate(metrics)
        )

    return min(chosen, key=mean_rank)
