"""``ntkmtl compare`` and ``ntkmtl run``: train several methods with several seeds, or one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    Seed,
    SeedList,
    Seeds,
    Threads,
    check_finite,
    find_modules_here,
    grouped,
    method_settings,
    names_in,
    option,
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


@dataclass(frozen=True)
class TrainingOptions:
    """Changes of how training steps are made."""

    precision: str | None = option(
        "What forward passes compute in.", metavar="fp32|bf16|fp16", show_default="the recipe's"
    )
    accumulate: int | None = option(
        "Pass the samples of a step through the network in M parts.",
        metavar="M",
        min=1,
        show_default="the recipe's",
    )
    clip: float | None = option(
        "Bring the gradient's norm down to this; 0 for no clipping.",
        metavar="NORM",
        min=0.0,
        callback=check_finite,
        show_default="the recipe's",
    )
    compile: bool | None = option(
        "Compile the trunk and each head by torch.compile.", show_default="the recipe's"
    )
    on_nonfinite: str | None = option(
        "At a NaN or an infinity, end the run, or leave the step out and count it.",
        metavar="stop|skip",
        show_default="the recipe's",
    )
    lbfgs_steps: int | None = option(
        "After the epochs, N steps of L-BFGS over all training samples at once.",
        metavar="N",
        min=0,
        show_default="the recipe's",
    )

    def changes(self) -> dict[str, Any]:
        """Return the changes of the recipe."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in asked.items() if value is not None}


@dataclass(frozen=True)
class WatchOptions:
    """What runs keep besides their results."""

    record: int | None = option(
        "Record the kernel every N steps, for `ntkmtl analyze`.",
        metavar="N",
        min=1,
        show_default="no record",
    )
    tracker: str | None = option(
        "Log while it trains: tensorboard, wandb, mlflow or trackio.",
        metavar="NAME",
        show_default="none",
    )
    model: bool = option("Keep the trained networks, for `ntkmtl predict`.", default=True)

    def arguments(self) -> dict[str, Any]:
        """Return them as arguments of a comparison."""
        record = None if self.record is None else {"every": self.record}
        return {"record": record, "tracker": self.tracker, "keep_model": self.model}


@dataclass(frozen=True)
class RowOptions:
    """Rows of the table besides those of the methods."""

    stl: bool = option(
        "Train the baselines that Delta-m needs. Methods that read scores during "
        "training (pivrg) train theirs in any case.",
        default=True,
    )
    reference: bool = option("For table: compute the rows of mean, ridge and forest.", default=True)

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
            engines,
            out,
            jobs,
            overwrite=overwrite,
            as_json=as_json,
            methods=names,
            seeds=numbers,
            options=made_with.options(),
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
    engines: EngineOptions,
    out: Path,
    jobs: int | None,
    *,
    overwrite: bool,
    as_json: bool,
    methods: Sequence[str],
    **asked: Any,
) -> None:
    """Train what an entry's comparison asks for, print its results and write the report."""
    with refusing(ValueError):
        from ntkmtl.bench import problems
        from ntkmtl.bench.compute.environment import cores

        find_modules_here(*methods)
        kind = problems.load_target(entry.name)
        refuse_others(context, kind.takes, kind.refusal)
        comparison = kind.asked(methods, out=out, jobs=jobs or cores(), **asked)
        engine = engines.made(jobs)
    failed = train_registered(comparison, overwrite=overwrite, engine=engine)
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
        comparison = planned(
            problem,
            [method],
            changed,
            made_with,
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
