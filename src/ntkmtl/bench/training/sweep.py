"""A comparison: every method with every seed, and the single-task baselines."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ntkmtl import weighting
from ntkmtl.balance import Balancer
from ntkmtl.bench.compute.accelerate_ import check_tracker
from ntkmtl.bench.compute.device import Arithmetic, Device, choose_device
from ntkmtl.bench.compute.environment import cores
from ntkmtl.bench.compute.processes import launched
from ntkmtl.bench.compute.stop_requests import stop_requests
from ntkmtl.bench.problems.base import Recipe
from ntkmtl.bench.runs import (
    CHECKPOINT,
    CONFIG,
    FAILURE,
    RECORD,
    RESULT,
    SCHEMA,
    SINGLE_TASK,
    STUDY,
    RunFileError,
    clear_run,
    differences,
    load_run,
    read_config,
    run_folder,
)
from ntkmtl.bench.runs.checkpoints import remove_checkpoints
from ntkmtl.bench.runs.locks import sweep_lock
from ntkmtl.bench.training.baselines import BaselineCache, baseline_key
from ntkmtl.bench.training.engines import EngineError
from ntkmtl.bench.training.identity import reruns_trunk, run_identity, steps_per_epoch
from ntkmtl.bench.training.lookup import find_problem
from ntkmtl.bench.training.methods import ALL_METHODS, MethodLike, named_all
from ntkmtl.bench.training.recording import record_differences, record_settings
from ntkmtl.bench.training.reporters import Reporter
from ntkmtl.bench.training.scores import read_baseline
from ntkmtl.bench.training.studies import (
    COMPLETE,
    DIVERGED,
    TUNING,
    Study,
    Trial,
    read_study,
    study_request,
    weight_parameters,
)
from ntkmtl.bench.training.workers import Failure, Job, run_jobs
from ntkmtl.errors import MissingExtraError
from ntkmtl.files import write_json
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Problem
    from ntkmtl.bench.training.engines import Engine

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

TUNED = "fixed"
"""The method whose task weights a tuning searches."""

_CHANGES = ("epochs", "batch_size", "learning_rate", "minibatches", "training")
_TRAINING = ("precision", "accumulate", "clip", "compile", "on_nonfinite")


class SweepError(ValueError):
    """A comparison cannot be done as asked for; nothing was trained or changed."""


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        problem: Registered name, or ``module.path:ClassName``.
        methods: Names of methods, ``module.path:ClassName`` or ``path/file.py:ClassName`` for your
            own, or weightings; ``"all"`` stands for every registered one, ``"stl"`` for the
            baselines. Once made, a comparison holds names only.
        seeds: Seeds, not negative.
        out: Folder for the runs. It is locked: a second process is refused.
        jobs: Worker processes; the cores are shared out among them. 1 trains in this process.
        problem_options: Options given to the problem.
        method_options: Options given to the Balancer, by method.
        method_recipes: Changes of the recipe by method, as ``learning_rate``; after those for all.
            What :func:`changed_recipe` takes.
        epochs: Instead of the recipe's; fewer make the recipe a reduced one.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's.
        minibatches: Instead of the recipe's.
        single_task_baselines: Whether to train the baselines that Delta-m compares with.
        tasks: The tasks to train baselines for, all that a metric judges if None.
        checkpoint_seconds: Least time between two checkpoints of a run.
        tune: Least number of trials to search the task weights of ``fixed`` with, 0 for no search.
            Trial 0 has equal weights; the others draw each weight log-uniformly from 0.1 to 10.
            Each is a run with the first seed, judged by Delta-m on the validation split.
        tune_epochs: Epochs of a trial, those of the other runs if None.
        record: What to record of the kernel of each run but the baselines; see :func:`train`.
        threads: Threads that a run computes with; the cores shared out among the jobs if None. An
            engine of its own has a say of its own.
        training: ``precision``, ``accumulate``, ``clip``, ``compile`` and ``on_nonfinite`` instead
            of the recipe's.
        device: Where to train; see :func:`train`.
        tracker: What logs the runs while they are trained; see :func:`train`.
    """

    problem: str
    methods: Sequence[MethodLike]
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
    record: Mapping[str, Any] | None = None
    tune: int = 0
    tune_epochs: int | None = None
    threads: int | None = None
    method_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    device: Device = "cpu"
    tracker: str | None = None

    def __post_init__(self) -> None:
        names, options = _named(self.methods, self.method_options)
        object.__setattr__(self, "methods", names)
        object.__setattr__(self, "method_options", options)
        recipes = {
            weighting.spec(name).name if ":" in name else name: changes
            for name, changes in self.method_recipes.items()
        }
        object.__setattr__(self, "method_recipes", recipes)

    @property
    def names(self) -> list[str]:
        """The names under which runs keep the methods."""
        return [method for method in self.methods if isinstance(method, str)]


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
        study: The tuning, None for none.
    """

    problem: str
    out: Path
    jobs: tuple[Job, ...]
    complete: int
    conflicts: Mapping[Path, Sequence[str]]
    asked: Mapping[str, Any]
    study: Study | None = None


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


def method_names(asked: Sequence[MethodLike]) -> list[str]:
    """Return the names of methods in the order asked for, each once.

    Args:
        asked: Methods; ``"all"`` stands for every one but the single-task baselines.

    Raises:
        SweepError: A method is unknown.
    """
    return _named(asked, {})[0]


def _named(
    methods: Sequence[MethodLike], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    try:
        found, own = named_all(methods, options)
    except (TypeError, ValueError) as error:
        raise SweepError(str(error)) from error
    if not found:
        raise SweepError(f"at least one method is needed. Found {list(methods)}.")
    return found, own


def changed_recipe(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    minibatches: int | None = None,
    training: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe with some settings changed.

    Fewer epochs than the recipe's make it a reduced one, and the description says what was changed.

    Args:
        recipe: The recipe.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        minibatches: The paper's n.
        training: ``precision``, ``accumulate``, ``clip``, ``compile`` and ``on_nonfinite``, as far
            as they are to be changed.

    Raises:
        SweepError: ``training`` names anything else.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=30, batch_size=64, learning_rate=1e-3, description="Published")
        >>> changed = changed_recipe(recipe, epochs=3)
        >>> changed.reduced, changed.description
        (True, 'Published (changed: epochs 30 to 3)')
    """
    for key in training or ():
        if key not in _TRAINING:
            raise SweepError(f"training has no {key!r}; it has {', '.join(_TRAINING)}")
    wanted = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "minibatches": minibatches,
        **(training or {}),
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
        **changes,
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
    if asked.threads is not None and asked.threads < 1:
        raise SweepError(f"threads must be at least 1. Found {asked.threads}.")
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
        training=asked.training,
    )
    options, scored = _method_options(problem, names, asked.method_options, recipe)
    recipes = _method_recipes(names, asked.method_recipes, recipe)
    every, judged = _tasks(problem, None), _tasks(problem, asked.tasks)
    seeds = list(dict.fromkeys(asked.seeds))
    planner = _Planner(asked, problem, recipe, options, recipes)
    try:
        planner.record = record_settings(asked.record, recipe)
        study = _study(asked, problem, names, options, recipe, seeds[0])
        # All of one seed first: a sweep that is stopped half-way already has a whole table.
        for seed in seeds:
            tuned = study is not None and seed == study.seed
            # Who is judged against the baselines during training needs all of them.
            single = every if tuned or scored else judged if baselines else []
            for name in names:
                if name not in scored and not (study and name == TUNED):
                    planner.add(name, seed)
            for task in single:
                planner.add(SINGLE_TASK, seed, task)
            after = tuple(planner.folder(SINGLE_TASK, seed, task) for task in single)
            for name in names:
                if name in scored:
                    planner.add(name, seed, after=after, scored=True)
            if study is not None:
                if tuned:
                    planner.add_trials(study, after)
                planner.add_tuned(study, seed)
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
            "tune": asked.tune,
            "tune_epochs": asked.tune_epochs,
            **({"method_recipes": asked.method_recipes} if asked.method_recipes else {}),
        },
        study=study,
    )


class _Planner:
    """Collects the runs to train, those that are complete, and those in the way."""

    def __init__(
        self,
        asked: Comparison,
        problem: Problem,
        recipe: Recipe,
        options: Mapping[str, dict[str, Any]],
        recipes: Mapping[str, Recipe] | None = None,
    ) -> None:
        self.asked = asked
        self.problem = problem
        self.recipe = recipe
        self.options = options
        self.recipes = recipes or {}
        self.threads = asked.threads or max(1, cores() // asked.jobs)
        self.record: Mapping[str, Any] | None = None
        self.jobs: list[Job] = []
        self.complete = 0
        self.conflicts: dict[Path, Sequence[str]] = {}

    def folder(self, method: str, seed: int, task: str | None = None) -> Path:
        return run_folder(self.asked.out, self.problem.name, method, seed, task)

    def add(self, method: str, seed: int, task: str | None = None, **more: Any) -> None:
        """Plan one run of the comparison.

        Raises:
            ValueError: The parts of the run do not fit each other.
        """
        job = self._job(self.folder(method, seed, task), method, seed, task=task, **more)
        if (job.folder / CONFIG).exists():
            try:
                if self._is_complete(job):
                    self.complete += 1
                    return
            except RunFileError as error:
                # To be replaced, if that is asked for, as a run of other settings is.
                self.conflicts[job.folder] = [damaged(error)]
        self.jobs.append(job)

    def _is_complete(self, job: Job) -> bool:
        """Return whether a run needs no training; note what differs if the folder holds another.

        Raises:
            RunFileError: A file of the run is damaged.
        """
        found = differences(read_config(job.folder / CONFIG).identity(), job.identity)
        complete = not found and (job.folder / RESULT).exists()
        if complete and job.task is None:
            found = record_differences(job.folder / RECORD, self.record)
        if found:
            self.conflicts[job.folder] = found
            return False
        if complete:
            load_run(job.folder)
        return complete

    def add_trials(self, study: Study, after: tuple[Path, ...]) -> None:
        """Plan the trials that have not ended.

        Args:
            study: The tuning.
            after: Folders of the single-task networks that trials are judged against.
        """
        ended: Mapping[int, Trial] = {}
        if (study.folder / STUDY).exists():
            found = differences(read_study(study.folder), study.asked)
            if found:
                self.conflicts[study.folder] = found
            else:
                ended = study.ended()
        self.complete += len(ended)
        recipe = Recipe(**study.asked["recipe"])
        for number in range(study.trials):
            if number not in ended:
                job = self._job(
                    study.place(number),
                    TUNED,
                    study.seed,
                    recipe=recipe,
                    options={**self.options[TUNED], **_weights(study, number)},
                    after=after,
                    trial=number,
                )
                self.jobs.append(replace(job, record=None))

    def add_tuned(self, study: Study, seed: int) -> None:
        """Plan a run with the settings that a tuning finds, if it has not found them already."""
        trials = tuple(job.folder for job in self.jobs if job.trial is not None)
        if not trials:
            self.options[TUNED].update(study.best().method_options)
            self.add(TUNED, seed)
            return
        job = self._job(self.folder(TUNED, seed), TUNED, seed, after=trials, tuned=True)
        if (job.folder / CONFIG).exists():
            there = read_config(job.folder / CONFIG).identity()
            # What was found by fewer trials may be found again: that is seen when they have ended.
            settings = {k: v for k, v in there["method_options"].items() if k != "weights"}
            found = differences({**there, "method_options": settings}, job.identity)
            if "weights" not in there["method_options"]:
                found.append("method_options.weights is absent, asked for those to be found")
            if found:
                self.conflicts[job.folder] = found
        self.jobs.append(job)

    def _job(
        self,
        folder: Path,
        method: str,
        seed: int,
        *,
        task: str | None = None,
        recipe: Recipe | None = None,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Job:
        recipe = recipe or self.recipes.get(method, self.recipe)
        options = self.options.get(method, {}) if options is None else options
        identity = run_identity(
            self.problem, method, seed, recipe=recipe, method_options=options, single_task=task
        )
        kind = type(self.problem)
        return Job(
            problem=self.asked.problem,
            problem_options=dict(self.asked.problem_options),
            method=method,
            method_options=dict(options),
            seed=seed,
            task=task,
            recipe=recipe,
            folder=folder,
            threads=self.threads,
            checkpoint_seconds=self.asked.checkpoint_seconds,
            steps=recipe.epochs * steps_per_epoch(self.problem, recipe),
            identity=identity,
            key="" if task is None else baseline_key(self._placed(identity), kind, self.threads),
            record=self.asked.record if task is None else None,
            device=self.asked.device,
            tracker=self.asked.tracker,
            **more,
        )

    def _placed(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return an identity with where the numbers come from, unless it is the usual place."""
        place = {"device": self.asked.device, "processes": launched()}
        usual = {"device": "cpu", "processes": 1}
        return {**identity, **{k: v for k, v in place.items() if v != usual[k]}}


def _study(
    asked: Comparison,
    problem: Problem,
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
    seed: int,
) -> Study | None:
    """Return the tuning that is asked for.

    Raises:
        SweepError: It cannot be done.
    """
    if asked.tune < 0:
        raise SweepError(f"tune must not be negative. Found {asked.tune}.")
    if asked.tune == 0:
        if asked.tune_epochs is not None:
            raise SweepError("epochs of trials are given, but no number of trials to tune with")
        return None
    if TUNED not in names:
        raise SweepError(
            f"a tuning searches the weights of {TUNED!r}, which is not among the methods compared"
        )
    if "weights" in options[TUNED]:
        raise SweepError(f"the weights of {TUNED!r} are given: there is nothing to tune")
    if problem.size("val") == 0:
        raise SweepError(
            f"{problem.name} has no validation split to judge trials on, and the test split must "
            "not choose: give the problem one, from its training samples, or do not tune"
        )
    judged = _tasks(problem, None)
    if not judged:
        raise SweepError(f"{problem.name} has no metric to judge trials by")
    parameters = weight_parameters(problem.tasks)
    chosen = changed_recipe(recipe, epochs=asked.tune_epochs)
    identity = run_identity(problem, TUNED, seed, recipe=chosen, method_options=options[TUNED])
    study = Study(
        folder=run_folder(asked.out, problem.name, TUNED, seed).parent / TUNING,
        asked=study_request(identity, "random", parameters),
        parameters=parameters,
        trials=asked.tune,
    )
    # Trials that are there count: a search is not made better by forgetting some.
    return replace(study, trials=max(asked.tune, *(n + 1 for n in _known(study)), 0))


def _known(study: Study) -> Mapping[int, Trial]:
    """Return the trials that have ended, none if they are of another study."""
    if not (study.folder / STUDY).exists():
        return {}
    return {} if differences(read_study(study.folder), study.asked) else study.ended()


def _weights(study: Study, number: int) -> dict[str, list[float]]:
    """Return the options of the method that the parameters of a trial stand for."""
    return {"weights": list(study.draw(number).values())}


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
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the options of each method, tried out on a Balancer, and who wants to know scores."""
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


def _method_recipes(
    names: Sequence[str], asked: Mapping[str, Mapping[str, Any]], recipe: Recipe
) -> dict[str, Recipe]:
    """Return the recipes of the methods that have one of their own.

    Raises:
        SweepError: It is no method's here, or changes what there is not.
    """
    known = (*names, SINGLE_TASK)
    for name, changes in asked.items():
        if name not in known:
            raise SweepError(
                f"a recipe is given for {name!r}, which is not among the methods compared: "
                f"{', '.join(known)}"
            )
        for key in changes:
            if key not in _CHANGES:
                raise SweepError(
                    f"the recipe of {name} cannot change {key!r}; it can change "
                    f"{', '.join(_CHANGES)}"
                )
    return {name: changed_recipe(recipe, **changes) for name, changes in asked.items()}


def compare(
    comparison: Comparison,
    *,
    overwrite: bool = False,
    keep_request: bool = True,
    cache: BaselineCache | None = None,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
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
        engine: Who trains the runs, such as :class:`ntkmtl.bench.training.engines_ray.RayEngine`;
            processes on this machine if None.

    Raises:
        SweepError: An unknown method, a wrong option, an impossible recipe, a folder that holds
            other runs, or an engine that cannot be started. Nothing was trained or changed.
        RunBusyError: Another process works in the folder.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        MissingExtraError: A method needs something that is not installed.
        RunFileError: A file of an earlier run is damaged.
        OSError: The folder cannot be written.
    """
    started = time.monotonic()
    reporter = reporter or Reporter()
    cache = cache or BaselineCache()
    if engine is not None:
        comparison = replace(comparison, threads=engine.threads)
    _check_place(comparison, engine)
    problem = find_problem(comparison.problem, comparison.problem_options, try_out=True)
    if notice := problem.notice():
        reporter.message(notice)
    # Planned before the folder is made as well, so that a mistyped name leaves nothing behind.
    _plan(comparison, problem)
    with sweep_lock(Path(comparison.out)), contextlib.ExitStack() as stack:
        todo = _plan(comparison, problem)
        if todo.conflicts and not overwrite:
            raise SweepError(conflict_message(todo.conflicts))
        runner = None
        if engine is not None and todo.jobs:
            try:
                runner = stack.enter_context(engine.start(todo.out, reporter.message))
            except EngineError as error:
                raise SweepError(str(error)) from error
        study = todo.study
        for folder in todo.conflicts:
            if study is not None and folder == study.folder:
                study.clear()
            else:
                clear_run(folder)
        if keep_request:
            write_json(todo.out / "compare.json", todo.asked)
        if study is not None:
            study.begin()
            if not any(job.trial is not None for job in todo.jobs):
                study.settle()

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

        def ended(job: Job, seconds: float, error: str) -> None:
            if job.trial is not None:
                assert study is not None
                trial = _ended_trial(study, job, problem, seconds, error)
                study.record(trial)
                if trial.value is not None:
                    reporter.message(f"{job.label}: Δm {trial.value:.2f} % on the validation split")
            if not job.key:
                return
            try:
                cache.store(job.key, job.folder)
            except OSError as failure:
                reporter.message(f"{job.label}: the baseline was not kept in the cache: {failure}")

        def prepare(job: Job) -> Job:
            if job.scored or job.trial is not None:
                folders = {
                    task: run_folder(todo.out, todo.problem, SINGLE_TASK, job.seed, task)
                    for task in _tasks(problem, None)
                }
                return replace(job, baseline=read_baseline(problem.metrics, folders))
            if not job.tuned:
                return job
            assert study is not None
            return _with_best(job, problem, study, overwrite=overwrite)

        try:
            with stop_requests() as requested:
                reporter.start(len(work), sum(job.steps for job in work))
                outcome = run_jobs(
                    work, comparison.jobs, reporter, requested, ended, prepare, runner
                )
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


def _check_place(asked: Comparison, engine: Engine | None) -> None:
    """Refuse a device, a precision or a tracker that is not there, before anything is trained.

    Raises:
        SweepError: The device is not there or cannot do it, or there is no such tracker.
        MissingExtraError: The tracker is not installed.
    """
    if launched() > 1 and (asked.jobs > 1 or engine is not None):
        raise SweepError(
            f"the {launched()} processes that were launched train one run together, and the runs "
            "one after another: jobs must be 1, and there can be no engine"
        )
    try:
        check_tracker(asked.tracker)
        if engine is None:
            place = choose_device(asked.device)
            Arithmetic(asked.training.get("precision", "fp32"), place)
    except MissingExtraError:
        raise
    except ValueError as error:
        raise SweepError(str(error)) from error


def _ended_trial(study: Study, job: Job, problem: Problem, seconds: float, error: str) -> Trial:
    """Return what came of a trial."""
    assert job.trial is not None
    assert job.baseline is not None
    if error:
        # It has no result, so nothing else would remove it.
        remove_checkpoints(job.folder / CHECKPOINT)
        state, value = DIVERGED, None
    else:
        result = load_run(job.folder).result
        higher = [metric.higher_is_better for metric in problem.metrics]
        state, value = COMPLETE, float(delta_m(result.val, job.baseline, higher))
        seconds = result.wall_seconds
    return Trial(
        number=job.trial,
        state=state,
        parameters=study.draw(job.trial),
        method_options=job.method_options,
        value=value,
        wall_seconds=seconds,
        error=error,
    )


def _with_best(job: Job, problem: Problem, study: Study, *, overwrite: bool) -> Job:
    """Return a run with the settings that its tuning has found.

    Raises:
        ValueError: No trial has a value, or the folder holds another run that is to be kept.
        RunFileError: A file is damaged.
    """
    options = study.settle().method_options
    identity = run_identity(
        problem, job.method, job.seed, recipe=job.recipe, method_options=options
    )
    if overwrite and (job.folder / CONFIG).exists():
        found = differences(read_config(job.folder / CONFIG).identity(), identity)
        if not found and (job.folder / RESULT).exists():
            settings = record_settings(job.record, job.recipe)
            found = record_differences(job.folder / RECORD, settings)
        if found:
            clear_run(job.folder)
    return replace(job, method_options=dict(options), identity=identity)


_DAMAGED = "damaged: "
"""How the text on a run begins whose files cannot be read."""


def damaged(error: RunFileError) -> str:
    """Return how to note among conflicts that a run's file cannot be read."""
    return f"{_DAMAGED}{error}"


def conflict_message(conflicts: Mapping[Path, Sequence[str]]) -> str:
    """Return what to say of folders that hold other runs, and how they differ."""
    folder, found = next(iter(conflicts.items()))
    others = len(conflicts) - 1
    more = f" (and {others} more like it)" if others else ""
    kind = "a damaged run" if found[0].startswith(_DAMAGED) else "another run"
    return (
        f"{folder} holds {kind}{more}: {'; '.join(found).removeprefix(_DAMAGED)}. "
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
    except OSError as error:
        reporter.message(f"{job.label}: the cached baseline cannot be copied: {error}")
        return False
    if found:
        remove_checkpoints(job.folder / CHECKPOINT)
        (job.folder / FAILURE).unlink(missing_ok=True)
    return found
