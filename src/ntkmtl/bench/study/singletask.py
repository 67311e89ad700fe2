"""Single-task networks of a study, tuned with the budget of the methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ntkmtl.bench.problems.base import Metric
from ntkmtl.bench.runs import RESULT, SINGLE_TASK, Run, load_run
from ntkmtl.bench.search.records import LEARNING_RATE_FACTOR, RATE
from ntkmtl.bench.study.part import StudyPart
from ntkmtl.bench.study.results import FinalRun, Setting, TriedSettings
from ntkmtl.bench.training import SweepError
from ntkmtl.bench.training.baselines import check_baseline
from ntkmtl.bench.training.planning import judged_tasks
from ntkmtl.metrics import delta_m

__all__ = ["SingleTasks", "rates"]


FINAL_RATES = 3
"""Most learning rates of final runs, tried in turn until one does as well as its trial."""


def rates(start: float, trials: int) -> list[float]:
    """Return learning rates evenly spaced in their logarithms, ``start`` among them.

    A single-task network has nothing else to tune, so a grid covers the range better than chance.

    Example:
        >>> rates(0.01, 4)
        [0.001, 0.003162, 0.01, 0.03162]
    """
    ratio = LEARNING_RATE_FACTOR ** (2 / trials)
    return [float(f"{start * ratio ** (j - trials // 2):.4g}") for j in range(trials)]


class SingleTasks:
    """The single-task networks of a problem."""

    def __init__(self, part: StudyPart) -> None:
        self.part = part
        self.tasks = judged_tasks(part.problem, None)
        self.start = float(f"{part.recipe.learning_rate:.4g}")
        self.rates = rates(part.recipe.learning_rate, part.trials_of(SINGLE_TASK))
        self.references: dict[str, tuple[float, ...]] = {}

    def train(self) -> None:
        """Tune and train, and write the result, unless a run failed.

        Raises:
            RunInterrupted: It was stopped.
            SweepError: All trials of a task diverged, or Delta-m cannot be measured against a
                network.
        """
        part = self.part
        epochs = {"epochs": part.trial_epochs} if part.trial_epochs else {}
        for rate in self.rates:
            more = {"seeds": [part.plan.trial_seed], "learning_rate": rate, **epochs}
            self._compare(_trial_folder(rate), self.tasks, more)
        trials = [trial for task in self.tasks for trial in self._trials(task)]
        best = self._final_rates(trials)
        if best is not None:
            runs = [self._joined(seed, best) for seed in part.seeds]
            tested = zip(*(run.test for run in runs), strict=True)
            means = [statistics.fmean(values) for values in tested]
            self._require_positive(means, part.problem.metrics)
            tuned = Setting(method_options={}, recipe={RATE: best}, runs=runs)
            part.write(SINGLE_TASK, trials, None, tuned)

    def _final_rates(self, trials: list[TriedSettings]) -> dict[str, float] | None:
        """Train final runs, and return the learning rate of each task whose mean is best.

        The best trial's rate is trained first. Where its mean over the final seeds is worse than
        the next best trial, that rate is trained as well, three in all: at the edge of divergence
        one seed says little of the others, and a diverged baseline would make every method look
        good. All of it is judged on the validation split.

        Returns:
            Rates by task; None if a run failed other than by divergence.
        """
        ranked = {
            task: sorted(
                (float(t.value), float(t.parameters[RATE]))
                for t in trials
                if t.task == task and t.value is not None
            )
            for task in self.tasks
        }
        best: dict[str, tuple[float, float]] = {}
        left = list(self.tasks)
        for _ in range(FINAL_RATES):
            asked = {task: ranked[task].pop(0)[1] for task in left}
            for rate in dict.fromkeys(asked.values()):
                own = [task for task in left if asked[task] == rate]
                self._compare(_final_folder(rate), own, {"learning_rate": rate})
            for task, rate in asked.items():
                mean = self._final_mean(task, rate)
                if mean is None:
                    return None
                best[task] = min(best.get(task, (math.inf, rate)), (mean, rate))
            left = [task for task in left if ranked[task] and ranked[task][0][0] < best[task][0]]
        return {task: rate for task, (_, rate) in best.items()}

    def _final_mean(self, task: str, rate: float) -> float | None:
        """Return the mean Delta-m of final runs on the validation split, as of trials.

        Infinite if one diverged, None if one failed otherwise.
        """
        values = []
        for seed in self.part.seeds:
            run = self.part.final(_final_folder(rate), SINGLE_TASK, seed, task)
            if run is None:
                return None
            if run.error:
                return math.inf
            folder = self.part.folder(_final_folder(rate), SINGLE_TASK, seed, task)
            values.append(self._delta_m(task, load_run(folder).result.val))
        return statistics.fmean(values)

    def _delta_m(self, task: str, val: Sequence[float]) -> float:
        """Return Delta-m against the task's network of the recipe's learning rate."""
        metrics = self.part.problem.metrics
        higher = [metric.higher_is_better for metric in metrics if metric.task == task]
        return float(delta_m(val, self.references[task], higher))

    def _require_positive(self, values: Sequence[float], metrics: Sequence[Metric]) -> None:
        """Refuse networks that Delta-m cannot be measured against."""
        try:
            check_baseline(values, metrics)
        except SweepError as error:
            raise SweepError(f"{self.part.asked.name}: {error}") from error

    def _compare(self, folder: str, tasks: list[str], more: dict[str, Any]) -> None:
        settings = {**more, "tasks": tasks, "single_task_baselines": True}
        self.part.train([SINGLE_TASK], folder, **settings)

    def _trials(self, task: str) -> list[TriedSettings]:
        """Return the trials of a task, judged against the one at the recipe's learning rate."""
        found = {rate: self._trial_run(rate, task) for rate in self.rates}
        done = {rate: run for rate, run in found.items() if run is not None}
        if not done:
            raise SweepError(
                f"{self.part.asked.name}: no single-task network of {task} could be trained at "
                f"learning rates from {self.rates[0]:g} to {self.rates[-1]:g}"
            )
        reference = done.get(self.start) or next(iter(done.values()))
        own = [metric for metric in self.part.problem.metrics if metric.task == task]
        self._require_positive(reference.result.val, own)
        self.references[task] = reference.result.val
        return [
            TriedSettings(
                parameters={RATE: rate},
                value=None if run is None else self._delta_m(task, run.result.val),
                val=[] if run is None else list(run.result.val),
                seconds=0.0 if run is None else run.result.wall_seconds,
                task=task,
            )
            for rate, run in found.items()
        ]

    def _trial_run(self, rate: float, task: str) -> Run | None:
        """Return the run that tried a learning rate, None if it diverged."""
        seed = self.part.plan.trial_seed
        folder = self.part.folder(_trial_folder(rate), SINGLE_TASK, seed, task)
        return load_run(folder) if (folder / RESULT).exists() else None

    def _joined(self, seed: int, best: dict[str, float]) -> FinalRun:
        """Return the metrics of the networks of one seed as those of one run."""
        found: dict[str, FinalRun] = {}
        for task in self.tasks:
            run = self.part.final(_final_folder(best[task]), SINGLE_TASK, seed, task)
            assert run is not None, "failures have ended this before"
            if run.error:
                raise SweepError(
                    f"{self.part.asked.name}: the single-task network of {task} with seed {seed} "
                    f"diverged ({run.error}); lower the problem's learning_rate"
                )
            found[task] = run
        numbers = {task: iter(run.test) for task, run in found.items()}
        return FinalRun(
            seed=seed,
            test=[next(numbers[metric.task]) for metric in self.part.problem.metrics],
            train_seconds=sum(run.train_seconds for run in found.values()),
            steps=sum(run.steps for run in found.values()),
        )


def _trial_folder(rate: float) -> str:
    return f"baselines/rate-{rate:g}"


def _final_folder(rate: float) -> str:
    return f"baselines/final-{rate:g}"
