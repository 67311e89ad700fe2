"""Running a study, and saying how long it takes before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from ntkmtl.bench.compute.environment import default_threads, reproducible
from ntkmtl.bench.jobs.engine import stop_requests
from ntkmtl.bench.runs import SINGLE_TASK, RunInterrupted
from ntkmtl.bench.runs.folder import sweep_lock
from ntkmtl.bench.study.methods import train_methods
from ntkmtl.bench.study.part import StudyOutcome, StudyPart, Trainer
from ntkmtl.bench.study.plan import PLAN, StudyPlan
from ntkmtl.bench.study.singletask import SingleTasks
from ntkmtl.bench.training import RunSpec, SweepError
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.planning import judged_tasks
from ntkmtl.bench.training.spec import run_identity
from ntkmtl.files import write_json

__all__ = ["StudyEstimate", "estimate", "run_study"]

WARM_UP, TIMED = 1, 3
"""Steps before the first that is timed, and steps that are."""

RUN_SECONDS = 0.2
"""What a run takes besides its steps: making the network, writing its files."""


def run_study(plan: StudyPlan, out: Path, trainer: Trainer | None = None) -> StudyOutcome:
    """Train what a study lacks; results that are there are kept.

    All problems are read, and results that are there checked, before anything is trained. Ctrl-C
    and SIGTERM stop every run at a step boundary; the same call resumes there.

    Args:
        plan: The study.
        out: Its folder: results are in ``results``, unfinished work in ``work``.
        trainer: How runs are trained.

    Raises:
        SweepError: Something cannot be done as asked for.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file is damaged, or a result is of another study.
        RunBusyError: Another process works in the folder.
    """
    trainer = trainer or Trainer()
    outcome = StudyOutcome()
    with sweep_lock(out), stop_requests() as stopped:
        parts = [StudyPart(plan, p, out, trainer, outcome, stopped) for p in plan.problem]
        missing = [part.missing() for part in parts]
        for part, names in zip(parts, missing, strict=True):
            part.check(names)
        write_json(out / PLAN, msgspec.to_builtins(plan))
        try:
            for part, names in zip(parts, missing, strict=True):
                _train(part, names)
        except RunInterrupted:
            outcome.interrupted = True
    return outcome


def _train(part: StudyPart, missing: list[str]) -> None:
    """Train the methods that one problem lacks."""
    part.outcome.known += 1 + len(part.plan.methods_of(part.asked)) - len(missing)
    if SINGLE_TASK in missing:
        SingleTasks(part).train()
    methods = [name for name in missing if name != SINGLE_TASK]
    # As many methods at a time as there are jobs: the trials of one wait for each other.
    for first in range(0, len(methods), part.trainer.jobs):
        train_methods(part, methods[first : first + part.trainer.jobs])


# ------------------------------------------------------------------------------------------------
# How long it takes


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


def _of_problem(part: StudyPart, missing: Sequence[str]) -> list[StudyEstimate]:
    threads = part.trainer.threads or default_threads(part.trainer.jobs)
    long = part.recipe.epochs
    short = part.trial_epochs or long
    found = []
    with reproducible(threads):
        for method in missing:
            alone = method == SINGLE_TASK
            tasks = judged_tasks(part.problem, None) if alone else [None]
            trials = part.trials_of(method)
            # Single-task networks have no published settings; the others are trained with both.
            # One more run at the trials' seed judges trials that are shorter.
            final = len(part.seeds) if alone or not trials else 2 * len(part.seeds)
            extra = int(alone and short != long)
            epochs = trials * short + (final + extra) * long
            seconds = 0.0
            for task in tasks:
                each = _epoch_seconds(part, method, task, threads)
                seconds += epochs * each + (trials + final) * RUN_SECONDS
            runs = (trials + final + extra) * len(tasks)
            found.append(StudyEstimate(part.asked.name, method, runs, epochs * len(tasks), seconds))
    return found


def _epoch_seconds(part: StudyPart, method: str, task: str | None, threads: int) -> float:
    """Return the seconds of an epoch: steps, and the evaluation after it."""
    problem = part.problem
    # Enough epochs that the schedule of the learning rate does not end before the timing.
    recipe = replace(part.recipe, epochs=max(part.recipe.epochs, WARM_UP + TIMED))
    options = part.plan.method_options.get(method, {})
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
            baseline=[1.0] * len(problem.metrics),
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
        raise SweepError(f"{part.asked.name}, {method}: {error}") from error


def _steps(loop: TrainingLoop, count: int) -> None:
    for indices in itertools.islice(loop.batches(), count):
        loop.train_step(indices)
