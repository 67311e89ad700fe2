"""A comparison: every method with every seed, and the single-task baselines."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ntkmtl import weighting
from ntkmtl.balance import Balancer
from ntkmtl.errors import MissingExtraError
from ntkmtl.files import write_json
from ntkmtl.training.baselines import BaselineCache, baseline_key
from ntkmtl.training.environment import cores
from ntkmtl.training.lookup import find_problem
from ntkmtl.training.reporters import Reporter
from ntkmtl.training.runs import (
    CHECKPOINT,
    CONFIG,
    FILES,
    RESULT,
    SCHEMA,
    SINGLE_TASK,
    RunFileError,
    differences,
    load_run,
    read_config,
    run_folder,
)
from ntkmtl.training.signals import stop_requests
from ntkmtl.training.trainer import run_identity, steps_per_epoch
from ntkmtl.training.workers import Failure, Job, run_jobs

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from ntkmtl.problems.base import Problem, Recipe

__all__ = [
    "ALL_METHODS",
    "Comparison",
    "Failure",
    "Plan",
    "Sweep",
    "SweepError",
    "changed_recipe",
    "compare",
    "method_names",
    "plan",
]

ALL_METHODS = "all"
"""Stands for every registered method."""

LOCK = ".ntkmtl.lock"


class SweepError(ValueError):
    """A comparison cannot be done as asked for; nothing was trained or changed."""


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        problem: Registered name, or ``module.path:ClassName``.
        methods: Names of methods; ``"all"`` stands for every one, ``"stl"`` for the baselines.
        seeds: Seeds, not negative.
        out: Folder for the runs. It is locked: a second process is refused.
        jobs: Worker processes; the cores are shared out among them. 1 trains in this process.
        problem_options: Options given to the problem.
        method_options: Options given to the Balancer, by method.
        epochs: Instead of the recipe's; fewer make the recipe a reduced one.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's.
        minibatches: Instead of the recipe's.
        single_task_baselines: Whether to train the baselines that Delta-m compares with.
        tasks: The tasks to train baselines for, all that a metric judges if None.
        checkpoint_seconds: Least time between two checkpoints of a run.
    """

    problem: str
    methods: Sequence[str]
    seeds: Sequence[int]
    out: str | os.PathLike[str]
    jobs: int = 1
    problem_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    minibatches: int | None = None
    single_task_baselines: bool = True
    tasks: Sequence[str] | None = None
    checkpoint_seconds: float = 5.0


@dataclass(frozen=True)
class Plan:
    """What a comparison has to do.

    Attributes:
        problem: Name of the problem.
        out: Folder of the comparison.
        jobs: Runs to train, in this order.
        complete: Number of runs that are already complete.
        conflicts: Folders that hold other runs, with what differs.
        asked: Content of ``compare.json``.
    """

    problem: str
    out: Path
    jobs: tuple[Job, ...]
    complete: int
    conflicts: Mapping[Path, Sequence[str]]
    asked: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What came of a comparison.

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
    seconds: float


def method_names(asked: Sequence[str]) -> list[str]:
    """Return the names of methods in the order asked for, each once.

    Args:
        asked: Names; ``"all"`` stands for every method but the single-task baselines.

    Raises:
        SweepError: A name is unknown.
    """
    found: dict[str, None] = {}
    for name in asked:
        if name == ALL_METHODS:
            found.update(dict.fromkeys(n for n in weighting.names() if n != SINGLE_TASK))
            continue
        try:
            found[weighting.spec(name).name] = None
        except ValueError as error:
            raise SweepError(str(error)) from error
    return list(found)


def changed_recipe(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    minibatches: int | None = None,
) -> Recipe:
    """Return a recipe with some settings changed.

    Fewer epochs than the recipe's make it a reduced one, and the description says what was changed.

    Args:
        recipe: The recipe.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        minibatches: The paper's n.

    Example:
        >>> from ntkmtl.problems.base import Recipe
        >>> recipe = Recipe(epochs=30, batch_size=64, learning_rate=1e-3, description="Published")
        >>> changed = changed_recipe(recipe, epochs=3)
        >>> changed.reduced, changed.description
        (True, 'Published (changed: epochs 30 to 3)')
    """
    wanted = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "minibatches": minibatches,
    }
    current = asdict(recipe)
    changes = {k: v for k, v in wanted.items() if v is not None and v != current[k]}
    if not changes:
        return recipe
    words = ", ".join(
        f"{key.replace('_', ' ')} {current[key]} to {new}" for key, new in changes.items()
    )
    return replace(
        recipe,
        **changes,  # type: ignore[arg-type]
        reduced=recipe.reduced or (epochs is not None and epochs < recipe.epochs),
        description=f"{recipe.description} (changed: {words})".strip(),
    )


def plan(comparison: Comparison) -> Plan:
    """Work out what a comparison has to train, and refuse at once what cannot be done.

    Raises:
        SweepError: An unknown method, a wrong option, an impossible recipe.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file of an earlier run is damaged.
    """
    return _plan(comparison, find_problem(comparison.problem, comparison.problem_options))


def _plan(asked: Comparison, problem: Problem) -> Plan:
    if asked.jobs < 1:
        raise SweepError(f"jobs must be at least 1. Found {asked.jobs}.")
    if not asked.seeds:
        raise SweepError("at least one seed is needed. Found none.")
    names = method_names(asked.methods)
    baselines = asked.single_task_baselines or SINGLE_TASK in names
    names = [name for name in names if name != SINGLE_TASK]
    recipe = changed_recipe(
        problem.recipe,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        minibatches=asked.minibatches,
    )
    options = _method_options(problem, names, asked.method_options, recipe)
    judged = _tasks(problem, asked.tasks) if baselines else []
    threads = max(1, cores() // asked.jobs)
    seeds = list(dict.fromkeys(asked.seeds))

    jobs: list[Job] = []
    complete = 0
    conflicts: dict[Path, Sequence[str]] = {}
    # All of one seed first: a sweep that is stopped half-way already has a whole table.
    for seed in seeds:
        runs: list[tuple[str, str | None]] = [(name, None) for name in names]
        runs += [(SINGLE_TASK, task) for task in judged]
        for method, task in runs:
            chosen = options.get(method, {})
            try:
                identity = run_identity(
                    problem, method, seed, recipe=recipe, method_options=chosen, single_task=task
                )
            except ValueError as error:
                raise SweepError(str(error)) from error
            folder = run_folder(asked.out, problem.name, method, seed, task)
            if (folder / CONFIG).exists():
                found = differences(read_config(folder / CONFIG).identity(), identity)
                if found:
                    conflicts[folder] = found
                elif (folder / RESULT).exists():
                    load_run(folder)
                    complete += 1
                    continue
            jobs.append(
                Job(
                    problem=asked.problem,
                    problem_options=dict(asked.problem_options),
                    method=method,
                    method_options=chosen,
                    seed=seed,
                    task=task,
                    recipe=recipe,
                    folder=folder,
                    threads=threads,
                    checkpoint_seconds=asked.checkpoint_seconds,
                    steps=recipe.epochs * steps_per_epoch(problem, recipe),
                    identity=identity,
                    key="" if task is None else baseline_key(identity, type(problem), threads),
                )
            )
    return Plan(
        problem=problem.name,
        out=Path(asked.out),
        jobs=tuple(jobs),
        complete=complete,
        conflicts=conflicts,
        asked={
            "schema": SCHEMA,
            "problem": problem.name,
            "problem_source": asked.problem,
            "problem_options": dict(asked.problem_options),
            "methods": names,
            "method_options": {name: dict(v) for name, v in asked.method_options.items()},
            "seeds": seeds,
            "recipe": asdict(recipe),
            "single_task_baselines": baselines,
        },
    )


def _tasks(problem: Problem, asked: Sequence[str] | None) -> list[str]:
    """Return the tasks to train baselines for."""
    judged = [t for t in problem.tasks if any(metric.task == t for metric in problem.metrics)]
    for task in asked or ():
        if task not in judged:
            raise SweepError(
                f"{problem.name} has no task {task!r} with a metric; it has {', '.join(judged)}"
            )
    return judged if asked is None else list(asked)


def _method_options(
    problem: Problem,
    names: Sequence[str],
    asked: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
) -> dict[str, dict[str, Any]]:
    """Return the options of each method, tried out on a Balancer."""
    by_name: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, values in asked.items():
        if name not in by_name:
            raise SweepError(
                f"options are given for {name!r}, which is not among the methods compared"
            )
        by_name[name].update(values)
    for name, values in by_name.items():
        # The recipe's n is for the methods that have an n above 1 by their own definition.
        if "minibatches" in weighting.spec(name).defaults:
            values.setdefault("minibatches", recipe.minibatches)
        try:
            Balancer(name, tasks=list(problem.tasks), **values)
        except MissingExtraError:
            raise
        except (TypeError, ValueError) as error:
            raise SweepError(f"method {name}: {error}") from error
    return by_name


def compare(
    comparison: Comparison,
    *,
    overwrite: bool = False,
    keep_request: bool = True,
    cache: BaselineCache | None = None,
    reporter: Reporter | None = None,
) -> Sweep:
    """Train a problem with several methods over several seeds.

    What is complete is not trained again, and what was stopped goes on from its last checkpoint.
    Ctrl-C and SIGTERM stop every run at a step boundary. A run that fails does not stop the others;
    its folder says why in ``failure.json``.

    With more than one job the runs are trained in processes that import the main module anew, so a
    script that calls this does so under ``if __name__ == "__main__":``.

    Args:
        comparison: What is asked for.
        overwrite: Whether runs in its folder with another configuration are replaced.
        keep_request: Whether to write ``compare.json``, which gives tables the methods' order.
        cache: Where single-task baselines are kept; the user's cache folder if None.
        reporter: Told how it gets on; silent if None.

    Raises:
        SweepError: An unknown method, a wrong option, an impossible recipe, a folder in use or one
            that holds other runs. Nothing was trained or changed.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file of an earlier run is damaged.
        OSError: The folder cannot be written.
    """
    started = time.monotonic()
    reporter = reporter or Reporter()
    cache = cache or BaselineCache()
    problem = find_problem(comparison.problem, comparison.problem_options)
    # Planned before the folder is made as well, so that a mistyped name leaves nothing behind.
    _plan(comparison, problem)
    with _locked(Path(comparison.out)):
        todo = _plan(comparison, problem)
        if todo.conflicts and not overwrite:
            raise SweepError(_conflict_message(todo))
        for folder in todo.conflicts:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        if keep_request:
            write_json(todo.out / "compare.json", todo.asked)

        work = [job for job in todo.jobs if not _from_cache(job, cache, reporter)]
        cached = len(todo.jobs) - len(work)
        already = [
            f"{count} {what}"
            for count, what in (
                (todo.complete, "complete already"),
                (cached, "baselines from the cache"),
            )
            if count
        ]
        if already:
            reporter.message(f"Not trained again: {', '.join(already)}")

        def keep(job: Job) -> None:
            if not job.key:
                return
            try:
                cache.store(job.key, job.folder)
            except OSError as error:
                reporter.message(f"{job.label}: the baseline was not kept in the cache: {error}")

        try:
            with stop_requests() as requested:
                reporter.start(len(work), sum(job.steps for job in work))
                outcome = run_jobs(work, comparison.jobs, reporter, requested, keep)
        finally:
            reporter.close()
    return Sweep(
        problem=todo.problem,
        out=todo.out,
        trained=len(outcome.finished),
        complete=todo.complete,
        cached=cached,
        unfinished=len(work) - len(outcome.finished) - len(outcome.failures),
        failures=outcome.failures,
        interrupted=outcome.interrupted,
        seconds=time.monotonic() - started,
    )


def _conflict_message(todo: Plan) -> str:
    folder, found = next(iter(todo.conflicts.items()))
    others = len(todo.conflicts) - 1
    more = f" (and {others} more like it)" if others else ""
    return (
        f"{folder} holds another run{more}: {'; '.join(found)}. "
        "Give another --out, or --overwrite to replace what differs."
    )


def _from_cache(job: Job, cache: BaselineCache, reporter: Reporter) -> bool:
    """Copy a baseline from the cache; return whether it is now complete."""
    if not job.key:
        return False
    try:
        found = cache.fetch(job.key, job.identity, job.folder)
    except RunFileError as error:
        reporter.message(f"{job.label}: the cached baseline is damaged and discarded: {error}")
        cache.discard(job.key)
        return False
    if found:
        (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SweepError(
            f"another process is working in {out}; wait until it is done, or give another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
