"""Judging a study: which methods differ from the plain sum of the losses, their cost, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ntkmtl.bench.report._words import count
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.search.records import RATE
from ntkmtl.bench.study.inference import (
    Interval,
    Ranking,
    bootstrap,
    paired_p_values,
    rank_test,
)
from ntkmtl.bench.study.plan import REFERENCE
from ntkmtl.bench.study.results import FinalRun, MethodResult, Setting
from ntkmtl.metrics import delta_m

__all__ = ["MethodOnProblem", "Overall", "ProblemJudgement", "StudyJudgement", "judge", "mean_of"]

FEW_SEEDS, FEW_SOURCES = 6, 5
"""With fewer seeds or sources, sentences say that results are uncertain."""


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
    words: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def judge(results: Sequence[MethodResult], diagram: Sequence[str] = ()) -> StudyJudgement:
    """Judge the results of a study.

    Tuned runs are judged, as Delta-m against tuned single-task networks, the mean over their
    seeds. Differences are paired by seed.

    Args:
        results: The results, of any number of problems.
        diagram: Methods that are ranked; all that were tuned on every problem if empty.

    Raises:
        ValueError: No problem has single-task networks and the plain sum, or Delta-m cannot be
            measured.
        MissingExtraError: scikit-posthocs is not installed.
    """
    by_problem: dict[str, dict[str, MethodResult]] = {}
    for result in results:
        by_problem.setdefault(result.problem, {})[result.method] = result
    problems = [
        _problem(found)
        for found in by_problem.values()
        if SINGLE_TASK in found and REFERENCE in found
    ]
    if not problems:
        raise ValueError(
            f"no problem has results of both {SINGLE_TASK} and {REFERENCE} yet; go on with the "
            "study: ntkmtl study FILE"
        )
    overall = _overall(problems)
    ranking = _ranking(problems, diagram)
    return StudyJudgement(problems, overall, ranking, sentences(problems, overall, ranking))


# ------------------------------------------------------------------------------------------------
# One problem


def _problem(found: Mapping[str, MethodResult]) -> ProblemJudgement:
    single, plain = found[SINGLE_TASK], found[REFERENCE]
    assert single.tuned is not None, "single-task networks are tuned"
    higher = [metric.higher_is_better for metric in single.metrics]
    baseline = np.mean([run.test for run in single.tuned.runs], axis=0)
    if not (baseline > 0).all():
        raise ValueError(
            f"the single-task networks of {single.problem} have a metric that is not positive, "
            "which Delta-m cannot be measured against"
        )
    start = _start_metrics(single)

    def of(runs: Sequence[FinalRun]) -> list[float | None]:
        return [float(delta_m(run.test, baseline, higher)) if run.test else None for run in runs]

    names = [REFERENCE, *sorted(set(found) - {SINGLE_TASK, REFERENCE})]
    tuned = {name: of(_runs(found[name].tuned)) for name in names}
    p_values = paired_p_values(tuned, REFERENCE)
    rows = []
    for name in names:
        result = found[name]
        done = [run.test for run in _runs(result.tuned) if run.test]
        means = np.mean(done, axis=0) if done else None
        rows.append(
            MethodOnProblem(
                method=name,
                published=of(_runs(result.published)),
                tuned=tuned[name],
                p_value=p_values.get(name),
                step_ratio=_ratio(_step_seconds(result), _step_seconds(plain)),
                tuning_seconds=math.fsum(trial.seconds for trial in result.trials),
                learning_rate=result.tuned.recipe.get(RATE) if result.tuned else None,
                trials=[(float(t.parameters[RATE]), t.value) for t in result.trials],
                tasks=[] if means is None else _by_metric(means, baseline, higher),
                tried=[_by_metric(t.val, start, higher) for t in result.trials if t.val],
            )
        )
    return ProblemJudgement(
        problem=single.problem,
        source=str(single.request["source"]),
        metrics=[metric.name for metric in single.metrics],
        tasks=list(single.request["tasks"]),
        single_task_rates=dict(single.tuned.recipe[RATE]),
        methods=rows,
    )


def _start_metrics(single: MethodResult) -> list[float]:
    """Return the validation metrics of single-task networks at the recipe's learning rate.

    Those of another rate for a task that diverged there.
    """
    rate = float(f"{single.request['recipe']['learning_rate']:.4g}")
    found: dict[str, list[float]] = {}
    for trial in sorted(single.trials, key=lambda t: t.parameters[RATE] != rate):
        if trial.val:
            found.setdefault(trial.task, list(trial.val))
    numbers = {task: iter(values) for task, values in found.items()}
    return [next(numbers[metric.task]) for metric in single.metrics]


def _by_metric(
    values: Sequence[float], baseline: Sequence[float], higher: Sequence[bool]
) -> list[float]:
    return [
        float(delta_m([value], [base], [up]))
        for value, base, up in zip(values, baseline, higher, strict=True)
    ]


def _runs(setting: Setting | None) -> Sequence[FinalRun]:
    return () if setting is None else setting.runs


def _step_seconds(result: MethodResult) -> float | None:
    """Return the seconds of a training step: median over final runs."""
    runs = [*_runs(result.tuned), *_runs(result.published)]
    times = [run.step_seconds for run in runs if run.step_seconds is not None]
    return statistics.median(times) if times else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value and reference else None


# ------------------------------------------------------------------------------------------------
# All problems


def _overall(problems: Sequence[ProblemJudgement]) -> list[Overall]:
    names = list(dict.fromkeys(row.method for p in problems for row in p.methods))
    found = [_of_method(name, problems) for name in names]
    return sorted(found, key=lambda o: math.inf if o.difference is None else o.difference.mean)


def _of_method(name: str, problems: Sequence[ProblemJudgement]) -> Overall:
    differences: dict[str, list[list[float]]] = {}
    steps, tunings, seeds, diverged = [], [], [], []
    for problem in problems:
        own, plain = problem.of(name), problem.of(REFERENCE)
        if own is None or plain is None or not own.tuned:
            continue
        seeds.append(len(own.tuned))
        pairs = list(zip(own.tuned, plain.tuned, strict=True))
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if len(known) < len(pairs):
            diverged.append(problem.problem)
        else:
            differences.setdefault(problem.source, []).append(known)
        if own.step_ratio:
            steps.append(own.step_ratio)
        if ratio := _ratio(own.tuning_seconds, plain.tuning_seconds):
            tunings.append(ratio)
    return Overall(
        method=name,
        problems=len(seeds),
        seeds=min(seeds, default=0),
        difference=bootstrap(list(differences.values())) if differences else None,
        step_ratio=statistics.geometric_mean(steps) if steps else None,
        tuning_ratio=statistics.geometric_mean(tunings) if tunings else None,
        diverged=diverged,
    )


def _ranking(problems: Sequence[ProblemJudgement], diagram: Sequence[str]) -> Ranking | None:
    """Return the ranks of methods that every problem has, None with less than three of either."""
    names = diagram or list(dict.fromkeys(r.method for p in problems for r in p.methods))
    found = [[p.of(name) for name in names] for p in problems]
    means = np.array([[row.mean if row else None for row in rows] for rows in found], dtype=float)
    kept = np.flatnonzero(~np.isnan(means).any(axis=0)).tolist()
    if len(kept) < 3 or len(problems) < 3:
        return None
    return rank_test([names[place] for place in kept], means[:, kept].tolist())


# ------------------------------------------------------------------------------------------------
# In words


def sentences(
    problems: Sequence[ProblemJudgement], overall: Sequence[Overall], ranking: Ranking | None
) -> list[str]:
    """Return the judgement, one sentence or two each."""
    sources = sorted({problem.source for problem in problems})
    found = [
        f"{count(len(problems), 'problem')} from {count(len(sources), 'source')} of data: "
        f"{', '.join(problem.problem for problem in problems)}. Tuned methods are compared with "
        "the tuned plain sum of the losses, paired by seed, by 95 % intervals."
    ]
    others = [o for o in overall if o.method != REFERENCE and o.difference is not None]
    same = [o for o in others if o.difference and not o.difference.excludes_zero]
    better = [o for o in others if o.difference and o.difference.high < 0]
    worse = [o for o in others if o.difference and o.difference.low > 0]
    if same:
        found.append(
            f"Cannot be distinguished from the plain sum here: {_listed(same, len(problems))}."
        )
    for side, entries in (("Better", better), ("Worse", worse)):
        sure = [o for o in entries if o.seeds >= FEW_SEEDS]
        few = [o for o in entries if o.seeds < FEW_SEEDS]
        if sure:
            found.append(f"{side} than the plain sum here: {_listed(sure, len(problems))}.")
        if few:
            found.append(
                f"{side} than the plain sum in these runs, with too few seeds to count on it: "
                f"{_listed(few, len(problems))}."
            )
    found += [
        f"{entry.method} is not judged on {', '.join(entry.diverged)}: a tuned run of it, or of "
        f"{REFERENCE}, diverged."
        for entry in overall
        if entry.diverged
    ]
    untuned = [o.method for o in overall if not o.problems]
    if untuned:
        found.append(f"Not tuned, so not judged: {', '.join(untuned)}.")
    return [*found, *_limits(len(sources), others, ranking)]


def _limits(sources: int, others: Sequence[Overall], ranking: Ranking | None) -> list[str]:
    found = []
    seeds = min((o.seeds for o in others), default=0)
    if others and seeds < FEW_SEEDS:
        found.append(
            f"With {count(seeds, 'seed')} intervals are too narrow: take {FEW_SEEDS} or more "
            "before you call a method a winner."
        )
    if sources < FEW_SOURCES:
        found.append(
            f"With {count(sources, 'source')} of data this says little about other problems."
        )
    if ranking is None:
        found.append(
            "Ranks are not tested: that takes three problems or more, and three methods tuned on "
            "all of them."
        )
    else:
        verdict = "differ" if ranking.p_value < 0.05 else "cannot be distinguished"
        found.append(
            f"By ranks over {ranking.problems} problems, the {len(ranking.methods)} methods of "
            f"the diagram {verdict} (Friedman's test, p = {ranking.p_value:.2g})."
        )
    return found


def _listed(entries: Sequence[Overall], problems: int) -> str:
    return "; ".join(_with_cost(entry, problems) for entry in entries)


def _with_cost(entry: Overall, problems: int) -> str:
    difference = entry.difference
    assert difference is not None
    words = (
        f"{entry.method} ({difference.mean:+.1f} points of Δm, from {difference.low:+.1f} to "
        f"{difference.high:+.1f}"
    )
    if entry.problems < problems:
        words += f", on {entry.problems} of {problems} problems"
    if entry.step_ratio:
        words += f"; a step takes {entry.step_ratio:.2f} times as long"
    if entry.tuning_ratio:
        words += f", its search {entry.tuning_ratio:.2f} times"
    return words + ")"
