"""``ntkmtl tune``: the same search for every method, then final runs with the best settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ntkmtl.bench.cli.console import refusing
from ntkmtl.bench.cli.options import (
    LAST_SEED,
    DataOptions,
    Device,
    EngineOptions,
    Jobs,
    Json,
    Methods,
    MethodSettings,
    Out,
    Overwrite,
    ProblemName,
    RecipeOptions,
    Threads,
    check_positive,
    check_seeds,
    find_modules_here,
    grouped,
    method_settings,
    methods_of,
    option,
    refuse_torchrun,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import exit_as, planned, progress, show_sweep


@dataclass(frozen=True)
class StartOptions(RecipeOptions):
    """Changes of the recipe that the search begins with."""

    lr: float | None = option(
        "Learning rate that the search begins with, instead of the recipe's.",
        callback=check_positive,
    )


@dataclass(frozen=True)
class TrialOptions:
    """The trials of a search."""

    trials: int = option("Trials of each method.", default=20, min=1)
    trial_epochs: int | None = option("Epochs of a trial.", min=1, show_default="those of the runs")
    trial_seed: int = option(
        "Seed of the trials, none of the final ones.", default=1000, min=0, max=LAST_SEED
    )


@grouped
def tune(
    problem: ProblemName,
    *,
    methods: Methods = None,
    trial: TrialOptions,
    seeds: Annotated[
        int,
        Option(
            "--seeds",
            min=1,
            callback=check_seeds,
            help="Use seeds 0 to N - 1 in the final runs.",
        ),
    ] = 3,
    seed_list: Annotated[
        str | None,
        Option("--seed-list", callback=check_seeds, help="Final seeds with commas between them."),
    ] = None,
    jobs: Jobs = None,
    threads: Threads = None,
    out: Out = Path("runs"),
    changed: StartOptions,
    settings: MethodSettings = None,
    made_with: DataOptions,
    device: Device = "cpu",
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Tune learning rate and settings of methods, each with as many trials; then compare them.

    Validation scores choose, never the test split. Called again, it resumes where it stopped.
    """
    with refusing():
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.search import Search
        from ntkmtl.bench.search import tune as search

        refuse_torchrun("tune")
        names = methods_of(problem, methods)
        find_modules_here(problem, *names)
        comparison = planned(
            problem,
            names,
            problem_options=made_with.options(),
            **changed.changes(),
            seeds=seeds_of(seeds, seed_list),
            out=out,
            jobs=jobs or cores(),
            threads=threads,
            method_options=method_settings(settings),
            device=device,
        )
        sweep = search(
            Search(comparison, trial.trials, trial.trial_seed, trial.trial_epochs),
            overwrite=overwrite,
            reporter=progress,
            engine=engines.made(jobs),
        )
        final = sweep.out == comparison.out and not sweep.failures
        shown = not final or show_sweep(sweep, as_json, problem)
    exit_as(sweep, shown, told=final)
