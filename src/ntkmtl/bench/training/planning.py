"""Planning a comparison: the runs to train, those that are complete, and those in the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ntkmtl import weighting
from ntkmtl.balance import Balancer
from ntkmtl.bench.compute.environment import check_threads, default_threads
from ntkmtl.bench.compute.processes import launched
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.runs import (
    CONFIG,
    RECORD,
    RESULT,
    SCHEMA,
    SINGLE_TASK,
    RunFileError,
    differences,
    load_run,
    read_config,
    run_folder,
)
from ntkmtl.bench.runs.folder import remove_checkpoints
from ntkmtl.bench.training.baselines import baseline_key
from ntkmtl.bench.training.comparison import SweepError, recipe_of, recipes_by_method
from ntkmtl.bench.training.spec import (
    RunSpec,
    record_differences,
    record_settings,
    reruns_trunk,
    run_identity,
    total_steps,
)
from ntkmtl.bench.training.trainer import TrainingJob
from ntkmtl.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.training.comparison import Comparison

__all__ = [
    "Plan",
    "Planner",
    "check_numbers",
    "conflict_message",
    "damaged",
    "judged_tasks",
    "options_by_method",
    "plan",
    "plan_runs",
]


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
    jobs: tuple[TrainingJob, ...]
    complete: int
    conflicts: Mapping[Path, Sequence[str]]
    asked: Mapping[str, Any]


def plan(comparison: Comparison) -> Plan:
    """Work out what a comparison has to train, and refuse at once what cannot be done.

    Args:
        comparison: What is asked for.

    Raises:
        SweepError: An unknown method, a wrong option, an impossible recipe.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file of an earlier run is damaged.
    """
    return plan_runs(comparison, find_problem(comparison.problem, comparison.problem_options))


def plan_runs(asked: Comparison, problem: Problem) -> Plan:
    """Plan a comparison whose problem has been made; see :func:`plan`.

    Args:
        asked: The comparison.
        problem: Its problem.
    """
    check_numbers(asked)
    baselines = asked.single_task_baselines or SINGLE_TASK in asked.names
    names = [name for name in asked.names if name != SINGLE_TASK]
    recipe = recipe_of(asked, problem)
    if (asked.minibatches or 1) > recipe.batch_size:
        raise SweepError(
            f"minibatches must be at most the batch size, {recipe.batch_size}, found "
            f"{asked.minibatches}"
        )
    recipes = recipes_by_method(names, asked.method_recipes, recipe)
    options, scored = options_by_method(problem, names, asked.method_options, recipe)
    seeds = list(dict.fromkeys(asked.seeds))
    every, chosen = judged_tasks(problem, None), judged_tasks(problem, asked.tasks)
    if not problem.has_baselines:
        if scored or SINGLE_TASK in asked.names:
            raise SweepError(
                f"the tasks of {problem.name} cannot be trained alone, which "
                f"{', '.join(sorted(scored)) or SINGLE_TASK} needs; leave it out"
            )
        baselines, chosen = False, []
    # Methods that are judged against the baselines during training need all of them.
    single = every if scored else chosen if baselines else []
    try:
        planner = Planner(asked, problem, recipe, options, recipes)
        # All of one seed first: a sweep that is stopped half-way already has a whole table.
        for seed in seeds:
            planner.add_seed(seed, names, single, scored)
    except RunFileError:
        raise
    except ValueError as error:
        raise SweepError(str(error)) from error
    return Plan(
        problem=problem.name,
        out=Path(asked.out),
        jobs=tuple(planner.jobs),
        complete=planner.complete,
        conflicts=planner.conflicts,
        asked={
            "schema": SCHEMA,
            "problem": problem.name,
            "problem_source": asked.problem,
            "problem_options": dict(asked.problem_options),
            "methods": names,
            "method_options": {name: dict(v) for name, v in asked.method_options.items()},
            "seeds": seeds,
            "recipe": recipe.to_json(),
            "single_task_baselines": baselines,
            **({"method_recipes": asked.method_recipes} if asked.method_recipes else {}),
        },
    )


def check_numbers(asked: Comparison) -> None:
    """Refuse numbers that no comparison can have.

    Args:
        asked: The comparison.

    Raises:
        SweepError: A number is of another type or out of range, or there is no seed.
    """
    for key in ("jobs", "threads"):
        value = getattr(asked, key)
        if value is None and key == "threads":
            continue
        if not isinstance(value, int):
            raise SweepError(f"{key} must be a whole number, found {value!r}")
        if value < 1:
            raise SweepError(f"{key} must be at least 1, found {value}")
    try:
        check_threads(asked.threads)
    except ValueError as error:
        raise SweepError(str(error)) from error
    if not asked.seeds:
        raise SweepError("at least one seed is needed, found none")


def judged_tasks(problem: Problem, asked: Sequence[str] | None) -> list[str]:
    """Return the tasks to train baselines for.

    Args:
        problem: The problem.
        asked: Names of tasks; all that a metric judges if None.

    Raises:
        SweepError: There is no such task with a metric.
    """
    judged = [t for t in problem.tasks if any(metric.task == t for metric in problem.metrics)]
    for task in asked or ():
        if task not in judged:
            raise SweepError(
                f"{problem.name} has no task {task!r} with a metric; it has {', '.join(judged)}"
            )
    return judged if asked is None else list(asked)


def options_by_method(
    problem: Problem,
    names: Sequence[str],
    asked: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the options of each method, tried out on a Balancer, and the methods given scores.

    Args:
        problem: The problem.
        names: The methods.
        asked: Options by method.
        recipe: Gives the number of mini-batches.

    Raises:
        SweepError: An option is wrong, or its method is not compared.
        MissingExtraError: A method needs something that is not installed.
    """
    scored = set()
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
            trunk = nn.Identity() if reruns_trunk(name, values) else None
            balancer = Balancer(name, tasks=list(problem.tasks), trunk=trunk, **values)
        except MissingExtraError:
            raise
        except (TypeError, ValueError) as error:
            raise SweepError(f"method {name}: {error}") from error
        if balancer.weighting.needs_scores:
            scored.add(name)
    return by_name, scored


class Planner:
    """Collects the runs to train, those that are complete, and those in the way.

    Args:
        asked: The comparison.
        problem: Its problem.
        recipe: The recipe of methods that are not in ``recipes``.
        options: Options by method.
        recipes: Recipes by method.

    Raises:
        ValueError: What to record makes no sense, or ``OMP_NUM_THREADS`` is not a number.
    """

    def __init__(
        self,
        asked: Comparison,
        problem: Problem,
        recipe: Recipe,
        options: Mapping[str, Mapping[str, Any]],
        recipes: Mapping[str, Recipe] | None = None,
    ) -> None:
        self.asked = asked
        self.problem = problem
        self.recipe = recipe
        self.options = options
        self.recipes = recipes or {}
        self.threads = asked.threads or default_threads(asked.jobs)
        self.jobs: list[TrainingJob] = []
        self.complete = 0
        self.conflicts: dict[Path, Sequence[str]] = {}

    def add_seed(
        self, seed: int, names: Sequence[str], single: Sequence[str], scored: set[str]
    ) -> None:
        """Plan the runs of one seed.

        Args:
            seed: The seed.
            names: The methods.
            single: Tasks to train baselines for.
            scored: The methods that are given scores, which need the baselines first.

        Raises:
            ValueError: The parts of a run do not fit each other.
        """
        for name in names:
            if name not in scored:
                self.add(name, seed)
        for task in single:
            self.add(SINGLE_TASK, seed, task)
        out, problem = self.asked.out, self.problem.name
        after = tuple(run_folder(out, problem, SINGLE_TASK, seed, task) for task in single)
        for name in names:
            if name in scored:
                self.add(name, seed, after=after, scored=True)

    def add(self, method: str, seed: int, task: str | None = None, **more: Any) -> None:
        """Plan one run.

        Raises:
            ValueError: The parts of the run do not fit each other.
        """
        job = self.job(method, seed, task=task, **more)
        if (job.folder / CONFIG).exists():
            try:
                if self._is_complete(job):
                    self.complete += 1
                    return
            except RunFileError as error:
                # To be replaced, if that is asked for, as a run with other settings is.
                self.conflicts[job.folder] = [damaged(error)]
        self.jobs.append(job)

    def _is_complete(self, job: TrainingJob) -> bool:
        """Return whether a run needs no training; note what differs if the folder holds another.

        Raises:
            RunFileError: A file of the run is damaged.
        """
        found = differences(read_config(job.folder / CONFIG).identity(), job.identity)
        complete = not found and (job.folder / RESULT).exists()
        if complete and job.spec.single_task is None:
            settings = record_settings(job.spec.record, self._recipe_of(job.spec.method))
            found = record_differences(job.folder / RECORD, settings)
        if found:
            self.conflicts[job.folder] = found
            return False
        if complete:
            load_run(job.folder)
            remove_checkpoints(job.folder)  # a kill may come between result and removal
        return complete

    def job(
        self,
        method: str,
        seed: int,
        *,
        task: str | None = None,
        folder: Path | None = None,
        **more: Any,
    ) -> TrainingJob:
        """Return the job of one run.

        Args:
            method: The method.
            seed: The seed.
            task: The task of a single-task baseline.
            folder: The run's folder; that of a run of the comparison if None.
            **more: Other fields of the job.

        Raises:
            ValueError: The parts of the run do not fit each other.
        """
        asked, recipe = self.asked, self._recipe_of(method)
        record = asked.record if task is None else None
        record_settings(record, recipe)  # an error in them is raised here
        options = self.options.get(method, {})
        identity = run_identity(
            self.problem, method, seed, recipe=recipe, method_options=options, single_task=task
        )
        steps = total_steps(self.problem, recipe)
        spec = RunSpec(
            method=method,
            seed=seed,
            recipe=recipe,
            method_options=dict(options),
            single_task=task,
            threads=self.threads,
            checkpoint_seconds=asked.checkpoint_seconds,
            record=record,
            device=asked.device,
            tracker=asked.tracker,
            keep_model=asked.keep_model,
        )
        return TrainingJob(
            problem=asked.problem,
            problem_options=dict(asked.problem_options),
            spec=spec,
            folder=folder or run_folder(asked.out, self.problem.name, method, seed, task),
            steps=steps,
            identity=identity,
            key="" if task is None else self._cache_key(identity),
            **more,
        )

    def _recipe_of(self, method: str) -> Recipe:
        return self.recipes.get(method, self.recipe)

    def _cache_key(self, identity: Mapping[str, Any]) -> str:
        """Return the key of a baseline in the cache, which also depends on where it is trained."""
        usual = {"device": "cpu", "processes": 1}
        place = {"device": self.asked.device, "processes": launched()}
        placed = {**identity, **{k: v for k, v in place.items() if v != usual[k]}}
        return baseline_key(placed, type(self.problem), self.threads)


_DAMAGED = "damaged: "
"""Prefix of the entry for a run whose files cannot be read."""


def damaged(error: RunFileError) -> str:
    """Return the entry among conflicts for a run whose file cannot be read."""
    return f"{_DAMAGED}{error}"


def conflict_message(conflicts: Mapping[Path, Sequence[str]]) -> str:
    """Return the message of an error about folders that hold other runs.

    Args:
        conflicts: The folders, with what differs in each.
    """
    folder, found = next(iter(conflicts.items()))
    others = len(conflicts) - 1
    more = f" (and {others} more like it)" if others else ""
    kind = "a damaged run" if found[0].startswith(_DAMAGED) else "another run"
    return (
        f"{folder} holds {kind}{more}: {'; '.join(found).removeprefix(_DAMAGED)}. "
        "Give another --out, or --overwrite to replace what differs."
    )
