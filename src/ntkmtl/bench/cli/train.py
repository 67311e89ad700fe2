"""``ntkmtl compare`` and ``ntkmtl run``: train several methods with several seeds, or one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ntkmtl.bench.cli.console import FAILED, print_columns, print_json, refusing, say
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
    RowOptions,
    Seed,
    SeedList,
    Seeds,
    Threads,
    TrainingOptions,
    WatchOptions,
    find_modules_here,
    grouped,
    method_settings,
    methods_of,
    options_in,
    refuse_others,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import (
    exit_as,
    model_note,
    planned,
    say_use,
    show_sweep,
    train_registered,
    train_sweep,
)
from ntkmtl.bench.problems import spec as registered

if TYPE_CHECKING:
    from ntkmtl.bench.problems import ProblemSpec
    from ntkmtl.bench.runs import Run


@grouped
def compare(
    context: typer.Context,
    problem: ProblemName,
    *,
    methods: Methods = None,
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
    entry = registered(problem)
    with refusing():
        names, chosen = methods_of(problem, methods), method_settings(settings)
        find_modules_here(problem, *names)
        asked: dict[str, Any] = {
            "seeds": seeds_of(seeds, seed_list),
            "out": out,
            "threads": threads,
            "device": device,
            "training": training.changes(),
        }
        options = made_with.options()
    if entry is not None and not entry.supervised:
        asked.update(methods=names, options=options)
        _compare_registered(
            context, entry, engines, jobs, overwrite=overwrite, as_json=as_json, asked=asked
        )
        return
    with refusing():
        engine = engines.made(jobs)
        comparison = planned(
            problem,
            names,
            problem_options=options,
            jobs=jobs or _default_jobs(),
            method_options=chosen,
            **changed.changes(),
            **watch.arguments(),
            **rows.arguments(),
            **asked,
        )
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
    engines: EngineOptions,
    jobs: int | None,
    *,
    overwrite: bool,
    as_json: bool,
    asked: Mapping[str, Any],
) -> None:
    """Train what an entry's comparison asks for, print its results and write the report."""
    with refusing(ValueError):
        from ntkmtl.bench import problems
        from ntkmtl.bench.compute.environment import cores

        kind = problems.load_target(entry.name)
        refuse_others(context, kind.takes, kind.refusal)
        comparison = kind.asked(jobs=jobs or cores(), **asked)
        engine = engines.made(jobs)
    failed = train_registered(comparison, overwrite=overwrite, engine=engine)
    _show_registered(comparison, asked["out"], as_json)
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


Method = Annotated[
    str,
    Option(
        "--method",
        help="A name that `ntkmtl methods` lists, or your own as module.path:ClassName or "
        "path/file.py:ClassName.",
    ),
]
Task = Annotated[
    str | None,
    Option("--task", help="For --method stl: one task instead of each in turn."),
]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Setting of the method."),
]


@grouped
def run(
    problem: ProblemName,
    *,
    method: Method,
    seed: Seed = 0,
    task: Task = None,
    out: Out = Path("runs"),
    threads: Threads = None,
    changed: RecipeOptions,
    settings: Settings = None,
    made_with: DataOptions,
    watch: WatchOptions,
    device: Device = "cpu",
    training: TrainingOptions,
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one problem with one method and one seed; print the test metrics.

    A run locks its own folder and returns at once if it is complete, so that any launcher may call
    this for many runs in one folder at a time.
    """
    with refusing():
        from ntkmtl.bench.runs import SINGLE_TASK
        from ntkmtl.bench.training import SweepError
        from ntkmtl.bench.training.comparison import ALL_METHODS

        if method == ALL_METHODS:
            raise SweepError("run trains one method; compare --methods all trains every one")
        if method == SINGLE_TASK and watch.record is not None:
            raise SweepError("--record is for several tasks; single-task networks have none")
        if task is not None and method != SINGLE_TASK:
            raise SweepError(f"--task goes with --method {SINGLE_TASK}, not with {method}")
        find_modules_here(problem, method)
        comparison = planned(
            problem,
            [method],
            problem_options=made_with.options(),
            **changed.changes(),
            seeds=[seed],
            out=out,
            jobs=1,
            threads=threads,
            **watch.arguments(),
            training=training.changes(),
            method_options={method: options_in(settings)} if settings else {},
            single_task_baselines=False,
            device=device,
            tasks=None if task is None else [task],
        )
        sweep = train_sweep(
            comparison,
            overwrite=overwrite,
            keep_request=False,
            share_folder=True,
            engine=engines.made(None),
        )
        found = _complete(out, sweep.problem, comparison.names[0], seed, task)
        if found:
            _show_runs(found, as_json, problem)
    exit_as(sweep, told=bool(found))


def _complete(out: Path, problem: str, method: str, seed: int, task: str | None) -> list[Run]:
    """Return the runs that are complete: some may have failed or been stopped."""
    from ntkmtl.bench.runs import RESULT, SINGLE_TASK, load_run, run_folder

    root = run_folder(out, problem, method, seed)
    folders = [root] if method != SINGLE_TASK else sorted(root.glob("*/"))
    if task is not None:
        folders = [run_folder(out, problem, method, seed, task)]
    return [load_run(folder) for folder in folders if (folder / RESULT).exists()]


def _show_runs(runs: Sequence[Run], as_json: bool, source: str) -> None:
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
        say(f"Run: {run.path} ({run.result.seconds_per_epoch:.2f} s per epoch{model_note(run)})")
    if runs and runs[-1].result.model is not None:
        say_use(runs[-1], source)
