"""``ntkmtl tune``: the same search for every method, then final runs with what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ntkmtl._commands import (
    BatchSize,
    Csv,
    DataFolder,
    Device,
    EngineName,
    EngineOption,
    Epochs,
    Jobs,
    Json,
    MethodSettings,
    Minibatches,
    Out,
    Overwrite,
    ProblemName,
    ProblemOption,
    RayAddress,
    RayCpus,
    RayGpus,
    RecipeName,
    SplitColumn,
    Targets,
    Types,
    _engine,
    _exit_as,
    _find_modules_here,
    _method_settings,
    _names,
    _problem_options,
    _refuse,
    _refusing,
    _seeds,
    _show_sweep,
    app,
)

__all__ = ["tune"]


@app.command()
def tune(
    problem: ProblemName,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Names that `ntkmtl methods` lists, with commas between them, or all.",
        ),
    ] = "ls,ntkmtl,ntkmtl-sr",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials of each method.")] = 20,
    trial_epochs: Annotated[
        int | None,
        typer.Option(
            "--trial-epochs", min=1, help="Epochs of a trial.", show_default="those of the runs"
        ),
    ] = None,
    trial_seed: Annotated[
        int,
        typer.Option("--trial-seed", min=0, help="Seed of the trials, none of the final ones."),
    ] = 1000,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Use seeds 0 to N - 1 in the final runs.")
    ] = 3,
    seed_list: Annotated[
        str | None, typer.Option("--seed-list", help="Final seeds with commas between them.")
    ] = None,
    jobs: Jobs = None,
    out: Out = Path("runs"),
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Learning rate that the search begins with, instead of the recipe's."
        ),
    ] = None,
    minibatches: Minibatches = None,
    settings: MethodSettings = None,
    problem_option: ProblemOption = None,
    recipe: RecipeName = None,
    data_dir: DataFolder = None,
    csv: Csv = None,
    targets: Targets = None,
    types: Types = None,
    split_column: SplitColumn = None,
    device: Device = "cpu",
    engine: EngineOption = EngineName.local,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    ray_gpus: RayGpus = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Tune learning rate and settings of methods, each with as many trials; then compare them.

    Validation scores choose, never the test split. Called again, it goes on where it stopped.
    """
    with _refusing():
        from rich.console import Console

        from ntkmtl.training import distributed
        from ntkmtl.training.environment import cores
        from ntkmtl.training.reporters import reporter_for
        from ntkmtl.training.sweep import Comparison
        from ntkmtl.training.tuning import Search
        from ntkmtl.training.tuning import tune as search

        if distributed.launched() > 1:
            _refuse("tune starts its own processes: call it without torchrun")
        _find_modules_here(problem)
        comparison = Comparison(
            problem=problem,
            methods=_names(methods),
            seeds=_seeds(seeds, seed_list),
            out=out,
            jobs=jobs or cores(),
            problem_options=_problem_options(
                problem_option, recipe, data_dir, csv, targets, types, split_column
            ),
            method_options=_method_settings(settings or []),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            minibatches=minibatches,
            device=cast("Any", device),
        )
        sweep = search(
            Search(comparison, trials, trial_seed, trial_epochs),
            overwrite=overwrite,
            reporter=lambda: reporter_for(Console(stderr=True)),
            engine=_engine(engine, ray_address, ray_cpus, ray_gpus, jobs),
        )
        if sweep.out == comparison.out and not sweep.failures:
            _show_sweep(sweep, as_json)
    _exit_as(sweep)
