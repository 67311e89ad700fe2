"""``ntkmtl compare``: train several methods with several seeds, and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import Engine
    from ntkmtl.bench.training import Comparison

__all__ = ["compare"]


@dataclass(frozen=True)
class RowOptions:
    """Rows of the table besides those of the methods."""

    stl: Annotated[
        bool,
        Option(
            "--stl/--no-stl",
            help="Train the baselines that Delta-m needs. Methods that read scores during "
            "training (pivrg) train theirs in any case.",
        ),
    ] = True
    reference: Annotated[
        bool,
        Option(
            "--reference/--no-reference",
            help="For table: compute the rows of mean, ridge and forest.",
        ),
    ] = True

    def arguments(self) -> dict[str, bool]:
        """Return them as arguments of a comparison."""
        return {"single_task_baselines": self.stl, "references": self.reference}


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
    rows: RowOptions,
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
    how: dict[str, Any] = {"threads": threads, "device": device, "training": training.changes()}
    if entry is not None and not entry.supervised:
        compare_registered(
            context,
            entry,
            names,
            numbers,
            out,
            jobs=jobs,
            options=made_with.options(),
            engine=engines,
            overwrite=overwrite,
            as_json=as_json,
            **how,
        )
        return
    with refusing():
        engine = engines.made(jobs)
        comparison = planned(
            problem,
            names,
            seeds=numbers,
            out=out,
            jobs=jobs or _default_jobs(),
            **changed.changes(),
            **watch.arguments(),
            method_options=chosen,
            problem_options=made_with.options(),
            **rows.arguments(),
            **how,
        )
    _train(comparison, problem, overwrite=overwrite, engine=engine, as_json=as_json)


def _default_jobs() -> int:
    from ntkmtl.bench.compute.environment import cores
    from ntkmtl.bench.compute.processes import launched

    return cores() if launched() == 1 else 1


def _train(
    comparison: Comparison, source: str, *, overwrite: bool, engine: Engine | None, as_json: bool
) -> None:
    """Train, show the results, and end the command with the sweep's status."""
    with refusing():
        sweep = train_sweep(comparison, overwrite=overwrite, engine=engine)
        shown = show_sweep(sweep, as_json, source)
    exit_as(sweep, shown)
