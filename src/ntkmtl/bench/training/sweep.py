"""Training a comparison: every method with every seed, and the single-task baselines."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ntkmtl.bench.compute.device import Arithmetic, choose_device
from ntkmtl.bench.compute.processes import launched
from ntkmtl.bench.jobs.engine import run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.runs import FAILURE, RunFileError, clear_run
from ntkmtl.bench.runs.folder import remove_checkpoints, run_lock, sweep_lock
from ntkmtl.bench.runs.layout import folder_name
from ntkmtl.bench.runs.run import Reference, read_references, save_references
from ntkmtl.bench.training.baselines import BaselineCache, read_baseline
from ntkmtl.bench.training.comparison import Comparison, SweepError, recipe_of
from ntkmtl.bench.training.log import check_tracker
from ntkmtl.bench.training.planning import check_numbers, conflict_message, plan_runs
from ntkmtl.errors import MissingExtraError
from ntkmtl.files import write_json

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import Engine, Failure, Runner
    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.training.planning import Plan
    from ntkmtl.bench.training.trainer import TrainingJob

__all__ = ["Sweep", "checked", "compare", "recipe_line"]


@dataclass(frozen=True)
class Sweep:
    """The outcome of a comparison.

    Attributes:
        problem: Name of the problem.
        out: Its folder.
        trained: Runs trained now.
        complete: Runs that were complete before.
        cached: Baselines that were copied from the cache.
        unfinished: Runs that are still to be trained.
        failures: Runs that failed.
        interrupted: True if it was stopped before the end.
        seconds: Time taken.
    """

    problem: str
    out: Path
    trained: int
    complete: int
    cached: int
    unfinished: int
    failures: tuple[Failure, ...]
    interrupted: bool
    seconds: float = 0.0


def compare(
    comparison: Comparison,
    *,
    overwrite: bool = False,
    keep_request: bool = True,
    share_folder: bool = False,
    cache: BaselineCache | None = None,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Train a problem with several methods over several seeds.

    What is complete is not trained again, and what was stopped resumes from its last checkpoint.
    Ctrl-C and SIGTERM stop every run at a step boundary. A run that fails does not stop the others;
    its folder says why in ``failure.json``.

    With more than one job the runs are trained in processes that import the main module again, so a
    script that calls this does so under ``if __name__ == "__main__":``.

    Args:
        comparison: What is asked for.
        overwrite: Whether runs in its folder with another configuration are replaced.
        keep_request: Whether to write ``compare.json``, which gives tables the methods' order.
        share_folder: Whether other processes may train other runs in the folder meanwhile; each run
            is locked in any case. A second process is refused if not.
        cache: Where single-task baselines are kept; the user's cache folder if None.
        reporter: Receives the progress; silent if None.
        engine: Trains the runs, as :class:`ntkmtl.bench.jobs.ray_engine.RayEngine`; processes on
            this machine if None.

    Raises:
        SweepError: An unknown method, a wrong option, an impossible recipe, a folder that holds
            other runs, or an engine that cannot be started. Nothing was trained or changed.
        RunBusyError: Another process works in the folder.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file of an earlier run is damaged.
        OSError: The folder cannot be written.
    """
    begun = time.monotonic()
    reporter = reporter or Reporter()
    comparison = checked(comparison, engine)
    problem = find_problem(comparison.problem, comparison.problem_options, try_out=True)
    # Planned before the folder is made as well, so that a mistyped name leaves nothing behind.
    plan_runs(comparison, problem)
    if notice := problem.notice():
        reporter.message(f"{notice}\n{recipe_line(recipe_of(comparison, problem))}")
    out = Path(comparison.out)
    lock = contextlib.nullcontext() if share_folder else sweep_lock(out)
    with lock, contextlib.ExitStack() as stack:
        todo = plan_runs(comparison, problem)
        if todo.conflicts and not overwrite:
            raise SweepError(conflict_message(todo.conflicts))
        chosen = LocalEngine(comparison.jobs) if engine is None or not todo.jobs else engine
        runner = stack.enter_context(chosen.start(out, reporter.message))
        for folder in todo.conflicts:
            with run_lock(folder):
                clear_run(folder)
        if keep_request:
            write_json(out / "compare.json", todo.asked)
        sweep = _train(todo, problem, runner, reporter, cache or BaselineCache())
        if comparison.references and keep_request and not sweep.interrupted:
            _write_references(problem, out, reporter)
        return replace(sweep, seconds=time.monotonic() - begun)


def _train(
    todo: Plan, problem: Problem, runner: Runner, reporter: Reporter, cache: BaselineCache
) -> Sweep:
    """Train the runs of a plan that the cache does not hold."""
    jobs = [job for job in todo.jobs if not _from_cache(job, cache, reporter)]
    cached = len(todo.jobs) - len(jobs)
    counts = ((todo.complete, "complete already"), (cached, "baselines from the cache"))
    if already := [f"{count} {what}" for count, what in counts if count]:
        reporter.message(f"Not trained again: {', '.join(already)}")

    def ended(job: TrainingJob, seconds: float, error: str) -> None:
        if not job.key:
            return
        try:
            cache.store(job.key, job.folder)
        except OSError as failure:
            reporter.message(f"{job.label}: the baseline was not kept in the cache: {failure}")

    def prepare(job: TrainingJob) -> TrainingJob:
        if not job.scored:
            return job
        baseline = read_baseline(problem, todo.out, job.spec.seed)
        return replace(job, spec=replace(job.spec, baseline=baseline))

    outcome = run_jobs(jobs, runner, reporter, on_ended=ended, prepare=prepare)
    return Sweep(
        problem=todo.problem,
        out=todo.out,
        trained=len(outcome.finished),
        complete=todo.complete,
        cached=cached,
        unfinished=len(jobs) - len(outcome.finished) - len(outcome.failures),
        failures=outcome.failures,
        interrupted=outcome.interrupted,
    )


def checked(comparison: Comparison, engine: Engine | None) -> Comparison:
    """Return a comparison that can be trained where it is asked for, its number of threads chosen.

    Args:
        comparison: The comparison.
        engine: The engine, None for processes on this machine.

    Raises:
        SweepError: A number is wrong, the device is missing or lacks the precision, there is no
            such tracker, ``OMP_NUM_THREADS`` is not a number, or launched processes do not go with
            the engine.
        MissingExtraError: The tracker is not installed.
    """
    check_numbers(comparison)
    if launched() > 1 and (comparison.jobs > 1 or engine is not None):
        raise SweepError(
            f"the {launched()} processes that were launched train one run together, and the runs "
            "one after another: jobs must be 1, and there can be no engine"
        )
    try:
        check_tracker(comparison.tracker)
        if engine is None:
            place = choose_device(comparison.device)
            Arithmetic(comparison.training.get("precision", "fp32"), place)
        if comparison.threads is None:
            engine = engine or LocalEngine(comparison.jobs)
            comparison = replace(comparison, threads=engine.threads)
    except ValueError as error:
        raise SweepError(str(error)) from error
    return comparison


def recipe_line(recipe: Recipe) -> str:
    """Return a recipe in one line, for people.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe_line(Recipe(epochs=2, batch_size=64, learning_rate=1e-3, description="Tiny"))
        'Recipe: 2 epochs, batches of 64, learning rate 0.001, the last epoch is tested. Tiny.'
    """
    chosen = {
        "last": "the last epoch is tested",
        "validation": "the epoch is chosen on the validation split",
    }[recipe.chosen_epoch]
    description = f" {recipe.description.removesuffix('.')}." if recipe.description else ""
    epochs = f"{recipe.epochs:,} epoch{'' if recipe.epochs == 1 else 's'}"
    if recipe.lbfgs_steps:
        epochs += f" of Adam and {recipe.lbfgs_steps:,} of L-BFGS"
    return (
        f"Recipe: {epochs}, batches of {recipe.batch_size:,}, learning rate "
        f"{recipe.learning_rate:g}, {chosen}.{description}"
    )


def _from_cache(job: TrainingJob, cache: BaselineCache, reporter: Reporter) -> bool:
    """Copy a baseline from the cache; return whether it is now complete."""
    if not job.key:
        return False
    try:
        found = cache.fetch(job.key, job.identity, job.folder, job.spec.keep_model)
    except RunFileError as error:
        reporter.message(f"{job.label}: the cached baseline is damaged and discarded: {error}")
        cache.discard(job.key)
        return False
    except OSError as error:
        reporter.message(f"{job.label}: the cached baseline cannot be copied: {error}")
        return False
    if found:
        remove_checkpoints(job.folder)
        (job.folder / FAILURE).unlink(missing_ok=True)
    return found


def _write_references(problem: Problem, out: Path, reporter: Reporter) -> None:
    """Compute the references of a problem and keep them beside its runs, once.

    Args:
        problem: The problem.
        out: The comparison's folder.
        reporter: Is told if there are none as a package for them is not installed.

    Raises:
        RunFileError: The file of an earlier comparison is damaged.
        OSError: The file cannot be written.
    """
    folder = out / folder_name(problem.name)
    if read_references(folder, problem.options, len(problem.metrics)):
        return
    begun = time.monotonic()
    try:
        found = problem.references()
    except MissingExtraError as error:
        reporter.message(f"The table has no reference rows: {error}")
        return
    if not found:
        return
    seconds = (time.monotonic() - begun) / len(found)
    rows = [
        Reference(name, problem.reference_words.get(name, name), tuple(map(float, values)), seconds)
        for name, values in found.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    save_references(folder, problem.options, rows)
