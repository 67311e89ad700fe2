"""The commands of ``ntkmtl``. Torch is imported inside those that need it: help is quick."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ntkmtl import __version__
from ntkmtl._console import (
    FAILED,
    INTERRUPTED,
    print_columns,
    print_json,
    print_table,
    refuse,
    refusing,
    say,
)
from ntkmtl._options import (
    DataOptions,
    Device,
    Directory,
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
    options_in,
    seeds_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ntkmtl.training.engines import Engine
    from ntkmtl.training.reporters import Reporter
    from ntkmtl.training.runs import Run
    from ntkmtl.training.sweep import Comparison, Sweep
    from ntkmtl.training.workers import Failure

__all__ = ["app"]

app = typer.Typer(
    name="ntkmtl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(str, Enum):
    """What a table can be printed as."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Multi-task learning balanced by the neural tangent kernel: train, compare, report."""


# ------------------------------------------------------------------------------------------------
# Training


@app.command()
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
        from ntkmtl._reinforce_command import compare_mt10

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
        from ntkmtl.training.distributed import launched
        from ntkmtl.training.environment import cores
        from ntkmtl.training.sweep import Comparison

        find_modules_here(problem)
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
        sweep = _sweep(comparison, overwrite=overwrite, engine=chosen)
        shown = show_sweep(sweep, as_json)
    exit_as(sweep, shown)


@app.command()
@grouped
def run(
    problem: ProblemName,
    *,
    method: Annotated[str, typer.Option("--method", help="A name that `ntkmtl methods` lists.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    task: Annotated[
        str | None,
        typer.Option("--task", help="For --method stl: one task instead of each in turn."),
    ] = None,
    out: Out = Path("runs"),
    changed: RecipeOptions,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the method."),
    ] = None,
    made_with: DataOptions,
    record: Record = None,
    device: Device = "cpu",
    training: TrainingOptions,
    tracker: TrackerName = None,
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one problem with one method and one seed; print the test metrics."""
    with refusing():
        from ntkmtl.training.runs import RESULT, SINGLE_TASK, load_run, run_folder
        from ntkmtl.training.sweep import ALL_METHODS, Comparison, SweepError

        find_modules_here(problem)
        if method == ALL_METHODS:
            raise SweepError("run trains one method; compare --methods all trains every one")
        if method == SINGLE_TASK and record is not None:
            raise SweepError("--record is for several tasks; single-task networks have none")
        if task is not None and method != SINGLE_TASK:
            raise SweepError(f"--task goes with --method {SINGLE_TASK}, not with {method}")
        chosen = options_in(settings or [])
        comparison = Comparison(
            problem=problem,
            methods=[method],
            seeds=[seed],
            out=out,
            jobs=1,
            problem_options=made_with.options(),
            method_options={method: chosen} if chosen else {},
            **changed.changes(),
            single_task_baselines=False,
            record=None if record is None else {"every": record},
            training=training.changes(),
            device=cast("Any", device),
            tracker=tracker,
            tasks=None if task is None else [task],
        )
        sweep = _sweep(
            comparison,
            overwrite=overwrite,
            keep_request=False,
            engine=engines.made(None),
        )
        root = run_folder(out, sweep.problem, method, seed)
        folders = [root] if method != SINGLE_TASK else sorted(root.glob("*/"))
        if task is not None:
            folders = [run_folder(out, sweep.problem, method, seed, task)]
        # Where some failed or it was stopped: those that are complete.
        complete = [folder for folder in folders if (folder / RESULT).exists()]
        _show_runs([load_run(folder) for folder in complete], as_json)
    exit_as(sweep)


def _sweep(
    comparison: Comparison,
    *,
    overwrite: bool,
    keep_request: bool = True,
    engine: Engine | None = None,
) -> Sweep:
    from rich.console import Console

    from ntkmtl.training.reporters import reporter_for
    from ntkmtl.training.sweep import compare as train_all

    reporter: Reporter = reporter_for(Console(stderr=True))
    with _together(comparison.device):
        return train_all(
            comparison,
            overwrite=overwrite,
            reporter=reporter,
            keep_request=keep_request,
            engine=engine,
        )


@contextlib.contextmanager
def _together(device: str) -> Iterator[None]:
    """Lead the processes that were launched together; the others train with the first, and end."""
    from ntkmtl.training import distributed

    if distributed.launched() == 1:
        yield
        return
    from ntkmtl.training._device import DeviceError, choose_device
    from ntkmtl.training.workers import follow_jobs

    try:
        place = choose_device(device)
    except DeviceError as error:
        refuse(str(error))
    if distributed.rank() > 0:
        follow_jobs(place)
        raise typer.Exit
    with distributed.leading(place):
        yield


def show_sweep(sweep: Sweep, as_json: bool) -> bool:
    """Print the table and write the report, as far as there are complete runs.

    Returns:
        False if one of them could not be made though it was asked for.
    """
    from ntkmtl import report

    table, page, why = None, None, ""
    if not sweep.interrupted:
        try:
            table = report.build_table(sweep.out, sweep.problem)
        except ValueError as error:
            why = f"No table: {error}"
    if table is not None:
        try:
            page = report.write_html(sweep.out, sweep.out / "report.html")
        except (ValueError, OSError) as error:
            why = f"No report: {error}"
    if as_json:
        print_json(
            {
                "problem": sweep.problem,
                "out": str(sweep.out),
                "report": None if page is None else str(page),
                "trained": sweep.trained,
                "complete_before": sweep.complete,
                "cached": sweep.cached,
                "unfinished": sweep.unfinished,
                "interrupted": sweep.interrupted,
                "failures": [
                    {
                        "run": f.label,
                        "folder": str(f.folder),
                        "error": f.error,
                        "message": f.message,
                    }
                    for f in sweep.failures
                ],
                "seconds": sweep.seconds,
                "table": None if table is None else json.loads(report.render(table, "json")),
            }
        )
    elif table is not None:
        print_table(table)
    if why:
        say(why)
    if page is not None and not as_json:
        say(f"Report: {page}")
    return not why


def say_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        say(f"Failed: {failure.label}: {failure.error}: {failure.message}")
        say(f"        see {failure.folder / 'failure.json'}")


def exit_as(sweep: Sweep, shown: bool = True) -> None:
    """Tell failures, and end the command with the status of a sweep.

    Args:
        sweep: What came of it.
        shown: Whether its results could be shown.
    """
    say_failures(sweep.failures)
    again = shlex.join(["ntkmtl", *sys.argv[1:]])
    if sweep.interrupted:
        done = sweep.trained + sweep.complete + sweep.cached
        say(f"Stopped with {done} runs complete and {sweep.unfinished} to go. Go on with: {again}")
        raise typer.Exit(INTERRUPTED)
    if sweep.unfinished and not sweep.failures:
        say(f"Error: {sweep.unfinished} runs were not trained. Go on with: {again}")
    if sweep.failures or sweep.unfinished or not shown:
        raise typer.Exit(FAILED)


def trained(comparison: Comparison, *, overwrite: bool) -> Sweep:
    """Train; end the command where runs failed or it was stopped."""
    with refusing():
        sweep = _sweep(comparison, overwrite=overwrite)
    exit_as(sweep)
    return sweep


def _show_runs(runs: Sequence[Run], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "folder": str(run.path),
                    "config": run.config.to_json(),
                    "result": run.result.to_json(),
                    "test": {
                        metric.name: value
                        for metric, value in zip(run.config.metrics, run.result.test, strict=True)
                    },
                }
                for run in runs
            ]
        )
        return
    for run in runs:
        rows = [
            (metric.label or metric.name, f"{value:.4g} {metric.unit}".rstrip())
            for metric, value in zip(run.config.metrics, run.result.test, strict=True)
        ]
        print_columns(rows)
    for run in runs:
        say(f"Run: {run.path} ({run.result.seconds_per_epoch:.2f} s per epoch)")


# ------------------------------------------------------------------------------------------------
# Results


@app.command()
def table(
    directory: Directory,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.text,
    problem: Annotated[
        str | None, typer.Option("--problem", help="Needed where DIR holds several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of finished runs."""
    with refusing(ValueError):
        from ntkmtl import report

        found = report.build_table(directory, problem)
        chosen = Format.json if as_json else format
        if chosen is Format.text:
            print_table(found)
        else:
            sys.stdout.write(report.render(found, chosen.value))


@app.command("report")
def report_page(
    directory: Directory,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the page.",
            show_default="DIR/report.html",
            dir_okay=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of finished runs: one HTML page that needs no network."""
    with refusing(ValueError):
        from ntkmtl import report

        page = report.write_html(directory, output or directory / "report.html")
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)


# ------------------------------------------------------------------------------------------------
# What there is


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods, with one line each."""
    from ntkmtl import weighting

    specs = weighting.specs()
    if as_json:
        print_json(
            [
                {
                    "name": spec.name,
                    "summary": spec.summary,
                    "reads": spec.reads,
                    "paper": spec.paper,
                    "extra": spec.extra,
                }
                for spec in specs
            ]
        )
    else:
        print_columns([(spec.name, spec.summary) for spec in specs])


@app.command()
def problems(as_json: Json = False) -> None:
    """List the problems, with one line each."""
    from ntkmtl import problems as registry

    found = [(spec.name, spec.summary) for spec in registry.specs()]
    # Agents are no Problem, but `ntkmtl compare mt10` is asked for in the same way.
    found.append(
        ("mt10", "10 tasks of a robot arm, Meta-World's MT10, by multi-task Soft Actor-Critic")
    )
    if as_json:
        print_json([{"name": name, "summary": summary} for name, summary in found])
    else:
        print_columns(found)


@app.command()
def data(
    problem: Annotated[
        str | None,
        typer.Argument(metavar="[PROBLEM]", help="The problem to prepare the data of."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="What was downloaded: a file or a folder."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Where the prepared data go.",
            show_default="$NTKMTL_DATA/PROBLEM, or in the user's cache folder",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the data sets that the problems need and where they are, or prepare one."""
    from ntkmtl._data_command import describe, list_data, prepare_data

    if problem is not None:
        with refusing(ValueError):
            made = prepare_data(problem, source, folder, say)
        if as_json:
            print_json({"problem": problem, "made": made})
        else:
            print(made)
        return
    for option, value in (("--source", source), ("--data", folder)):
        if value is not None:
            refuse(f"{option} goes with a PROBLEM, whose data it is to prepare")
    with refusing():
        listed = list_data()
    if as_json:
        print_json(listed)
    else:
        print_columns([(entry["problem"], describe(entry)) for entry in listed])
