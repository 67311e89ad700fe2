"""The commands of ``ntkmtl``. Torch is imported inside those that need it: help is quick."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from ntkmtl import __version__
from ntkmtl.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ntkmtl.report import Table
    from ntkmtl.training.engines import Engine
    from ntkmtl.training.reporters import Reporter
    from ntkmtl.training.runs import Run
    from ntkmtl.training.sweep import Comparison, Sweep
    from ntkmtl.training.workers import Failure

__all__ = ["app"]

FAILED, REFUSED, INTERRUPTED = 1, 2, 130

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


class EngineName(str, Enum):
    """Who trains the runs."""

    local = "local"
    ray = "ray"


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProblemName = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        help="A name that `ntkmtl problems` lists, or your own as module.path:ClassName or "
        "path/file.py:ClassName.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the runs.", file_okay=False)]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that `ntkmtl compare --out` named.")
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Use seeds 0 to N - 1.")]
SeedList = Annotated[
    str | None, typer.Option("--seed-list", help="Seeds with commas between them.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Runs at a time.", show_default="one per core"),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate instead of the recipe's.")
]
Minibatches = Annotated[
    int | None, typer.Option(min=1, help="The paper's n, for ntkmtl-sr and its like.")
]
ProblemOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Option of the problem; may be repeated."),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME", help="For problems with several recipes: paper, small."
    ),
]
DataFolder = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Prepared data, as `ntkmtl data` made them."),
]
Record = Annotated[
    int | None,
    typer.Option(
        "--record",
        metavar="N",
        min=1,
        help="Record the kernel every N steps, for `ntkmtl analyze`.",
        show_default="no record",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda", help="Where to train; auto takes a GPU."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|bf16|fp16",
        help="What forward passes compute in.",
        show_default="the recipe's",
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        "--accumulate",
        metavar="M",
        min=1,
        help="Pass the samples of a step through the network in M parts.",
        show_default="the recipe's",
    ),
]
Clip = Annotated[
    float | None,
    typer.Option(
        "--clip",
        metavar="NORM",
        min=0.0,
        help="Bring the gradient's norm down to this; 0 for no clipping.",
        show_default="the recipe's",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the trunk and each head by torch.compile.",
        show_default="the recipe's",
    ),
]
OnNonFinite = Annotated[
    str | None,
    typer.Option(
        "--on-nonfinite",
        metavar="stop|skip",
        help="At a NaN or an infinity, end the run, or leave the step out and count it.",
        show_default="the recipe's",
    ),
]
TrackerName = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="Log while it trains: tensorboard, wandb, mlflow or trackio.",
        show_default="none",
    ),
]
EngineOption = Annotated[
    EngineName,
    typer.Option("--engine", help="Who trains the runs: processes here, or tasks of Ray."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="With --engine ray: the head of a cluster to join, or auto.",
        show_default="a Ray of its own on this machine",
    ),
]
RayCpus = Annotated[
    int | None,
    typer.Option(
        "--ray-cpus",
        min=1,
        help="With --engine ray: processors and threads of a run.",
        show_default="1",
    ),
]
RayGpus = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus",
        min=0,
        help="With --engine ray: GPUs of a run; 0.5 lets two share one.",
        show_default="0",
    ),
]
Csv = Annotated[
    str | None,
    typer.Option("--csv", metavar="FILE", help="For table: a CSV, Parquet or ARFF file."),
]
Targets = Annotated[
    str | None,
    typer.Option("--targets", metavar="A,B,...", help="For table: the columns to predict."),
]
Types = Annotated[
    str | None,
    typer.Option(
        "--types",
        metavar="A=TYPE,...",
        help="For table: regression or classification for targets; number, category, date or "
        "ignore for other columns.",
        show_default="as found",
    ),
]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="METHOD.KEY=VALUE",
        help="Setting of a method, as ntkmtl-sr.minibatches=8; may be repeated.",
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        "--split-column",
        metavar="COLUMN",
        help="For table: the column that says train, val or test.",
        show_default="split at random",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace runs that were made with other settings.")
]


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
def compare(
    context: typer.Context,
    problem: ProblemName,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Names that `ntkmtl methods` lists, with commas between them, or all.",
        ),
    ] = "ls,ntkmtl,ntkmtl-sr",
    seeds: Seeds = 3,
    seed_list: SeedList = None,
    jobs: Jobs = None,
    out: Out = Path("runs"),
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    minibatches: Minibatches = None,
    settings: MethodSettings = None,
    problem_option: ProblemOption = None,
    recipe: RecipeName = None,
    data_dir: DataFolder = None,
    csv: Csv = None,
    targets: Targets = None,
    types: Types = None,
    split_column: SplitColumn = None,
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
    precision: Precision = None,
    accumulate: Accumulate = None,
    clip: Clip = None,
    compile: Compile = None,
    on_nonfinite: OnNonFinite = None,
    tracker: TrackerName = None,
    engine: EngineOption = EngineName.local,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    ray_gpus: RayGpus = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a problem with several methods and seeds; print the table and write the report.

    Called again, it goes on where it stopped, and trains nothing twice.
    """
    if problem == "mt10":
        from ntkmtl._reinforce_command import compare_mt10

        numbers = _seeds(seeds, seed_list)
        with _refusing():
            chosen = _engine(engine, ray_address, ray_cpus, ray_gpus, jobs)
        compare_mt10(
            context, recipe, _names(methods), numbers, jobs, out, device, chosen, overwrite, as_json
        )
        return
    with _refusing():
        from ntkmtl.training.distributed import launched
        from ntkmtl.training.environment import cores
        from ntkmtl.training.sweep import Comparison

        _find_modules_here(problem)
        comparison = Comparison(
            problem=problem,
            methods=_names(methods),
            seeds=_seeds(seeds, seed_list),
            out=out,
            jobs=jobs or (cores() if launched() == 1 else 1),
            problem_options=_problem_options(
                problem_option, recipe, data_dir, csv, targets, types, split_column
            ),
            method_options=_method_settings(settings or []),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            minibatches=minibatches,
            single_task_baselines=stl,
            tune=tune,
            tune_epochs=tune_epochs,
            record=None if record is None else {"every": record},
            training=_training(precision, accumulate, clip, compile, on_nonfinite),
            device=cast("Any", device),
            tracker=tracker,
        )
        chosen = _engine(engine, ray_address, ray_cpus, ray_gpus, jobs)
        sweep = _sweep(comparison, overwrite=overwrite, engine=chosen)
        _show_sweep(sweep, as_json)
    _exit_as(sweep)


@app.command()
def run(
    problem: ProblemName,
    method: Annotated[str, typer.Option("--method", help="A name that `ntkmtl methods` lists.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    task: Annotated[
        str | None,
        typer.Option("--task", help="For --method stl: one task instead of each in turn."),
    ] = None,
    out: Out = Path("runs"),
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    minibatches: Minibatches = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the method."),
    ] = None,
    problem_option: ProblemOption = None,
    recipe: RecipeName = None,
    data_dir: DataFolder = None,
    csv: Csv = None,
    targets: Targets = None,
    types: Types = None,
    split_column: SplitColumn = None,
    record: Record = None,
    device: Device = "cpu",
    precision: Precision = None,
    accumulate: Accumulate = None,
    clip: Clip = None,
    compile: Compile = None,
    on_nonfinite: OnNonFinite = None,
    tracker: TrackerName = None,
    engine: EngineOption = EngineName.local,
    ray_address: RayAddress = None,
    ray_cpus: RayCpus = None,
    ray_gpus: RayGpus = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one problem with one method and one seed; print the test metrics."""
    with _refusing():
        from ntkmtl.training.runs import SINGLE_TASK, load_run, run_folder
        from ntkmtl.training.sweep import Comparison, SweepError

        _find_modules_here(problem)
        if task is not None and method != SINGLE_TASK:
            raise SweepError(f"--task goes with --method {SINGLE_TASK}, not with {method}")
        chosen = _options(settings or [])
        comparison = Comparison(
            problem=problem,
            methods=[method],
            seeds=[seed],
            out=out,
            jobs=1,
            problem_options=_problem_options(
                problem_option, recipe, data_dir, csv, targets, types, split_column
            ),
            method_options={method: chosen} if chosen else {},
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            minibatches=minibatches,
            single_task_baselines=False,
            record=None if record is None else {"every": record},
            training=_training(precision, accumulate, clip, compile, on_nonfinite),
            device=cast("Any", device),
            tracker=tracker,
            tasks=None if task is None else [task],
        )
        sweep = _sweep(
            comparison,
            overwrite=overwrite,
            keep_request=False,
            engine=_engine(engine, ray_address, ray_cpus, ray_gpus, None),
        )
        root = run_folder(out, sweep.problem, method, seed)
        folders = [root] if method != SINGLE_TASK else sorted(root.glob("*/"))
        if task is not None:
            folders = [run_folder(out, sweep.problem, method, seed, task)]
        if not (sweep.failures or sweep.interrupted):
            _show_runs([load_run(folder) for folder in folders], as_json)
    _exit_as(sweep)


def _engine(
    name: EngineName,
    address: str | None,
    cpus: int | None,
    gpus: float | None,
    jobs: int | None,
) -> Engine | None:
    """Return the engine that was asked for, None for processes on this machine."""
    if name is EngineName.local:
        given = {"--ray-address": address, "--ray-cpus": cpus, "--ray-gpus": gpus}
        for option, value in given.items():
            if value is not None:
                _refuse(f"{option} goes with --engine ray")
        return None
    from ntkmtl.training import distributed
    from ntkmtl.training.engines_ray import RayEngine

    if distributed.launched() > 1:
        _refuse("--engine ray starts its own processes: call it without torchrun")
    return RayEngine(address, cpus or 1, gpus or 0.0, jobs)


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
        _refuse(str(error))
    if distributed.rank() > 0:
        follow_jobs(place)
        raise typer.Exit
    with distributed.leading(place):
        yield


def _show_sweep(sweep: Sweep, as_json: bool) -> None:
    """Print the table and write the report, as far as there are complete runs."""
    from ntkmtl import report

    table, page, why = None, None, ""
    if not sweep.interrupted:
        try:
            table = report.build_table(sweep.out, sweep.problem)
            page = report.write_html(sweep.out, sweep.out / "report.html")
        except ValueError as error:
            why = str(error)
    if as_json:
        _print_json(
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
        return
    if table is not None:
        _print_table(table)
    if why:
        _say(f"No table: {why}")
    if page is not None:
        _say(f"Report: {page}")


def _say_failures(failures: Sequence[Failure]) -> None:
    for failure in failures:
        _say(f"Failed: {failure.label}: {failure.error}: {failure.message}")
        _say(f"        see {failure.folder / 'failure.json'}")


def _exit_as(sweep: Sweep) -> None:
    _say_failures(sweep.failures)
    if sweep.interrupted:
        done = sweep.trained + sweep.complete + sweep.cached
        again = shlex.join(["ntkmtl", *sys.argv[1:]])
        _say(f"Stopped with {done} runs complete and {sweep.unfinished} to go. Go on with: {again}")
        raise typer.Exit(INTERRUPTED)
    if sweep.failures:
        raise typer.Exit(FAILED)


def _trained(comparison: Comparison, *, overwrite: bool) -> Sweep:
    """Train; end the command where runs failed or it was stopped."""
    with _refusing():
        sweep = _sweep(comparison, overwrite=overwrite)
    _exit_as(sweep)
    return sweep


def _show_runs(runs: Sequence[Run], as_json: bool) -> None:
    if as_json:
        _print_json(
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
        _print_columns(rows)
    for run in runs:
        _say(f"Run: {run.path} ({run.result.seconds_per_epoch:.2f} s per epoch)")


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
    with _refusing(ValueError):
        from ntkmtl import report

        found = report.build_table(directory, problem)
        chosen = Format.json if as_json else format
        if chosen is Format.text:
            _print_table(found)
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
    with _refusing(ValueError):
        from ntkmtl import report

        page = report.write_html(directory, output or directory / "report.html")
    if as_json:
        _print_json({"report": str(page)})
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
        _print_json(
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
        _print_columns([(spec.name, spec.summary) for spec in specs])


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
        _print_json([{"name": name, "summary": summary} for name, summary in found])
    else:
        _print_columns(found)


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
        with _refusing(ValueError):
            made = prepare_data(problem, source, folder, _say)
        if as_json:
            _print_json({"problem": problem, "made": made})
        else:
            print(made)
        return
    with _refusing():
        listed = list_data()
    if as_json:
        _print_json(listed)
    else:
        _print_columns([(entry["problem"], describe(entry)) for entry in listed])


# ------------------------------------------------------------------------------------------------
# Helpers


@contextlib.contextmanager
def _refusing(*more: type[Exception]) -> Iterator[None]:
    """Turn what a user can put right into one line and exit status 2."""
    kinds: tuple[type[Exception], ...] = (MissingExtraError, OSError, *more)
    try:
        yield
    except kinds as error:
        _refuse(str(error))
    except ValueError as error:
        from ntkmtl.training.engines import EngineError
        from ntkmtl.training.locks import RunBusyError
        from ntkmtl.training.lookup import ProblemNotFoundError
        from ntkmtl.training.runs import RunFileError
        from ntkmtl.training.sweep import SweepError

        known = EngineError | ProblemNotFoundError | RunBusyError | RunFileError | SweepError
        if not isinstance(error, known):
            raise
        _refuse(str(error))
    except KeyboardInterrupt:
        # A second Ctrl-C, or one before training: nothing is left half-written.
        _say("Stopped.")
        raise typer.Exit(INTERRUPTED) from None


def _refuse(message: str) -> NoReturn:
    _say(f"Error: {message}")
    raise typer.Exit(REFUSED) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _print_columns(rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def _print_table(found: Table) -> None:
    from ntkmtl import report

    if sys.stdout.isatty():
        from rich.console import Console

        from ntkmtl.report._render import print_table

        print_table(found, Console())
    else:
        sys.stdout.write(report.render(found, "text"))


def _print_grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width: the table takes what it needs there, in one line per row.
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    grid = Table(title=title, title_justify="left")
    for position, head in enumerate(heads):
        grid.add_column(Text(head), justify="left" if position == 0 else "right")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


def _find_modules_here(problem: str) -> None:
    """Let module.path:ClassName name a module in the current folder, as ``python -m`` does."""
    here = os.getcwd()  # noqa: PTH109  (entries of sys.path are texts)
    if ":" in problem and here not in sys.path:
        sys.path.insert(0, here)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _names(text)]
    except ValueError:
        _refuse(f"--seed-list takes whole numbers with commas between them. Found {text!r}.")


def _seeds(count: int, listed: str | None) -> list[int]:
    """Return the seeds that --seed-list names, or else 0 to ``count`` - 1."""
    return list(range(count)) if listed is None else _numbers(listed)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a value is JSON where it can be, else a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            _refuse(f"an option is written KEY=VALUE. Found {pair!r}.")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _training(
    precision: str | None,
    accumulate: int | None,
    clip: float | None,
    compile: bool | None,
    on_nonfinite: str | None,
) -> dict[str, Any]:
    """Return what the recipe is changed by."""
    asked = {
        "precision": precision,
        "accumulate": accumulate,
        "clip": clip,
        "compile": compile,
        "on_nonfinite": on_nonfinite,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _problem_options(
    pairs: Sequence[str] | None,
    recipe: str | None,
    data: str | None,
    csv: str | None,
    targets: str | None,
    types: str | None,
    split_column: str | None,
) -> dict[str, Any]:
    """Return the problem's options: KEY=VALUE pairs, and those with a flag of their own."""
    named = {
        "recipe": recipe,
        "data": data,
        "csv": csv,
        "targets": targets,
        "types": types,
        "split_column": split_column,
    }
    given = {key: value for key, value in named.items() if value is not None}
    return {**_options(pairs or []), **given}


def _refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Refuse options that were given on the command line and mean nothing here.

    Args:
        context: The command's.
        allowed: Names of the parameters that mean something.
        why: What is said after the option's name.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in allowed:
            _refuse(f"{parameter.opts[0]} {why}")


def _method_settings(pairs: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        method, dot, rest = pair.partition(".")
        if not (method and dot) or "=" in method:
            _refuse(f"--set takes METHOD.KEY=VALUE. Found {pair!r}.")
        found.setdefault(method, {}).update(_options([rest]))
    return found
