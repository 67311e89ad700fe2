"""``ntkmtl run``: train one method with one seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ntkmtl.bench.cli.console import print_columns, print_json, refusing, say
from ntkmtl.bench.cli.options import (
    DataOptions,
    Device,
    EngineOptions,
    Json,
    Out,
    Overwrite,
    ProblemName,
    RecipeOptions,
    Seed,
    Threads,
    TrainingOptions,
    WatchOptions,
    grouped,
    options_in,
)
from ntkmtl.bench.cli.sweeps import exit_as, model_note, planned, say_use, train_sweep

if TYPE_CHECKING:
    from ntkmtl.bench.runs import Run


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
        _show_runs(found, as_json, problem)
    exit_as(sweep)


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
