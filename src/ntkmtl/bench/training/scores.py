"""How a multi-task network performs against the single-task networks, during training.

Nothing here looks at the test split: methods that learn from scores, and the
search of settings, must not see it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntkmtl.bench.runs import CONFIG, RunFileError, load_run
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ntkmtl.bench.problems.base import Metric
    from ntkmtl.bench.runs import RunMetric

__all__ = ["check_baseline", "read_baseline", "task_scores"]


def check_baseline(baseline: Sequence[float], metrics: Sequence[Metric | RunMetric]) -> None:
    """Check that Delta-m can be measured against a baseline.

    Args:
        baseline: One number per metric.
        metrics: The metrics.

    Raises:
        ValueError: There are more or fewer numbers than metrics, or one is not positive or not
            finite.
    """
    if len(baseline) != len(metrics):
        raise ValueError(
            f"the baseline must hold one number for each of {len(metrics)} metrics. "
            f"Found {len(baseline)}."
        )
    for metric, value in zip(metrics, baseline, strict=True):
        # Relative to a negative number, better would count as worse.
        if value <= 0 or not math.isfinite(value):
            raise ValueError(
                f"the single-task network has {value} in {metric.name}, which Delta-m cannot be "
                "measured against: leave that metric out of the problem, or train longer"
            )


def task_scores(
    values: Sequence[float],
    baseline: Sequence[float],
    metrics: Sequence[RunMetric],
    tasks: Sequence[str],
) -> Tensor:
    """Return Delta-m of each task in percent, the mean over the task's metrics; lower is better.

    Args:
        values: One number per metric.
        baseline: The same of the single-task networks, all of them positive.
        metrics: The metrics.
        tasks: Names of the k tasks.

    Returns:
        float64 of shape (k,), NaN for a task that no metric judges.

    Example:
        >>> from ntkmtl.bench.runs import RunMetric
        >>> metrics = [RunMetric("error", "depth"), RunMetric("accuracy", "seg", "", True)]
        >>> task_scores([0.3, 60.0], [0.2, 50.0], metrics, ["seg", "depth"]).round().tolist()
        [-20.0, 50.0]
    """
    found = []
    for task in tasks:
        own = [place for place, metric in enumerate(metrics) if metric.task == task]
        if not own:
            found.append(math.nan)
            continue
        score = delta_m(
            [values[place] for place in own],
            [baseline[place] for place in own],
            [metrics[place].higher_is_better for place in own],
        )
        found.append(float(score))
    return torch.tensor(found, dtype=torch.float64)


def read_baseline(metrics: Sequence[Metric], folders: Mapping[str, Path]) -> tuple[float, ...]:
    """Return the validation metrics of the single-task networks of one seed.

    Args:
        metrics: The problem's metrics.
        folders: The complete runs of the single-task networks, by task.

    Returns:
        One number per metric.

    Raises:
        ValueError: A metric's task has no run, or :func:`check_baseline` refuses a number.
        RunFileError: A run is incomplete or damaged.
    """
    values = []
    for metric in metrics:
        if metric.task not in folders:
            raise ValueError(f"there is no single-task network of {metric.task!r}")
        run = load_run(folders[metric.task])
        own = dict(zip((m.name for m in run.config.metrics), run.result.val, strict=True))
        if metric.name not in own:
            raise RunFileError(run.path / CONFIG, f"does not hold the metric {metric.name!r}")
        values.append(own[metric.name])
    check_baseline(values, metrics)
    return tuple(values)
