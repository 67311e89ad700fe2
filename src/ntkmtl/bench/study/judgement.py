"""The records of a judgement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ntkmtl.bench.study.inference import Interval, Ranking

__all__ = ["MethodOnProblem", "Overall", "ProblemJudgement", "StudyJudgement", "mean_of"]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean, None where a number is missing or there is none.

    Example:
        >>> mean_of([1.0, 2.0]), mean_of([1.0, None]), mean_of([])
        (1.5, None, None)
    """
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class MethodOnProblem:
    """A method on one problem.

    Attributes:
        method: Its name.
        published: Delta-m in percent of each seed with published settings, None if it diverged.
        tuned: The same with the settings found; empty if it was not tuned.
        p_value: Of the paired t-test of tuned runs against those of the plain sum, with Holm's
            correction for the methods of this problem; None if it cannot be made.
        step_ratio: Time of a tuned training step over that of the plain sum.
        tuning_seconds: Time of its trials.
        learning_rate: The rate found, None if it was not tuned or is the recipe's.
        trials: Learning rate and Delta-m on the validation split of each trial, in percent.
        tasks: Delta-m of each metric in percent, mean over tuned seeds.
        tried: The same of each trial that did not diverge, on the validation split.
    """

    method: str
    published: list[float | None]
    tuned: list[float | None]
    p_value: float | None
    step_ratio: float | None
    tuning_seconds: float
    learning_rate: float | None
    trials: list[tuple[float, float | None]]
    tasks: list[float]
    tried: list[list[float]]

    @property
    def mean(self) -> float | None:
        """Mean over tuned seeds, None where one diverged or it was not tuned."""
        return mean_of(self.tuned)


@dataclass(frozen=True)
class ProblemJudgement:
    """One problem.

    Attributes:
        problem: Its name in the study.
        source: Where its data come from.
        metrics: Names of the metrics.
        tasks: Names of the tasks.
        single_task_rates: Learning rates found for the single-task networks.
        methods: The methods, the plain sum first.
    """

    problem: str
    source: str
    metrics: list[str]
    tasks: list[str]
    single_task_rates: dict[str, float]
    methods: list[MethodOnProblem]

    def of(self, method: str) -> MethodOnProblem | None:
        """Return a method's numbers, None if it was not trained here."""
        return next((row for row in self.methods if row.method == method), None)


@dataclass(frozen=True)
class Overall:
    """A method over all problems.

    Attributes:
        method: Its name.
        problems: Number of problems that it was tuned on.
        seeds: Least number of seeds on any.
        difference: Its Delta-m minus that of the plain sum, both tuned, in points, with a 95 %
            interval; None if there is no problem on which both are complete.
        step_ratio: Geometric mean of the time of a step over that of the plain sum.
        tuning_ratio: The same of the time of all trials.
        diverged: Problems on which a tuned run diverged.
    """

    method: str
    problems: int
    seeds: int
    difference: Interval | None
    step_ratio: float | None
    tuning_ratio: float | None
    diverged: list[str]


@dataclass(frozen=True)
class StudyJudgement:
    """What a study shows.

    Attributes:
        problems: Problem by problem.
        overall: Method by method, best first.
        ranking: Ranks and the test of Friedman and Nemenyi, None if it cannot be made.
        words: The judgement in sentences.
    """

    problems: list[ProblemJudgement]
    overall: list[Overall]
    ranking: Ranking | None
    words: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)
