"""Single-task networks of a study, tuned with the budget of the methods."""

from __future__ import annotations

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

__all__ = ["SingleTasks", "rates"]


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
            sweep = self._compare("baselines/final", own, {"learning_rate": rate})
            sweeps.update(dict.fromkeys(own, sweep))
        runs = [self._final(seed, sweeps) for seed in study.plan.seeds_of(study.asked)]
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
        done = [t for t in trials if t.task == task and t.value is not None]
        return float(min(done, key=lambda trial: trial.value or 0.0).parameters[RATE])

    def _final(self, seed: int, sweeps: dict[str, Sweep]) -> FinalRun | None:
        """Return the metrics of the networks of one seed as those of one run."""
        found: dict[str, FinalRun] = {}
        for task in self.tasks:
            run = self.study.final("baselines/final", SINGLE_TASK, seed, sweeps[task], task)
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
