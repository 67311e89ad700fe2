"""``ntkmtl compare``: train several methods with several seeds, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ntkmtl.bench.cli.console import refusing
from ntkmtl.bench.cli.options import (
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
    Record,
    SeedList,
    Seeds,
    TrackerName,
    TrainingOptions,
    find_modules_here,
    grouped,
    method_settings,
    names_in,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import exit_as, show_sweep, train_sweep

__all__ = ["compare"]


@grouped
def compare(
    context: typer.Context,
    problem: ProblemName,
    *,
    methods: Methods = "ls,ntkmtl,ntkmtl-sr",
    seeds: Seeds = 3,
    seed_list: SeedList = None,
    jobs: Jobs = None,
    out: Out = Path("runs"),
    changed: RecipeOptions,
    settings: MethodSettings = None,
    made_with: DataOptions,
    stl: Annotated[
        bool,
        typer.Option(
            "--stl/--no-stl",
            help="Train the baselines that Delta-m needs. Methods that are told scores during "
            "training (pivrg) and --tune train theirs in any case.",
        ),
    ] = True,
    tune: Annotated[
        int,
        typer.Option(
            "--tune",
            metavar="N",
            min=0,
            help="Search the task weights of fixed with N trials, judged on the validation split.",
            show_default="no search",
        ),
    ] = 0,
    tune_epochs: Annotated[
        int | None,
        typer.Option(
            "--tune-epochs", min=1, help="Epochs of a trial.", show_default="those of the runs"
        ),
    ] = None,
    record: Record = None,
    device: Device = "cpu",
    training: TrainingOptions,
    tracker: TrackerName = None,
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a problem with several methods and seeds; print the table and write the report.

    Called again, it goes on where it stopped, and trains nothing twice.
    """
    if problem == "mt10":
        from ntkmtl.bench.cli.reinforce import compare_mt10

        numbers = seeds_of(seeds, seed_list)
        with refusing():
            chosen = engines.made(jobs)
        compare_mt10(
            context,
            made_with.recipe,
            names_in(methods),
            numbers,
            jobs,
            out,
            device,
            chosen,
            overwrite,
            as_json,
        )
        return
    with refusing():
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.compute.processes import launched
        from ntkmtl.bench.training.sweep import Comparison

        find_modules_here(problem, methods)
        comparison = Comparison(
            problem=problem,
            methods=names_in(methods),
            seeds=seeds_of(seeds, seed_list),
            out=out,
            jobs=jobs or (cores() if launched() == 1 else 1),
            problem_options=made_with.options(),
            method_options=method_settings(settings or []),
            **changed.changes(),
            single_task_baselines=stl,
            tune=tune,
            tune_epochs=tune_epochs,
            record=None if record is None else {"every": record},
            training=training.changes(),
            device=cast("Any", device),
            tracker=tracker,
        )
        chosen = engines.made(jobs)
        sweep = train_sweep(comparison, overwrite=overwrite, engine=chosen)
        shown = show_sweep(sweep, as_json)
    exit_as(sweep, shown)
