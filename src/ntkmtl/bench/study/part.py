"""One problem's part of a study: what single-task networks and methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkmtl.bench.compute.environment import default_threads, hardware, versions
from ntkmtl.bench.jobs.engine import Engine, Failure
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.problems.base import Problem
from ntkmtl.bench.runs import RESULT, SINGLE_TASK, RunInterrupted, RunMetric, load_run, run_folder
from ntkmtl.bench.study.plan import ProblemPlan, StudyPlan
from ntkmtl.bench.study.results import FinalRun, MethodResult, Setting, TriedSettings, finished
from ntkmtl.bench.training import Comparison, Sweep, SweepError, compare
from ntkmtl.bench.training.baselines import BaselineCache
from ntkmtl.bench.training.comparison import recipe_of
from ntkmtl.bench.training.planning import plan_runs

__all__ = ["DIVERGED", "StudyOutcome", "StudyPart", "Trainer"]

WORK = "work"
"""Folder of the runs of a study; only what is unfinished needs it."""

DIVERGED = ("NonFiniteError", "FloatingPointError")
"""Errors of runs that diverged; these count as results, not as failures."""


@dataclass
class StudyOutcome:
    """The outcome of one call.

    Attributes:
        written: Results that this call wrote, as ``problem/method``.
        known: Number of results that existed before.
        failures: Runs that failed, without those that diverged.
        interrupted: Whether it was stopped.
    """

    written: list[str] = field(default_factory=list)
    known: int = 0
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Trainer:
    """How runs of a study are trained.

    Attributes:
        jobs: Runs at a time.
        threads: Threads of a run; see :class:`ntkmtl.bench.training.Comparison`.
        device: Where to train.
        engine: Trains the runs; processes on this machine if None.
        reporter: Makes the reporter of each part.
    """

    jobs: int = 1
    threads: int | None = None
    device: str = "cpu"
    engine: Engine | None = None
    reporter: Callable[[], Reporter] = Reporter


class StudyPart:
    """One problem's part of a study.

    Args:
        plan: The study.
        asked: The problem.
        out: The study's folder.
        trainer: How runs are trained.
        outcome: Receives the outcome.
        stopped: Whether the study was asked to stop.
    """

    def __init__(
        self,
        plan: StudyPlan,
        asked: ProblemPlan,
        out: Path,
        trainer: Trainer,
        outcome: StudyOutcome,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.asked, self.out = plan, asked, out
        self.trainer, self.outcome, self.stopped = trainer, outcome, stopped
        self.place = out / WORK / asked.name
        self.seeds = plan.seeds_of(asked)
        self.diverged: dict[Path, str] = {}
        self.cache = BaselineCache(self.place / "cache")
        self.problem: Problem = find_problem(
            asked.problem or asked.name, asked.options, try_out=True
        )
        self.recipe = recipe_of(self.comparison([SINGLE_TASK], "published"), self.problem)

    def missing(self) -> list[str]:
        """Return the methods without a result, single-task networks first.

        Raises:
            RunFileError: A result is damaged, or of another study.
        """
        names = [SINGLE_TASK, *self.plan.methods_of(self.asked)]
        return [name for name in names if not finished(self.out, self.request(name))]

    def check(self, methods: Sequence[str]) -> None:
        """Refuse methods and settings that cannot be trained, before anything is.

        Raises:
            SweepError: One does not fit the problem.
        """
        if not methods:
            return
        try:
            plan_runs(self.comparison(methods, "published"), self.problem)
        except SweepError as error:
            raise SweepError(f"{self.asked.name}: {error}") from error

    def request(self, method: str) -> dict[str, Any]:
        """Return what is asked for of one method."""
        return {
            "problem": self.asked.name,
            "source": self.asked.source or self.asked.name,
            "problem_options": dict(self.problem.options),
            "tasks": list(self.problem.tasks),
            "sizes": {split: self.problem.size(split) for split in ("train", "val", "test")},
            "recipe": self.recipe.to_json(),
            "method": method,
            "method_options": dict(self.plan.method_options.get(method, {})),
            "trials": self.trials_of(method),
            "trial_epochs": self.trial_epochs,
            "trial_seed": self.plan.trial_seed,
            "seeds": self.seeds,
        }

    @property
    def trial_epochs(self) -> int | None:
        """Epochs of a trial, None for those of the final runs."""
        return self.asked.trial_epochs or self.plan.trial_epochs

    def trials_of(self, method: str) -> int:
        """Return the number of trials of a method, 0 for one that is not tuned."""
        return self.plan.trials_of(self.asked, method)

    def folder(self, part: str, method: str, seed: int, task: str | None = None) -> Path:
        """Return the folder of a run in a part of the study."""
        return run_folder(self.place / part, self.problem.name, method, seed, task)

    def comparison(self, methods: Sequence[str], part: str, **more: Any) -> Comparison:
        """Return the comparison of a part of the study."""
        how = self.trainer
        settings = {"jobs": how.jobs, "threads": how.threads, "device": how.device, **more}
        return self.plan.comparison(self.asked, list(methods), self.place / part, **settings)

    def train(self, methods: Sequence[str], part: str, **more: Any) -> None:
        """Train what a part of the study lacks, and note what fails.

        Args:
            methods: The methods.
            part: Name of the part, which is its folder.
            **more: Further arguments of the comparison, instead of the plan's.

        Raises:
            RunInterrupted: It was stopped.
        """
        sweep = compare(
            self.comparison(methods, part, **more),
            keep_request=False,
            cache=self.cache,
            reporter=self.trainer.reporter(),
            engine=self.trainer.engine,
        )
        self.check_stop(sweep)
        for failure in sweep.failures:
            if failure.error in DIVERGED:
                self.diverged[failure.folder] = failure.message
            else:
                self.outcome.failures.append(failure)

    def check_stop(self, sweep: Sweep) -> None:
        """Raise RunInterrupted if the study was stopped, in these runs or just after the last."""
        if sweep.interrupted or self.stopped():
            raise RunInterrupted("the study was stopped")

    def final(self, part: str, name: str, seed: int, task: str | None = None) -> FinalRun | None:
        """Return a final run, one that diverged included; None if it failed otherwise."""
        folder = self.folder(part, name, seed, task)
        if (folder / RESULT).exists():
            run = load_run(folder)
            return FinalRun(
                seed=seed,
                test=list(run.result.test),
                train_seconds=run.result.train_seconds,
                steps=run.result.steps,
                cpu_share=run.result.cpu_share if self.trainer.device == "cpu" else None,
            )
        if folder not in self.diverged:
            return None
        return FinalRun(seed=seed, test=[], train_seconds=0.0, steps=0, error=self.diverged[folder])

    def write(
        self,
        name: str,
        trials: list[TriedSettings],
        published: Setting | None,
        tuned: Setting | None,
    ) -> None:
        """Write the result of a method with its provenance."""
        threads = self.trainer.threads or default_threads(self.trainer.jobs)
        result = MethodResult(
            request=self.request(name),
            metrics=[RunMetric(**vars(metric)) for metric in self.problem.metrics],
            trials=trials,
            published=published,
            tuned=tuned,
            hardware=hardware(threads),
            versions=dict(versions()),
        )
        result.write(self.out)
        self.outcome.written.append(f"{result.problem}/{result.method}")
