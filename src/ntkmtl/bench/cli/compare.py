"""``ntkmtl compare``: train several methods with several seeds, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

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
    SeedList,
    Seeds,
    Threads,
    TrainingOptions,
    WatchOptions,
    grouped,
)
from ntkmtl.bench.cli.registered import compare_registered
from ntkmtl.bench.cli.sweeps import exit_as, show_sweep, train_sweep
from ntkmtl.bench.cli.values import method_settings, names_in, planned, seeds_of
from ntkmtl.bench.problems import spec as registered

__all__ = ["compare"]


Baselines = Annotated[
    bool,
    Option(
        "--stl/--no-stl",
        help="Train the baselines that Delta-m needs. Methods that read scores during "
        "training (pivrg) train theirs in any case.",
    ),
]
References = Annotated[
    bool,
    Option(
        "--reference/--no-reference",
        help="For table: compute the rows of mean, ridge and forest.",
    ),
]


@grouped
def compare(
    context: typer.Context,
    problem: ProblemName,
    *,
    methods: Methods = "ls,ntkmtl,ntkmtl-sr",
    seeds: Seeds = 3,
    seed_list: SeedList = None,
    jobs: Jobs = None,
    threads: Threads = None,
    out: Out = Path("runs"),
    changed: RecipeOptions,
    settings: MethodSettings = None,
    made_with: DataOptions,
    stl: Baselines = True,
    reference: References = True,
    watch: WatchOptions,
    device: Device = "cpu",
    training: TrainingOptions,
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a problem with several methods and seeds; print the table and write the report.

    Called again, it resumes where it stopped, and trains nothing twice.
    """
    numbers, names = seeds_of(seeds, seed_list), names_in(methods)
    chosen = method_settings(settings or [])
    entry = registered(problem)
    if entry is not None and not entry.supervised:
        compare_registered(
            context,
            entry,
            names,
            numbers,
            out,
            jobs=jobs,
            threads=threads,
            device=device,
            options=made_with.options(),
            training=training.changes(),
            engine=engines,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    with refusing():
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.compute.processes import launched

        engine = engines.made(jobs)
        comparison = planned(
            problem,
            names,
            seeds=numbers,
            out=out,
            jobs=jobs or (cores() if launched() == 1 else 1),
            threads=threads,
            **changed.changes(),
            **watch.arguments(),
            training=training.changes(),
            method_options=chosen,
            problem_options=made_with.options(),
            single_task_baselines=stl,
            references=reference,
            device=device,
        )
        sweep = train_sweep(comparison, overwrite=overwrite, engine=engine)
        shown = show_sweep(sweep, as_json, problem)
    exit_as(sweep, shown)
