"""Judging a study: which methods differ from the plain sum of the losses, and their cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.search.records import RATE
from ntkmtl.bench.study.inference import Ranking, bootstrap, paired_p_values, rank_test
from ntkmtl.bench.study.judgement import MethodOnProblem, Overall, ProblemJudgement, StudyJudgement
from ntkmtl.bench.study.plan import REFERENCE
from ntkmtl.bench.study.results import FinalRun, MethodResult, Setting
from ntkmtl.bench.study.words import sentences
from ntkmtl.metrics import delta_m

__all__ = ["judge"]


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
        setting = result.tuned
        done = [run.test for run in _runs(setting) if run.test]
        means = np.mean(done, axis=0) if done else None
        rows.append(
            MethodOnProblem(
                method=name,
                published=of(_runs(result.published)),
                tuned=tuned[name],
                p_value=p_values.get(name),
                step_ratio=_ratio(_step_seconds(result), _step_seconds(plain)),
                tuning_seconds=math.fsum(trial.seconds for trial in result.trials),
                learning_rate=None if setting is None else setting.recipe.get(RATE),
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
    rows = [[p.of(name) for name in names] for p in problems]
    kept = [
        place
        for place in range(len(names))
        if all(row[place] is not None and row[place].mean is not None for row in rows)  # type: ignore[union-attr]
    ]
    if len(kept) < 3 or len(problems) < 3:
        return None
    means = [[float(row[place].mean) for place in kept] for row in rows]  # type: ignore[union-attr, arg-type]
    return rank_test([names[place] for place in kept], means)
