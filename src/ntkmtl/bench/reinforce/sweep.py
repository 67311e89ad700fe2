"""Several variants and seeds, some at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkmtl.bench.jobs.engine import Engine, EngineError, Outcome, run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.reinforce.recipes import ReinforceRecipe, variant_named
from ntkmtl.bench.reinforce.training import PROBLEM, config_of, train
from ntkmtl.bench.runs import (
    CONFIG,
    RESULT,
    SINGLE_TASK,
    RunFileError,
    RunInterrupted,
    differences,
    read_config,
    run_folder,
)
from ntkmtl.bench.runs.folder import sweep_lock
from ntkmtl.bench.training.planning import conflict_message, damaged

__all__ = ["AgentJob", "compare", "jobs_of"]


@dataclass(frozen=True)
class AgentJob:
    """One run of an agent, as a :class:`ntkmtl.bench.jobs.engine.RunnableJob`."""

    recipe: ReinforceRecipe
    variant: str
    seed: int
    task: str | None
    folder: Path
    device: str = "cpu"
    threads: int = 1
    overwrite: bool = False
    after: tuple[Path, ...] = ()

    @property
    def root(self) -> Path:
        """The folder of all runs of agents in the comparison."""
        return self.folder.parents[1 if self.task is None else 2]

    @property
    def label(self) -> str:
        """The run in a few words."""
        return f"{self.variant}{'' if self.task is None else ' ' + self.task} seed {self.seed}"

    @property
    def steps(self) -> int:
        """Number of vector steps."""
        return self.recipe.vector_steps

    @property
    def may_diverge(self) -> bool:
        """False: an agent that diverges has failed."""
        return False

    def run(
        self,
        shared: dict[str, Any],
        show: Callable[[int, str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """See :meth:`ntkmtl.bench.jobs.engine.RunnableJob.run`; agents share nothing."""

        def progress(done: int, total: int, success: float | None) -> None:
            show(done, "" if success is None else f"success {success:.1f} %")

        try:
            train(
                self.recipe,
                variant_named(self.variant),
                self.seed,
                self.folder,
                task=self.task,
                device=self.device,
                threads=self.threads,
                overwrite=self.overwrite,
                progress=progress,
                should_stop=should_stop,
            )
        except RunInterrupted:
            return False
        return True


def jobs_of(
    recipe: ReinforceRecipe,
    variants: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    overwrite: bool = False,
) -> list[AgentJob]:
    """Return the runs of a comparison, all of one seed first.

    Raises:
        ValueError: A variant is unknown, or there are no variants or no seeds.
    """
    if not seeds or any(seed < 0 for seed in seeds):
        raise ValueError(f"at least one seed is needed, none negative. Found {list(seeds)}.")
    if not variants:
        raise ValueError("at least one variant is needed, found none")
    jobs = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(variants):
            variant = variant_named(name)
            method = SINGLE_TASK if variant.single_task else variant.name
            for task in recipe.tasks if variant.single_task else (None,):
                folder = run_folder(out, PROBLEM, method, seed, task)
                jobs.append(
                    AgentJob(recipe, variant.name, seed, task, folder, device, threads, overwrite)
                )
    return jobs


def compare(
    recipe: ReinforceRecipe,
    variants: Sequence[str],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
) -> Outcome[AgentJob]:
    """Train every variant with every seed; what is complete is not trained again.

    A run that fails does not stop the others; its folder says why in ``failure.json``. Ctrl-C and
    SIGTERM stop every run at the end of its episode.

    Args:
        recipe: How long and how.
        variants: Names that :func:`variant_named` knows.
        seeds: Seeds.
        out: Folder for the runs. It is locked: a second process is refused.
        jobs: Runs at a time, each in a worker process; 1 trains in this process.
        threads: Threads that a run computes with; what the engine says if None, and one on this
            machine.
        device: Where networks and replays are.
        overwrite: Replace runs of other settings.
        reporter: Receives the progress; silent if None.
        engine: Trains the runs; processes on this machine if None.

    Returns:
        The outcome of the runs that were not complete.

    Raises:
        ValueError: A variant is unknown, a number is out of range, the folder is in use or holds
            runs of other settings, or the engine cannot be started.
    """
    recipe.check()
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, found {jobs}")
    reporter = reporter or Reporter()
    out = Path(out)
    if threads is None:
        threads = 1 if engine is None else engine.threads
    # Planned before the folder is made, so that a mistyped name leaves nothing behind.
    planned = jobs_of(
        recipe, variants, seeds, out, device=device, threads=threads, overwrite=overwrite
    )
    with sweep_lock(out), contextlib.ExitStack() as stack:
        todo = _incomplete(planned, overwrite)
        reporter.message(f"{len(planned) - len(todo)} of {len(planned)} runs are complete")
        chosen = LocalEngine(jobs) if engine is None or not todo else engine
        try:
            runner = stack.enter_context(chosen.start(out, reporter.message))
        except EngineError as error:
            raise ValueError(str(error)) from error
        return run_jobs(todo, runner, reporter)


def _incomplete(planned: Sequence[AgentJob], overwrite: bool) -> list[AgentJob]:
    """Return the runs that are still to be trained."""
    todo, conflicts = [], {}
    for job in planned:
        found: list[str] = []
        if (job.folder / CONFIG).exists():
            wanted = config_of(job.recipe, variant_named(job.variant), job.seed, job.task)
            try:
                there = read_config(job.folder / CONFIG).identity()
                found = differences(there, wanted.identity())
            except RunFileError as error:
                found = [damaged(error)]
        if found:
            conflicts[job.folder] = found
        if found or not (job.folder / RESULT).exists():
            todo.append(job)
    if conflicts and not overwrite:
        raise ValueError(conflict_message(conflicts))
    _refuse_other_recipes(planned)
    return todo


def _refuse_other_recipes(planned: Sequence[AgentJob]) -> None:
    """Refuse a folder whose other runs could not share a table with the planned ones."""
    first = planned[0]
    wanted = config_of(first.recipe, variant_named(first.variant), first.seed, first.task)
    folders = {job.folder for job in planned}
    root = first.root
    for path in sorted(root.rglob(CONFIG)):
        if path.parent in folders:
            continue
        try:
            there = read_config(path)
        except RunFileError:
            # Named when the table is made.
            continue
        found = differences(there.problem_options, wanted.problem_options)
        if found:
            raise ValueError(
                f"{path.parent} was trained by another recipe ({'; '.join(found[:3])}), and would "
                f"share a table with these runs. Give another --out, or name "
                f"{there.method} as well, with its seeds and --overwrite."
            )
