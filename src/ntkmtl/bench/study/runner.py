"""Running a study: for each problem single-task networks, then methods; a JSON file for each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ntkmtl.bench.jobs.engine import stop_requests
from ntkmtl.bench.runs import SINGLE_TASK, RunInterrupted
from ntkmtl.bench.runs.folder import sweep_lock
from ntkmtl.bench.study.methods import Methods
from ntkmtl.bench.study.part import StudyOutcome, StudyPart, Trainer
from ntkmtl.bench.study.plan import PLAN, StudyPlan
from ntkmtl.bench.study.singletask import SingleTasks
from ntkmtl.files import write_json

__all__ = ["run_study"]


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
        write_json(out / PLAN, msgspec.to_builtins(plan))
        try:
            for part, names in zip(parts, missing, strict=True):
                _run(part, names)
        except RunInterrupted:
            outcome.interrupted = True
    return outcome


def _run(part: StudyPart, missing: list[str]) -> None:
    """Train the methods that one problem lacks."""
    part.outcome.known += 1 + len(part.plan.methods_of(part.asked)) - len(missing)
    if SINGLE_TASK in missing:
        part.write(SingleTasks(part).result())
    methods = [name for name in missing if name != SINGLE_TASK]
    # As many methods at a time as there are jobs: the trials of one wait for each other.
    for first in range(0, len(methods), part.trainer.jobs):
        Methods(part, methods[first : first + part.trainer.jobs]).run()
