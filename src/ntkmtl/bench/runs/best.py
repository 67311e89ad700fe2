"""Which of several runs to use, the best on the validation split, and how."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from ntkmtl.bench.runs.run import Run

__all__ = ["best_run", "use_command"]


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


def use_command(run: Run, source: str = "") -> str:
    """Return the command that uses the network of a run.

    Args:
        run: The run.
        source: Its problem as it was typed; a custom one is named by its class if empty.
    """
    config = run.config
    command = ["ntkmtl", "predict", str(run.path)]
    if ":" in source or not config.problem_class.startswith("ntkmtl."):
        command += ["--problem", source or config.problem_class]
    if config.problem == "table":
        command += ["--csv", "new.csv", "-o", "predictions.csv"]
    else:
        command += ["--split", "test", "-o", "predictions.npz"]
    return shlex.join(command)
