"""Planning and training what a command asks for, showing the results, and the exit status."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ntkmtl.bench.cli.console import (
    FAILED,
    INTERRUPTED,
    Refused,
    print_json,
    print_table,
    refuse,
    refusing,
    say,
)

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import Engine, Failure
    from ntkmtl.bench.jobs.reporters import Reporter
    from ntkmtl.bench.report import ResultTable
    from ntkmtl.bench.runs import Run
    from ntkmtl.bench.training import Comparison, Sweep


def planned(problem: str, methods: Sequence[str], **arguments: Any) -> Comparison:
    """Return a comparison whose names and settings are checked before data are read.

    Args:
        problem: As typed.
        methods: As typed.
        **arguments: Further arguments of :class:`~ntkmtl.bench.training.Comparison`.

    Raises:
        SweepError: A method is unknown.
        ProblemNotFoundError: There is no such problem.
    """
    from ntkmtl.bench import problems
    from ntkmtl.bench.training.comparison import Comparison

    comparison = Comparison(problem, list(methods), **arguments)
    try:
        recipe = problems.known_recipe(problem, comparison.problem_options.get("recipe"))
    except ValueError as error:
        raise problems.ProblemNotFoundError(str(error)) from error
    batch_size = comparison.batch_size or (None if recipe is None else recipe.batch_size)
    _check_settings(arguments["method_options"], batch_size)
    if batch_size is not None and (comparison.minibatches or 1) > batch_size:
        refuse(
            f"--minibatches must be at most the batch size, {batch_size}, found "
            f"{comparison.minibatches}"
        )
    _check_room(Path(comparison.out))
    return comparison


def _check_room(path: Path) -> None:
    """Refuse a folder that is not there and cannot be made where it is to be."""
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), path)
    if there == path:
        return
    try:
        Path(tempfile.mkdtemp(prefix=".ntkmtl-", dir=there)).rmdir()
    except OSError as error:
        why = f"nothing can be made in {there} ({error.strerror or error})"
        refuse(f"--out must be a folder that can be made, found {path}: {why}")


GIVEN = ("last_layer", "method", "probe", "process_group", "record", "shared", "tasks", "trunk")
"""Arguments of a Balancer that are not settings: the run gives them."""


def _check_settings(settings: Mapping[str, Mapping[str, Any]], batch_size: int | None) -> None:
    """Refuse settings of methods that are wrong whatever the data are."""
    for method, chosen in settings.items():
        for key in GIVEN:
            if key in chosen:
                refuse(f"--set cannot change {key} of {method}: the run gives it")
        n = chosen.get("minibatches")
        if n is not None and (type(n) is not int or n < 1):
            refuse(f"minibatches of {method} must be a whole number from 1, found {n!r}")
        if n is not None and batch_size is not None and n > batch_size:
            refuse(
                f"minibatches of {method} must be at most the batch size, {batch_size}, found {n}"
            )


def progress() -> Reporter:
    """Return what reports progress on standard error."""
    from rich.console import Console

    from ntkmtl.bench.jobs.reporters import reporter_for

    return reporter_for(Console(stderr=True))


def train_sweep(
    comparison: Comparison,
    *,
    overwrite: bool,
    keep_request: bool = True,
    share_folder: bool = False,
    engine: Engine | None = None,
) -> Sweep:
    """Train what a comparison asks for and report progress on standard error.

    Args:
        comparison: What to train.
        overwrite: Whether to replace runs that were made with other settings.
        keep_request: Whether to note in the folder what was asked for.
        share_folder: Whether other processes may train other runs in the folder meanwhile.
        engine: Trains the runs; processes on this machine if None.
    """
    from ntkmtl.bench.training.sweep import compare as train_all

    with _together(comparison.device):
        return train_all(
            comparison,
            overwrite=overwrite,
            reporter=progress(),
            keep_request=keep_request,
            share_folder=share_folder,
            engine=engine,
        )


@contextlib.contextmanager
def _together(device: str) -> Iterator[None]:
    """Train with all processes that were launched together; those that only follow end here."""
    from ntkmtl.bench.compute import processes

    if processes.launched() == 1:
        yield
        return
    from ntkmtl.bench.compute.device import DeviceError, choose_device
    from ntkmtl.bench.jobs.engine import follow_jobs

    try:
        place = choose_device(device)
    except DeviceError as error:
        refuse(str(error))
    if processes.rank() > 0:
        follow_jobs(place)
        raise typer.Exit
    with processes.leading(place):
        yield


def show_sweep(sweep: Sweep, as_json: bool, source: str) -> bool:
    """Print the table, write the report, and say how to use the best network.

    Returns:
        False if the table or the report could not be made.
    """
    from ntkmtl.bench.report import build_table, write_html

    table, page, why = None, None, ""
    if not sweep.interrupted:
        try:
            table = build_table(sweep.out, sweep.problem)
        except ValueError as error:
            why = f"No table: {error}"
    if table is not None:
        try:
            page = write_html(sweep.out, sweep.out / "report.html")
        except (ValueError, OSError) as error:
            why = f"No report: {error}"
    kept = None if table is None else _Kept.below(sweep)
    if as_json:
        print_json(_as_json(sweep, table, page, kept))
    elif table is not None:
        print_table(table)
    if why:
        say(why)
    if page is not None and not as_json:
        say(f"Report: {page}")
    if kept is not None and kept.best is not None and not as_json:
        judged = "validation" if kept.best.config.sizes["val"] else "training"
        say(
            f"Networks: {kept.count} in {_size(kept.bytes)}. Best mean rank on the {judged} split: "
            f"{kept.best.path}"
        )
        say_use(kept.best, source)
    return not why


def _as_json(
    sweep: Sweep, table: ResultTable | None, page: Path | None, kept: _Kept | None
) -> dict[str, Any]:
    from ntkmtl.bench.report import render

    return {
        "problem": sweep.problem,
        "out": str(sweep.out),
        "report": None if page is None else str(page),
        "trained": sweep.trained,
        "complete_before": sweep.complete,
        "cached": sweep.cached,
        "unfinished": sweep.unfinished,
        "interrupted": sweep.interrupted,
        "failures": [
            {"run": f.label, "folder": str(f.folder), "error": f.error, "message": f.message}
            for f in sweep.failures
        ],
        "seconds": sweep.seconds,
        "model_bytes": 0 if kept is None else kept.bytes,
        "best_run": None if kept is None or kept.best is None else str(kept.best.path),
        "table": None if table is None else json.loads(render(table, "json")),
    }


@dataclass(frozen=True)
class _Kept:
    """The trained networks of a comparison: their number and size, and the run of the best."""

    count: int
    bytes: int
    best: Run | None

    @classmethod
    def below(cls, sweep: Sweep) -> _Kept | None:
        """Return the networks that complete runs kept, None if there are none."""
        from ntkmtl.bench.runs import folder_name, load_runs
        from ntkmtl.bench.runs.run import best_run

        runs, _ = load_runs(sweep.out / folder_name(sweep.problem))
        sizes = [run.result.model.bytes for run in runs if run.result.model is not None]
        return cls(len(sizes), sum(sizes), best_run(runs)) if sizes else None


def say_use(run: Run, source: str) -> None:
    """Print the command that uses the network of a run of ``source``, the problem as typed."""
    from ntkmtl.bench.runs.run import use_command

    say(f"Use it: {use_command(run, source)}")


def model_note(run: Run) -> str:
    """Return the size of a run's network in words, ``""`` if it kept none."""
    return "" if run.result.model is None else f", network {_size(run.result.model.bytes)}"


def _size(count: int) -> str:
    """Return a number of bytes with a unit.

    Example:
        >>> _size(2_340), _size(56_000_000)
        ('2.3 kB', '56.0 MB')
    """
    number, units = count / 1000, ("kB", "MB", "GB")
    for unit in units:
        if number < 1000 or unit == units[-1]:
            break
        number /= 1000
    return f"{number:.1f} {unit}"


def say_failures(failures: Sequence[Failure]) -> None:
    """Print each failed run and the file that says why it failed."""
    for failure in failures:
        say(f"Failed: {_why(failure)}")
        if (failure.folder / "failure.json").exists():
            say(f"        see {failure.folder / 'failure.json'}")


def _why(failure: Failure) -> str:
    return f"{failure.label}: {failure.error}: {failure.message}"


def exit_as(sweep: Sweep, shown: bool = True, *, told: bool = True) -> None:
    """Report failures, and end the command with the status of a sweep.

    Args:
        sweep: The outcome.
        shown: Whether table and report could be made.
        told: Whether results were printed; else JSON, where it is asked for, has the error.
    """
    say_failures(sweep.failures)
    failed = "; ".join(map(_why, sweep.failures))
    why = "stopped" if sweep.interrupted else failed or f"{sweep.unfinished} runs to go"
    end = typer.Exit if told else partial(Refused, why)
    again = shlex.join(["ntkmtl", *sys.argv[1:]])
    if sweep.interrupted:
        done = sweep.trained + sweep.complete + sweep.cached
        say(f"Stopped with {done} runs complete and {sweep.unfinished} to go. Go on with: {again}")
        raise end(INTERRUPTED)
    if sweep.unfinished and not sweep.failures:
        say(f"Error: {sweep.unfinished} runs were not trained. Go on with: {again}")
    if sweep.failures or sweep.unfinished or not shown:
        raise end(FAILED)


def trained(comparison: Comparison, *, overwrite: bool) -> Sweep:
    """Train; end the command where runs failed or it was stopped."""
    with refusing():
        sweep = train_sweep(comparison, overwrite=overwrite)
    exit_as(sweep, told=False)
    return sweep


def train_registered(comparison: Any, *, overwrite: bool, engine: Engine | None = None) -> bool:
    """Train; return whether runs failed. End the command where all did or it was stopped."""
    with refusing(ValueError):
        outcome = comparison.train(overwrite=overwrite, reporter=progress(), engine=engine)
    say_failures(outcome.failures)
    if outcome.interrupted:
        say("Stopped. The same command continues from there.")
        raise Refused("stopped", INTERRUPTED)
    if outcome.failures and not outcome.finished:
        raise Refused("; ".join(map(_why, outcome.failures)), FAILED)
    return bool(outcome.failures)
