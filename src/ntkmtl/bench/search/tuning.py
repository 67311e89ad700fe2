"""The same search for every method: learning rate and settings, the same number of trials each.

Trials are judged by Delta-m on the validation split against single-task networks of the same seed,
which no final run has. Optuna chooses what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ntkmtl.bench.jobs.engine import Engine, Outcome, Runner, run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.problems.base import Problem
from ntkmtl.bench.runs import CONFIG, SCHEMA, SINGLE_TASK, STUDY, load_run, run_folder
from ntkmtl.bench.runs.folder import remove_checkpoints, sweep_lock
from ntkmtl.bench.search.records import (
    RATE,
    TUNING,
    Trial,
    Tuning,
    Value,
    method_options_of,
    option_of,
    parameters_of,
    study_request,
)
from ntkmtl.bench.search.study import OptunaStudy, WeightSearch, optuna_module
from ntkmtl.bench.training.baselines import BaselineCache, read_baseline
from ntkmtl.bench.training.comparison import (
    Comparison,
    SweepError,
    changed_recipe,
    recipe_of,
    recipes_by_method,
)
from ntkmtl.bench.training.planning import Planner, judged_tasks, options_by_method
from ntkmtl.bench.training.sweep import Sweep, checked, compare
from ntkmtl.bench.training.trainer import TrainingJob
from ntkmtl.files import write_json
from ntkmtl.metrics import delta_m

__all__ = ["TUNING_SEED", "Search", "search_settings", "tune"]

TUNING_SEED = 1000
"""Seed of trials, far from those that final runs have."""


@dataclass(frozen=True)
class Search:
    """What to tune, and what to train with the settings found.

    Attributes:
        comparison: The final runs. Its methods are tuned, its learning rate and its method options
            are where the search begins.
        trials: Number of trials of each method.
        seed: Seed of the search and of every trial's run, none of the final ones.
        epochs: Epochs of a trial, those of the final runs if None.
        length: Whether the length of the combined gradient is searched as well.
        scales: Length of each task's gradient, measured, by the task's name: the weights of
            ``fixed`` are then searched from powers of it; see
            :class:`ntkmtl.bench.search.study.WeightSearch`.
    """

    comparison: Comparison
    trials: int
    seed: int = TUNING_SEED
    epochs: int | None = None
    length: bool = False
    scales: Mapping[str, float] | None = None


def tune(
    search: Search,
    *,
    overwrite: bool = False,
    cache: BaselineCache | None = None,
    reporter: Callable[[], Reporter] | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Tune every method with the same number of trials, then train each with its best settings.

    What has ended is not tried again, and more trials add to those that are there. Ctrl-C and
    SIGTERM stop every run at a step boundary; the same call resumes there.

    Args:
        search: What is asked for.
        overwrite: Whether studies and runs with another configuration are replaced.
        cache: Where single-task baselines are kept; the user's cache folder if None.
        reporter: Makes the reporter of each of the three parts: baselines, trials, final runs.
            Silent if None.
        engine: Trains the runs; processes on this machine if None.

    Returns:
        The outcome of the final runs, or of the part before if that was stopped or has failures.

    Raises:
        SweepError: Something cannot be done as asked for; nothing was trained or changed.
        MissingExtraError: Optuna is not installed, or a method needs something that is not.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        RunFileError: A file of an earlier run is damaged.
    """
    sweep, found = search_settings(
        search, overwrite=overwrite, cache=cache, reporter=reporter, engine=engine
    )
    if sweep.interrupted or sweep.failures:
        return sweep
    wanted = [name for name in search.comparison.names if name != SINGLE_TASK]
    if lost := [name for name in wanted if name not in found]:
        raise SweepError(
            f"all {search.trials} trials of {lost[0]} diverged: lower the learning rate and tune "
            "again"
        )
    final = replace(
        search.comparison,
        method_options={name: dict(tuning.method_options) for name, tuning in found.items()},
        method_recipes={name: dict(tuning.recipe) for name, tuning in found.items()},
    )
    made = (reporter or Reporter)()
    return compare(final, overwrite=overwrite, cache=cache, engine=engine, reporter=made)


def search_settings(
    search: Search,
    *,
    overwrite: bool = False,
    cache: BaselineCache | None = None,
    reporter: Callable[[], Reporter] | None = None,
    engine: Engine | None = None,
) -> tuple[Sweep, dict[str, Tuning]]:
    """Tune every method with the same number of trials, and train no final run.

    Args:
        search: What is asked for.
        overwrite: Whether studies with another configuration are replaced.
        cache: Where single-task baselines are kept; the user's cache folder if None.
        reporter: Makes the reporter of each of the two parts: baselines, trials. Silent if None.
        engine: Trains the runs; processes on this machine if None.

    Returns:
        The outcome of the runs, and the settings found by method: none if it was stopped or runs
        failed, and none for a method whose trials all diverged.

    Raises:
        SweepError: Something cannot be done as asked for; nothing was trained or changed.
        MissingExtraError: Optuna is not installed, or a method needs something that is not.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        RunFileError: A file of an earlier run is damaged.
    """
    optuna_module()
    reporter = reporter or Reporter
    asked = checked(search.comparison, engine)
    search = replace(search, comparison=asked)
    problem = find_problem(asked.problem, asked.problem_options, try_out=True)
    planner = _planner(search, problem)
    studies = _studies(search, planner)
    out = Path(asked.out)
    with sweep_lock(out):
        _begin(search, problem, studies, overwrite=overwrite)
    chosen = engine or LocalEngine(asked.jobs)
    with chosen.start(out, reporter().message) as runner:
        baselines = _baselines(search, problem)
        sweep = compare(
            baselines,
            overwrite=overwrite,
            keep_request=False,
            cache=cache,
            reporter=reporter(),
            engine=engine,
        )
        if sweep.interrupted or sweep.failures:
            return sweep, {}
        with sweep_lock(out):
            judged_against = read_baseline(problem, baselines.out, search.seed)
            trials = _Trials(search, planner, studies, judged_against)
            outcome = trials.run(reporter(), runner)
            sweep = replace(
                sweep,
                out=out,
                trained=len(outcome.finished),
                complete=0,
                cached=0,
                unfinished=trials.left(),
                failures=outcome.failures,
                interrupted=outcome.interrupted,
            )
            if outcome.interrupted or outcome.failures:
                return sweep, {}
            finished = ((name, study.finish()) for name, study in studies.items())
            return sweep, {name: tuning for name, tuning in finished if tuning is not None}


# ------------------------------------------------------------------------------------------------
# Studies and baselines


def _planner(search: Search, problem: Problem) -> Planner:
    """Return what makes the jobs of trials, of the methods in its ``options``."""
    asked = replace(search.comparison, record=None, keep_model=False)
    _check(search, problem)
    names = [name for name in asked.names if name != SINGLE_TASK]
    if not names:
        raise SweepError("at least one multi-task method is needed, found none")
    recipe = recipe_of(asked, problem)
    options, _ = options_by_method(problem, names, asked.method_options, recipe)
    recipes_by_method(names, asked.method_recipes, recipe)
    return Planner(asked, problem, changed_recipe(recipe, epochs=search.epochs), options)


def _studies(search: Search, planner: Planner) -> dict[str, OptunaStudy]:
    """Return the study of each method."""
    asked, problem = search.comparison, planner.problem
    found = {}
    for name in planner.options:
        given = asked.method_options.get(name, {})
        scales = search.scales if name == "fixed" else None
        try:
            parameters = parameters_of(
                name,
                problem.tasks,
                planner.recipe,
                length=search.length,
                given=given,
                wide=scales is not None,
            )
        except ValueError as error:
            raise SweepError(str(error)) from error
        for option in dict.fromkeys(map(option_of, parameters)):
            if option in given:
                raise SweepError(f"{option} of {name} is given: there is nothing to tune in it")
        # Settings that the method does not take are refused now, not by the first trial.
        starts = method_options_of({each.name: each.start for each in parameters})
        options_by_method(problem, [name], {name: {**given, **starts}}, planner.recipe)
        try:
            identity = planner.job(name, search.seed).identity
        except ValueError as error:
            raise SweepError(str(error)) from error
        folder = run_folder(asked.out, problem.name, name, 0).parent / TUNING
        request = study_request(identity, parameters)
        if scales is None:
            found[name] = OptunaStudy(folder, request, parameters)
        else:
            found[name] = WeightSearch(folder, request, parameters, scales)
    return found


def _check(search: Search, problem: Problem) -> None:
    """Refuse what cannot be searched."""
    if search.trials < 1:
        raise SweepError(f"trials must be at least 1, found {search.trials}")
    if search.seed in search.comparison.seeds:
        raise SweepError(
            f"seed {search.seed} is the trials': a final run with it would be one that the "
            "settings were chosen by. Give other seeds, or another one for the trials."
        )
    if problem.size("val") == 0:
        raise SweepError(
            f"{problem.name} has no validation split to judge trials on, and the test split must "
            "not choose: give the problem one, from its training samples, or do not tune"
        )
    if not judged_tasks(problem, None):
        raise SweepError(f"{problem.name} has no metric to judge trials by")


def _begin(
    search: Search, problem: Problem, studies: Mapping[str, OptunaStudy], *, overwrite: bool
) -> None:
    """Open the studies."""
    if not overwrite:
        _refuse_untuned(search.comparison, problem, studies)
        _refuse_uneven(search, studies)
    others = {name: found for name, study in studies.items() if (found := study.other())}
    if others and not overwrite:
        name, found = next(iter(others.items()))
        raise SweepError(
            f"{studies[name].folder} holds another study: {'; '.join(found)}. Give another --out, "
            "or --overwrite to replace what differs."
        )
    for name, study in studies.items():
        if name in others:
            study.clear()
        study.begin()


def _refuse_untuned(
    asked: Comparison, problem: Problem, studies: Mapping[str, OptunaStudy]
) -> None:
    """Refuse a folder that holds the final runs, untuned, before a search is made for nothing."""
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


def _refuse_uneven(search: Search, studies: Mapping[str, OptunaStudy]) -> None:
    """Refuse to give one method fewer trials than another has had already."""
    had = {name: study.known() for name, study in studies.items()}
    richest = max(had, key=had.__getitem__)
    poorer = [name for name, count in had.items() if count < had[richest]]
    if had[richest] > search.trials and poorer:
        raise SweepError(
            f"{richest} has had {had[richest]} trials and {poorer[0]} would have {search.trials}: "
            f"every method is to have as many, so give trials={had[richest]} or more"
        )


def _baselines(search: Search, problem: Problem) -> Comparison:
    """Return the comparison of the single-task networks that trials are judged against."""
    asked = search.comparison
    folder = run_folder(asked.out, problem.name, SINGLE_TASK, 0).parent / TUNING
    if not (folder / STUDY).exists():
        # Tables leave out folders with such a file.
        write_json(folder / STUDY, {"schema": SCHEMA, "method": SINGLE_TASK})
    return replace(
        asked,
        methods=[SINGLE_TASK],
        seeds=[search.seed],
        out=folder,
        method_options={},
        method_recipes={k: v for k, v in asked.method_recipes.items() if k == SINGLE_TASK},
        record=None,
        tasks=None,
    )


# ------------------------------------------------------------------------------------------------
# Trials


class _Trials:
    """The trials of every method that have not ended, each after the one before it."""

    def __init__(
        self,
        search: Search,
        planner: Planner,
        studies: Mapping[str, OptunaStudy],
        baseline: tuple[float, ...],
    ) -> None:
        self.search, self.planner, self.studies = search, planner, studies
        self.baseline = baseline
        self.values: dict[tuple[str, int], dict[str, Value]] = {}

    def left(self) -> int:
        """Return the number of trials that have not ended."""
        return sum(max(0, self.search.trials - len(s.trials)) for s in self.studies.values())

    def run(self, reporter: Reporter, runner: Runner) -> Outcome[TrainingJob]:
        """Try what has not been tried; a method whose trial fails is not searched further."""
        jobs = [
            self._job(study, number)
            # The next trial of each method in turn, so that none waits long.
            for number in range(self.search.trials)
            for study in self.studies.values()
            if number >= len(study.trials)
        ]

        def ended(job: TrainingJob, seconds: float, error: str) -> None:
            trial = self._trial(job, seconds, error)
            self.studies[job.spec.method].record(trial)
            if trial.value is not None:
                reporter.message(f"{job.label}: Δm {trial.value:.2f} % on the validation split")

        return run_jobs(jobs, runner, reporter, on_ended=ended, prepare=self._prepared)

    def _job(self, study: OptunaStudy, number: int) -> TrainingJob:
        after = (study.place(number - 1),) if number > len(study.trials) else ()
        job = self.planner.job(
            study.method, study.seed, folder=study.place(number), after=after, trial=number
        )
        return replace(job, spec=replace(job.spec, baseline=self.baseline))

    def _prepared(self, job: TrainingJob) -> TrainingJob:
        """Return a job with the settings to try; the trials before it have ended."""
        assert job.trial is not None
        spec = job.spec
        values = self.studies[spec.method].ask(job.trial)
        self.values[spec.method, job.trial] = values
        spec = replace(
            spec,
            method_options={**(spec.method_options or {}), **method_options_of(values)},
            recipe=changed_recipe(self.planner.recipe, learning_rate=float(values[RATE])),
        )
        return replace(job, spec=spec)

    def _trial(self, job: TrainingJob, seconds: float, error: str) -> Trial:
        """Return the record of a trial that has ended."""
        assert job.trial is not None
        if error:
            # Without a result, nothing else would remove them.
            remove_checkpoints(job.folder)
            state, value = "diverged", None
        else:
            result = load_run(job.folder).result
            higher = [metric.higher_is_better for metric in self.planner.problem.metrics]
            state, value = "complete", float(delta_m(result.val, self.baseline, higher))
            seconds = result.wall_seconds
        values = self.values[job.spec.method, job.trial]
        return Trial(
            number=job.trial,
            state=state,
            parameters=values,
            method_options=job.spec.method_options or {},
            value=value,
            wall_seconds=seconds,
            recipe={RATE: values[RATE]},
            error=error,
        )
