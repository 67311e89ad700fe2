"""``ntkmtl compare``: train several methods with several seeds, and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ntkmtl.bench.cli.console import FAILED, print_json, refusing, say
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
    find_modules_here,
    grouped,
    method_settings,
    names_in,
    refuse_others,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import (
    exit_as,
    planned,
    show_sweep,
    train_registered,
    train_sweep,
)
from ntkmtl.bench.problems import spec as registered

if TYPE_CHECKING:
    from ntkmtl.bench.problems import ProblemSpec


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
    chosen = method_settings(settings)
    entry = registered(problem)
    how: dict[str, Any] = {"threads": threads, "device": device, "training": training.changes()}
    if entry is not None and not entry.supervised:
        _compare_registered(
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
            changed,
            made_with,
            seeds=numbers,
            out=out,
            jobs=jobs or _default_jobs(),
            **watch.arguments(),
            method_options=chosen,
            **rows.arguments(),
            **how,
        )
    with refusing():
        sweep = train_sweep(comparison, overwrite=overwrite, engine=engine)
        shown = show_sweep(sweep, as_json, problem)
    exit_as(sweep, shown)


def _default_jobs() -> int:
    from ntkmtl.bench.compute.environment import cores
    from ntkmtl.bench.compute.processes import launched

    return cores() if launched() == 1 else 1


def _compare_registered(
    context: typer.Context,
    entry: ProblemSpec,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    jobs: int | None,
    threads: int | None,
    device: str,
    options: Mapping[str, Any],
    training: Mapping[str, Any],
    engine: EngineOptions,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train what an entry's comparison asks for, print its results and write the report."""
    with refusing(ValueError):
        from ntkmtl.bench import problems
        from ntkmtl.bench.compute.environment import cores

        find_modules_here(*methods)
        kind = problems.load_target(entry.name)
        refuse_others(context, kind.takes, kind.refusal)
        comparison = kind.asked(
            methods,
            seeds,
            out,
            jobs=jobs or cores(),
            threads=threads,
            device=device,
            options=options,
            training=training,
        )
        chosen = engine.made(jobs)
    failed = train_registered(comparison, overwrite=overwrite, engine=chosen)
    _show_registered(comparison, out, as_json)
    if failed:
        raise typer.Exit(FAILED)


def _show_registered(comparison: Any, out: Path, as_json: bool) -> None:
    """Print results and write the report."""
    with refusing(ValueError):
        from ntkmtl.bench import report

        shown = comparison.show()
        page = report.write_html(out, out / "report.html") if shown.reportable else None
    if as_json:
        print_json({**shown.numbers, "report": None if page is None else str(page)})
    else:
        print(shown.text, end="")
        for note in shown.notes:
            say(note)
        if page is not None:
            say(f"Report: {page}")
