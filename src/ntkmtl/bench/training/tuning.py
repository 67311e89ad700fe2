"""The same search for every method: learning rate and settings, with as many trials for each.

Trials are judged by Delta-m on the validation split against single-task networks of their own
seed, which none of the final runs has. Optuna chooses what to try next; its storage is a file in
the study's folder, and what a trial tries is a function of the seed and of the trials before it, so
that a search that was stopped or killed ends as one that never was.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.stop_requests import stop_requests
from ntkmtl.bench.runs import CONFIG, SCHEMA, SINGLE_TASK, STUDY, differences, run_folder
from ntkmtl.bench.runs.locks import sweep_lock
from ntkmtl.bench.training.engines import EngineError
from ntkmtl.bench.training.identity import run_identity, steps_per_epoch
from ntkmtl.bench.training.lookup import find_problem
from ntkmtl.bench.training.reporters import Reporter
from ntkmtl.bench.training.scores import read_baseline
from ntkmtl.bench.training.studies import (
    TUNING,
    Parameter,
    Study,
    Trial,
    Tuning,
    read_study,
    study_request,
    weight_parameters,
)
from ntkmtl.bench.training.sweep import (
    TUNED,
    Comparison,
    Sweep,
    SweepError,
    _ended_trial,
    _method_options,
    _method_recipes,
    _Planner,
    _tasks,
    changed_recipe,
    compare,
    method_names,
)
from ntkmtl.bench.training.workers import Failure, Job, Outcome, run_jobs
from ntkmtl.errors import missing_extra
from ntkmtl.files import write_json
from ntkmtl.weighting import spec

if TYPE_CHECKING:
    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.training.baselines import BaselineCache
    from ntkmtl.bench.training.engines import Engine
    from ntkmtl.bench.training.workers import Runner

__all__ = ["TUNING_SEED", "Search", "parameters_of", "tune"]

LEARNING_RATE_FACTOR = 10.0
"""Learning rates are searched from the recipe's over this to the recipe's times this."""

TUNING_SEED = 1000
"""Seed of trials, far from those that final runs have."""

JOURNAL = "optuna.log"
"""Optuna's storage of a study."""

_RATE = "learning_rate"
_OPTION = "options."
_RANDOM_TRIALS = 5
"""Trials before TPE has enough to go by; those before are drawn at random, but for the first."""


@dataclass(frozen=True)
class Search:
    """What to tune, and what to train with what is found.

    Attributes:
        comparison: The final runs. Its methods are tuned, its learning rate and its method options
            are where the search begins.
        trials: Number of trials of each method.
        seed: Seed of the search and of every trial's training, none of the final ones.
        epochs: Epochs of a trial, those of the final runs if None.
    """

    comparison: Comparison
    trials: int
    seed: int = TUNING_SEED
    epochs: int | None = None


def parameters_of(method: str, tasks: Sequence[str], recipe: Recipe) -> tuple[Parameter, ...]:
    """Return what is searched of a method.

    Args:
        method: Its name.
        tasks: Names of the tasks.
        recipe: The recipe that the search begins with.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
        >>> for p in parameters_of("cagrad", ["a", "b"], recipe):
        ...     print(p.name, p.low, p.start, p.high)
        learning_rate 0.001 0.01 0.1
        options.c 0.0 0.4 0.99
    """
    rate = recipe.learning_rate
    low, high = rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR
    found = [Parameter(_RATE, float(f"{low:.4g}"), float(f"{high:.4g}"), start=rate)]
    if method == TUNED:
        return (*found, *weight_parameters(tasks))
    found += [
        Parameter(f"{_OPTION}{r.option}", r.low, r.high, start=r.start, log=r.log)
        for r in spec(method).space
    ]
    return tuple(found)


def tune(
    search: Search,
    *,
    overwrite: bool = False,
    cache: BaselineCache | None = None,
    reporter: Callable[[], Reporter] | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Tune every method with as many trials, then train each with what was found.

    What has ended is not tried again, and more trials add to those that are there. Ctrl-C and
    SIGTERM stop every run at a step boundary; called again, it goes on there.

    Args:
        search: What is asked for.
        overwrite: Whether studies and runs with another configuration are replaced.
        cache: Where single-task baselines are kept; the user's cache folder if None.
        reporter: Makes one that is told how it gets on, for each of the three parts: baselines,
            trials, final runs. Silent if None.
        engine: Who trains; processes on this machine if None.

    Returns:
        What came of the final runs; of the part before, if that was stopped or has failures.

    Raises:
        SweepError: Something cannot be done as asked for; nothing was trained or changed.
        MissingExtraError: Optuna is not installed, or a method needs something that is not.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        RunFileError: A file of an earlier run is damaged.
    """
    _optuna()
    asked = search.comparison
    if engine is not None:
        asked = replace(asked, threads=engine.threads)
    reporter = reporter or Reporter
    problem = find_problem(asked.problem, asked.problem_options, try_out=True)
    studies = _studies(search, asked, problem)
    out = Path(asked.out)
    with contextlib.ExitStack() as stack:
        # One Ray for all three parts.
        runner = None
        if engine is not None:
            out.mkdir(parents=True, exist_ok=True)
            try:
                runner = stack.enter_context(engine.start(out, reporter().message))
            except EngineError as error:
                raise SweepError(str(error)) from error
        with sweep_lock(out):
            if not overwrite:
                _refuse_untuned(asked, problem, studies)
                _refuse_uneven(search, studies)
            _begin(studies, overwrite=overwrite)
        baselines = _Baselines(search, asked, problem)
        sweep = compare(
            baselines.comparison,
            overwrite=overwrite,
            keep_request=False,
            cache=cache,
            reporter=reporter(),
            engine=engine,
        )
        if sweep.interrupted or sweep.failures:
            return sweep
        with sweep_lock(out):
            outcome = _Trials(search, asked, problem, studies, baselines.read()).run(
                reporter(), runner
            )
            if outcome.interrupted or outcome.failures:
                return replace(
                    sweep,
                    out=out,
                    trained=len(outcome.finished),
                    complete=0,
                    cached=0,
                    unfinished=search.trials * len(studies) - _ended(search, studies),
                    failures=outcome.failures,
                    interrupted=outcome.interrupted,
                )
            try:
                found = {name: study.settle() for name, study in studies.items()}
            except ValueError as error:
                raise SweepError(str(error)) from error
        return compare(
            _final(asked, found),
            overwrite=overwrite,
            cache=cache,
            reporter=reporter(),
            engine=engine,
        )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("tuning", "bench", error) from error
    # Lines for each trial would cross the bars.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _final(asked: Comparison, found: Mapping[str, Tuning]) -> Comparison:
    return replace(
        asked,
        method_options={name: dict(tuning.method_options) for name, tuning in found.items()},
        method_recipes={name: dict(tuning.recipe) for name, tuning in found.items()},
    )


def _ended(search: Search, studies: Mapping[str, Study]) -> int:
    return sum(n < search.trials for study in studies.values() for n in study.ended())


# ------------------------------------------------------------------------------------------------
# Studies and baselines


def _recipe(asked: Comparison, problem: Problem, **changes: Any) -> Recipe:
    recipe = changed_recipe(
        problem.recipe,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        minibatches=asked.minibatches,
        training=asked.training,
    )
    return changed_recipe(recipe, **changes)


def _studies(search: Search, asked: Comparison, problem: Problem) -> dict[str, Study]:
    """Return the study of each method.

    Raises:
        SweepError: It cannot be done.
    """
    if search.trials < 1:
        raise SweepError(f"trials must be at least 1. Found {search.trials}.")
    if search.seed in asked.seeds:
        raise SweepError(
            f"seed {search.seed} is the trials': a final run with it would be one that the "
            "settings were chosen by. Give other seeds, or another one for the trials."
        )
    if asked.tune:
        raise SweepError("a comparison cannot tune again what is being tuned: leave tune at 0")
    if problem.size("val") == 0:
        raise SweepError(
            f"{problem.name} has no validation split to judge trials on, and the test split must "
            "not choose: give the problem one, from its training samples, or do not tune"
        )
    if not _tasks(problem, None):
        raise SweepError(f"{problem.name} has no metric to judge trials by")
    names = [name for name in method_names(asked.methods) if name != SINGLE_TASK]
    if not names:
        raise SweepError("at least one multi-task method is needed. Found none.")
    recipe = _recipe(asked, problem)
    short = changed_recipe(recipe, epochs=search.epochs)
    options, _ = _method_options(problem, names, asked.method_options, recipe)
    _method_recipes(names, asked.method_recipes, recipe)
    found = {}
    for name in names:
        parameters = parameters_of(name, problem.tasks, recipe)
        for parameter in parameters:
            option = parameter.name.removeprefix(_OPTION).partition(".")[0]
            if option in asked.method_options.get(name, {}):
                raise SweepError(f"{option} of {name} is given: there is nothing to tune in it")
        try:
            identity = run_identity(
                problem, name, search.seed, recipe=short, method_options=options[name]
            )
        except ValueError as error:
            raise SweepError(str(error)) from error
        found[name] = Study(
            folder=run_folder(asked.out, problem.name, name, 0).parent / TUNING,
            asked=study_request(identity, "tpe", parameters),
            parameters=parameters,
            trials=search.trials,
        )
    return found


def _refuse_untuned(asked: Comparison, problem: Problem, studies: Mapping[str, Study]) -> None:
    """Refuse a folder with runs in the final ones' place before a search is made for nothing.

    Raises:
        SweepError: There are such runs.
    """
    for name, study in studies.items():
        if (study.folder / STUDY).exists():
            continue
        for seed in asked.seeds:
            folder = run_folder(asked.out, problem.name, name, seed)
            if (folder / CONFIG).exists():
                raise SweepError(
                    f"{folder} holds a run whose settings were not searched. Give another --out, "
                    "or --overwrite to replace it."
                )


def _refuse_uneven(search: Search, studies: Mapping[str, Study]) -> None:
    """Refuse fewer trials for one method than another has had already.

    Raises:
        SweepError: There would be.
    """
    had = {
        name: len(study.ended()) if (study.folder / STUDY).exists() else 0
        for name, study in studies.items()
    }
    richest = max(had, key=had.__getitem__)
    poorer = [name for name, count in had.items() if count < had[richest]]
    if had[richest] > search.trials and poorer:
        raise SweepError(
            f"{richest} has had {had[richest]} trials and {poorer[0]} would have {search.trials}: "
            f"every method is to have as many, so give trials={had[richest]} or more"
        )


def _begin(studies: Mapping[str, Study], *, overwrite: bool) -> None:
    """Write ``study.json`` of each method.

    Raises:
        SweepError: A folder holds another study that is to be kept.
    """
    others = {}
    for name, study in studies.items():
        if (study.folder / STUDY).exists():
            found = differences(read_study(study.folder), study.asked)
            if found:
                others[name] = found
    if others and not overwrite:
        name, found = next(iter(others.items()))
        raise SweepError(
            f"{studies[name].folder} holds another study: {'; '.join(found)}. Give another --out, "
            "or --overwrite to replace what differs."
        )
    for name, study in studies.items():
        if name in others:
            (study.folder / JOURNAL).unlink(missing_ok=True)
            study.clear()
        study.begin()


class _Baselines:
    """The single-task networks that trials are judged against."""

    def __init__(self, search: Search, asked: Comparison, problem: Problem) -> None:
        self.problem = problem
        self.seed = search.seed
        folder = run_folder(asked.out, problem.name, SINGLE_TASK, 0).parent / TUNING
        if not (folder / STUDY).exists():
            # Tables leave out what lies below such a file.
            write_json(folder / STUDY, {"schema": SCHEMA, "method": SINGLE_TASK})
        self.comparison = replace(
            asked,
            methods=[SINGLE_TASK],
            seeds=[search.seed],
            out=folder,
            method_options={},
            method_recipes={k: v for k, v in asked.method_recipes.items() if k == SINGLE_TASK},
            record=None,
            tasks=None,
        )

    def read(self) -> tuple[float, ...]:
        folders = {
            task: run_folder(self.comparison.out, self.problem.name, SINGLE_TASK, self.seed, task)
            for task in _tasks(self.problem, None)
        }
        return read_baseline(self.problem.metrics, folders)


# ------------------------------------------------------------------------------------------------
# Trials


class _Trials:
    """Trial after trial of every method: the next of each at a time, so that none waits long."""

    def __init__(
        self,
        search: Search,
        asked: Comparison,
        problem: Problem,
        studies: Mapping[str, Study],
        baseline: tuple[float, ...],
    ) -> None:
        self.search, self.asked, self.problem = search, asked, problem
        self.baseline = baseline
        self.recipe = _recipe(asked, problem, epochs=search.epochs)
        options, scored = _method_options(
            problem, list(studies), asked.method_options, _recipe(asked, problem)
        )
        self.options, self.scored = options, scored
        self.planner = _Planner(replace(asked, record=None), problem, self.recipe, options)
        self.searches = {name: _Optuna(study, search.seed) for name, study in studies.items()}
        self.parameters: dict[tuple[str, int], dict[str, float]] = {}

    def run(self, reporter: Reporter, runner: Runner | None) -> Outcome[Job]:
        """Try what has not been tried; a method whose trial fails is not searched further."""
        finished: list[Job] = []
        failures: list[Failure] = []
        interrupted = False
        ended = {name: search.catch_up() for name, search in self.searches.items()}
        left = sum(n not in ended[name] for name in ended for n in range(self.search.trials))
        steps = self.recipe.epochs * steps_per_epoch(self.problem, self.recipe)
        failed: set[str] = set()
        begun = 0
        try:
            with stop_requests() as requested:
                reporter.start(left, left * steps)
                for number in range(self.search.trials):
                    jobs = [
                        self._job(name, number)
                        for name in self.searches
                        if number not in ended[name] and name not in failed
                    ]
                    if not jobs:
                        continue
                    outcome = run_jobs(
                        jobs,
                        self.asked.jobs,
                        _Shifted(reporter, begun),
                        requested,
                        self._ended(reporter),
                        lambda job: job,
                        runner,
                    )
                    begun += len(jobs)
                    finished += outcome.finished
                    failures += outcome.failures
                    done = {job.method for job in outcome.finished}
                    failed |= {job.method for job in jobs} - done
                    interrupted = outcome.interrupted
                    if interrupted:
                        break
        finally:
            reporter.close()
        return Outcome(tuple(finished), tuple(failures), interrupted)

    def _job(self, method: str, number: int) -> Job:
        values = self.searches[method].ask(number)
        self.parameters[method, number] = values
        options = dict(self.options[method])
        weights = [value for name, value in values.items() if name.startswith("weights.")]
        if weights:
            options["weights"] = weights
        options |= {
            name.removeprefix(_OPTION): value
            for name, value in values.items()
            if name.startswith(_OPTION)
        }
        job = self.planner._job(
            self.searches[method].study.place(number),
            method,
            self.search.seed,
            recipe=changed_recipe(self.recipe, learning_rate=values[_RATE]),
            options=options,
            trial=number,
            scored=method in self.scored,
        )
        return replace(job, record=None, baseline=self.baseline)

    def _ended(self, reporter: Reporter) -> Callable[[Job, float, str], None]:
        def ended(job: Job, seconds: float, error: str) -> None:
            assert job.trial is not None
            search = self.searches[job.method]
            values = self.parameters[job.method, job.trial]
            trial = replace(
                _ended_trial(search.study, job, self.problem, seconds, error),
                parameters=values,
                recipe={_RATE: values[_RATE]},
            )
            search.study.record(trial)
            search.tell(trial)
            if trial.value is not None:
                reporter.message(f"{job.label}: Δm {trial.value:.2f} % on the validation split")

        return ended


class _Optuna:
    """Chooses the next trial of a study by those before it."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study, self.seed = study, seed
        self.optuna = _optuna()
        backend = self.optuna.storages.journal.JournalFileBackend(str(study.folder / JOURNAL))
        self.storage = self.optuna.storages.JournalStorage(backend)
        self.distributions = {
            p.name: self.optuna.distributions.FloatDistribution(p.low, p.high, log=p.log)
            for p in study.parameters
        }

    def catch_up(self) -> Mapping[int, Trial]:
        """Tell what ended when nobody could be told, and return the trials that have ended.

        A storage that is gone is made anew from the trials' own files.
        """
        ended = self.study.ended()
        for number in sorted(ended):
            if number >= len(self._open(number).trials):
                self._open(number).add_trial(
                    self.optuna.trial.create_trial(
                        state=self._state(ended[number]),
                        value=ended[number].value,
                        params=dict(ended[number].parameters),
                        distributions=self.distributions,
                    )
                )
            else:
                self.tell(ended[number])
        return ended

    def ask(self, number: int) -> dict[str, float]:
        """Return the values of a trial: where the search begins, or what Optuna chooses.

        Four digits are kept, for the sake of those who read or type them.
        """
        found = self._open(number)
        if number == 0 and not found.trials:
            found.enqueue_trial({p.name: p.start for p in self.study.parameters})
        while len(found.trials) <= number or found.trials[number].state.name == "WAITING":
            found.ask()
        # One that was asked for by a process that is gone is asked again, and keeps its values.
        trial = self.optuna.trial.Trial(found, found.trials[number]._trial_id)
        values = {
            p.name: trial.suggest_float(p.name, p.low, p.high, log=p.log)
            for p in self.study.parameters
        }
        if number == 0:
            return {p.name: p.start for p in self.study.parameters}
        return {name: float(f"{value:.4g}") for name, value in values.items()}

    def tell(self, trial: Trial) -> None:
        """Tell what came of a trial."""
        self._open(trial.number).tell(
            trial.number, trial.value, state=self._state(trial), skip_if_finished=True
        )

    def _state(self, trial: Trial) -> Any:
        states = self.optuna.trial.TrialState
        return states.FAIL if trial.value is None else states.COMPLETE

    def _open(self, number: int) -> Any:
        # A sampler of its own for each trial: what it draws does not depend on how often the search
        # was stopped before.
        digest = hashlib.sha256(f"{self.study.asked['method']} {self.seed} {number}".encode())
        sampler = self.optuna.samplers.TPESampler(
            seed=int.from_bytes(digest.digest()[:4], "big"), n_startup_trials=_RANDOM_TRIALS
        )
        return self.optuna.create_study(
            storage=self.storage,
            sampler=sampler,
            study_name=self.study.asked["method"],
            direction="minimize",
            load_if_exists=True,
        )


class _Shifted(Reporter):
    """Passes on what is told of runs, with numbers that no earlier round has had."""

    def __init__(self, reporter: Reporter, by: int) -> None:
        self.reporter, self.by = reporter, by

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.reporter.run_started(run + self.by, label, steps)

    def run_progress(self, run: int, done: int) -> None:
        self.reporter.run_progress(run + self.by, done)

    def run_note(self, run: int, words: str) -> None:
        self.reporter.run_note(run + self.by, words)

    def run_finished(self, run: int, seconds: float) -> None:
        self.reporter.run_finished(run + self.by, seconds)

    def run_failed(self, run: int, why: str) -> None:
        self.reporter.run_failed(run + self.by, why)

    def run_stopped(self, run: int) -> None:
        self.reporter.run_stopped(run + self.by)

    def message(self, text: str) -> None:
        self.reporter.message(text)
