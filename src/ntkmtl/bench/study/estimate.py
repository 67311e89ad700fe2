"""How long a study takes, from a few steps of each method on each problem."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ntkmtl.bench.compute.environment import default_threads, reproducible
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.study.part import StudyOutcome, StudyPart, Trainer
from ntkmtl.bench.study.plan import StudyPlan
from ntkmtl.bench.training import RunSpec, SweepError
from ntkmtl.bench.training.comparison import recipe_of
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.planning import judged_tasks
from ntkmtl.bench.training.spec import run_identity

__all__ = ["StudyEstimate", "estimate"]

WARM_UP, TIMED = 1, 3
"""Steps before the first that is timed, and steps that are."""

RUN_SECONDS = 0.2
"""What a run takes besides its steps: making the network, writing its files."""


@dataclass(frozen=True)
class StudyEstimate:
    """How long what is missing of one problem and method takes."""

    problem: str
    method: str
    runs: int
    epochs: int
    seconds: float


def estimate(
    plan: StudyPlan,
    out: Path,
    trainer: Trainer | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[StudyEstimate]:
    """Return how long a study takes, by problem and method, without what is finished.

    Runs that are complete in an unfinished part count as if they were not. Every method takes a
    few steps on every problem, so that one that cannot be trained is found now.

    Args:
        plan: The study.
        out: Its folder.
        trainer: How runs are trained.
        progress: Called with a line for each problem.

    Raises:
        SweepError: A method does not fit a problem.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        RunFileError: A result is damaged, or of another study.
    """
    trainer = trainer or Trainer()
    parts = [StudyPart(plan, asked, out, trainer, StudyOutcome()) for asked in plan.problem]
    lacking = [(part, missing) for part in parts if (missing := part.missing())]
    found = []
    for part, missing in lacking:
        progress(f"timing {len(missing)} methods on {part.asked.name}")
        found += _of_problem(part, missing)
    return found


def _of_problem(study: StudyPart, missing: Sequence[str]) -> list[StudyEstimate]:
    recipe = recipe_of(study.comparison([SINGLE_TASK], "published"), study.problem)
    threads = study.trainer.threads or default_threads(study.trainer.jobs)
    seeds, short = len(study.plan.seeds_of(study.asked)), study.trial_epochs or recipe.epochs
    found = []
    with reproducible(threads):
        for method in missing:
            tasks = judged_tasks(study.problem, None) if method == SINGLE_TASK else [None]
            trials = study.plan.trials_of(study.asked, method)
            # Single-task networks have no published settings; the others are trained with both.
            # One more run at the trials' seed judges trials that are shorter.
            final = seeds if method == SINGLE_TASK or not trials else 2 * seeds
            extra = int(method == SINGLE_TASK and short != recipe.epochs)
            epochs = trials * short + (final + extra) * recipe.epochs
            seconds = 0.0
            for task in tasks:
                each = _epoch_seconds(study, method, task, threads)
                seconds += epochs * each + (trials + final) * RUN_SECONDS
            runs = (trials + final + extra) * len(tasks)
            found.append(
                StudyEstimate(study.asked.name, method, runs, epochs * len(tasks), seconds)
            )
    return found


def _epoch_seconds(study: StudyPart, method: str, task: str | None, threads: int) -> float:
    """Return the seconds of an epoch: steps, and the evaluation after it."""
    problem = study.problem
    recipe = recipe_of(study.comparison([method], "published"), problem)
    # Enough epochs that the schedule of the learning rate does not end before the timing.
    recipe = replace(recipe, epochs=max(recipe.epochs, WARM_UP + TIMED))
    options = study.plan.method_options.get(method, {})
    ones = [1.0] * len(problem.metrics)
    try:
        identity = run_identity(
            problem, method, 0, recipe=recipe, method_options=options, single_task=task
        )
        spec = RunSpec(
            method=method,
            seed=0,
            recipe=recipe,
            method_options=options,
            single_task=task,
            baseline=ones,
        )
        learner = Learner(problem, spec, identity)
        loop = TrainingLoop(learner, threads)
        _steps(loop, WARM_UP)
        started = time.perf_counter()
        _steps(loop, TIMED)
        step = (time.perf_counter() - started) / TIMED
        started = time.perf_counter()
        with torch.no_grad():
            problem.evaluate(learner.model, "val", learner.chosen_tasks)
        return step * learner.steps_per_epoch + time.perf_counter() - started
    except (TypeError, ValueError) as error:
        raise SweepError(f"{study.asked.name}, {method}: {error}") from error


def _steps(loop: TrainingLoop, count: int) -> None:
    for indices in itertools.islice(loop.batches(), count):
        loop.train_step(indices)
