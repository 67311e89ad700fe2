"""Single-task networks of a study, tuned with the budget of the methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.runs import RESULT, SINGLE_TASK, Run, load_run, run_folder
from ntkmtl.bench.search.parameters import LEARNING_RATE_FACTOR, RATE
from ntkmtl.bench.study.results import FinalRun, MethodResult, Setting, TriedSettings
from ntkmtl.bench.training import SweepError
from ntkmtl.bench.training.comparison import recipe_of
from ntkmtl.bench.training.planning import judged_tasks
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from ntkmtl.bench.study.part import StudyPart
    from ntkmtl.bench.training import Sweep

__all__ = ["SingleTasks", "chosen_rate", "rates"]


def rates(start: float, trials: int) -> list[float]:
    """Return learning rates evenly spaced in their logarithms, ``start`` among them.

    A single-task network has nothing else to tune, so a grid covers the range better than chance.

    Args:
        start: The recipe's learning rate.
        trials: How many.

    Example:
        >>> rates(0.01, 4)
        [0.001, 0.003162, 0.01, 0.03162]
    """
    ratio = LEARNING_RATE_FACTOR ** (2 / trials)
    return [float(f"{start * ratio ** (j - trials // 2):.4g}") for j in range(trials)]


def chosen_rate(values: Mapping[float, float | None]) -> float:
    """Return the learning rate that final runs take.

    A rate counts as much as the worse of itself and the next larger one: just below the rate at
    which training breaks down, one seed says little of the others, and a baseline that broke down
    would make every method look good.

    Args:
        values: What each rate came to with one seed, lower is better; None where it diverged. At
            least one did not.

    Example:
        >>> chosen_rate({0.001: 3.0, 0.01: 1.0, 0.1: 0.5, 1.0: 900.0})
        0.01
        >>> chosen_rate({0.1: 2.0})
        0.1
    """
    rates = sorted(values)
    numbers = [math.inf if (found := values[rate]) is None else found for rate in rates]
    judged = [max(pair) for pair in itertools.pairwise(numbers)]
    # All next to one that diverged: then the best by itself.
    safe = judged if judged and min(judged) < math.inf else numbers
    return rates[safe.index(min(safe))]


def _final_part(rate: float) -> str:
    return f"baselines/final-{rate:g}"


class SingleTasks:
    """The single-task networks of a problem.

    Args:
        study: The problem's part of the study.
    """

    def __init__(self, study: StudyPart) -> None:
        self.study = study
        self.tasks = judged_tasks(study.problem, None)
        self.metrics = study.problem.metrics
        recipe = recipe_of(study.comparison([SINGLE_TASK], "baselines"), study.problem)
        self.start = float(f"{recipe.learning_rate:.4g}")
        self.rates = rates(recipe.learning_rate, study.plan.trials_of(study.asked, SINGLE_TASK))

    def result(self) -> MethodResult | None:
        """Tune and train, and return the result; None if a run failed.

        Raises:
            RunInterrupted: It was stopped.
            SweepError: All trials of a task diverged.
        """
        study = self.study
        epochs = {"epochs": study.trial_epochs} if study.trial_epochs else {}
        for rate in self.rates:
            more = {"seeds": [study.plan.trial_seed], "learning_rate": rate, **epochs}
            self._compare(f"baselines/rate-{rate:g}", self.tasks, more)
        trials = [trial for task in self.tasks for trial in self._trials(task)]
        best = {task: self._best(task, trials) for task in self.tasks}
        sweeps = {}
        for rate in dict.fromkeys(best.values()):
            own = [task for task in self.tasks if best[task] == rate]
            sweep = self._compare(_final_part(rate), own, {"learning_rate": rate})
            sweeps.update(dict.fromkeys(own, sweep))
        runs = [self._final(seed, sweeps, best) for seed in study.plan.seeds_of(study.asked)]
        if None in runs:
            return None
        tuned = Setting(
            method_options={},
            recipe={RATE: best},
            runs=[run for run in runs if run is not None],
        )
        return study.made(SINGLE_TASK, trials, None, tuned)

    def _compare(self, part: str, tasks: list[str], more: dict[str, Any]) -> Sweep:
        settings = {**more, "tasks": tasks, "single_task_baselines": True}
        return self.study.train(self.study.comparison([SINGLE_TASK], part, **settings))

    def _trials(self, task: str) -> list[TriedSettings]:
        """Return the trials of a task, judged against the one at the recipe's learning rate."""
        found = {rate: self._trial_run(rate, task) for rate in self.rates}
        done = {rate: run for rate, run in found.items() if run is not None}
        if not done:
            raise SweepError(
                f"{self.study.asked.name}: no single-task network of {task} could be trained at "
                f"learning rates from {self.rates[0]:g} to {self.rates[-1]:g}"
            )
        reference = done.get(self.start) or next(iter(done.values()))
        higher = [m.higher_is_better for m in self.metrics if m.task == task]
        trials = []
        for rate, run in found.items():
            val = [] if run is None else list(run.result.val)
            value = None if run is None else float(delta_m(val, reference.result.val, higher))
            seconds = 0.0 if run is None else run.result.wall_seconds
            trials.append(
                TriedSettings(
                    parameters={RATE: rate}, value=value, val=val, seconds=seconds, task=task
                )
            )
        return trials

    def _trial_run(self, rate: float, task: str) -> Run | None:
        """Return the run that tried a learning rate, None if it diverged."""
        study = self.study
        place = study.place / "baselines" / f"rate-{rate:g}"
        folder = run_folder(place, study.problem.name, SINGLE_TASK, study.plan.trial_seed, task)
        return load_run(folder) if (folder / RESULT).exists() else None

    def _best(self, task: str, trials: list[TriedSettings]) -> float:
        values = {float(t.parameters[RATE]): t.value for t in trials if t.task == task}
        return chosen_rate(values)

    def _final(
        self, seed: int, sweeps: dict[str, Sweep], best: dict[str, float]
    ) -> FinalRun | None:
        """Return the metrics of the networks of one seed as those of one run."""
        found: dict[str, FinalRun] = {}
        for task in self.tasks:
            part = _final_part(best[task])
            run = self.study.final(part, SINGLE_TASK, seed, sweeps[task], task)
            if run is None:
                return None
            if run.error:
                raise SweepError(
                    f"{self.study.asked.name}: the single-task network of {task} with seed {seed} "
                    f"diverged ({run.error}); lower the problem's learning_rate"
                )
            found[task] = run
        numbers = {task: iter(run.test) for task, run in found.items()}
        return FinalRun(
            seed=seed,
            test=[next(numbers[metric.task]) for metric in self.metrics],
            train_seconds=sum(run.train_seconds for run in found.values()),
            steps=sum(run.steps for run in found.values()),
        )
