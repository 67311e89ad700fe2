"""``ntkmtl study``: methods compared on several problems, each tuned with the same budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from ntkmtl.bench.cli.console import (
    FAILED,
    INTERRUPTED,
    Refused,
    print_grid,
    print_json,
    refuse,
    refusing,
    say,
)
from ntkmtl.bench.cli.options import (
    Device,
    EngineOptions,
    Jobs,
    Json,
    Threads,
    check_folder,
    find_modules_here,
    grouped,
    option,
    refuse_others,
    refuse_torchrun,
)
from ntkmtl.bench.cli.sweeps import progress, say_failures

if TYPE_CHECKING:
    from ntkmtl.bench.study.runner import StudyEstimate


@dataclass(frozen=True)
class StudyOptions:
    """What is done with a plan."""

    out: Path = option(
        "Folder for results and runs.",
        default=Path("study"),
        file_okay=False,
        callback=check_folder,
    )
    report: Path | None = option(
        "Judge the results that are in a folder; train nothing.", metavar="DIR"
    )
    yes: bool = option("Start without asking.", "--yes", default=False)
    dry_run: bool = option("Say how long it would take, and end.", "--dry-run", default=False)


@grouped
def study(
    context: typer.Context,
    file: Annotated[
        Path | None,
        Argument(metavar="FILE", help="What to compare: a TOML file; see docs/study.md."),
    ] = None,
    *,
    asked: StudyOptions,
    jobs: Jobs = None,
    threads: Threads = None,
    device: Device = "cpu",
    engines: EngineOptions,
    as_json: Json = False,
) -> None:
    """Compare methods on several problems, tuned with the same budget, and judge the results.

    It says how long it takes before it starts. Called again, it resumes where it stopped; the
    page and the judgement cover what is finished.
    """
    with refusing():
        if asked.report is not None:
            if file is not None:
                refuse("--report takes the folder of a study and no FILE")
            refuse_others(context, {"report", "as_json"}, "is for a study to run, not for --report")
            _judged(asked.report, as_json)
            return
        if file is None:
            refuse("FILE or --report DIR is needed; docs/study.md shows a file")
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.study.part import Trainer
        from ntkmtl.bench.study.plan import read_plan
        from ntkmtl.bench.study.runner import estimate, run_study

        refuse_torchrun("study")
        # Any of its names may be a module in the current folder.
        find_modules_here("module:Class")
        plan = read_plan(file)
        jobs = jobs or cores()
        trainer = Trainer(
            jobs=jobs,
            threads=threads,
            device=device,
            engine=engines.made(jobs),
            reporter=progress,
        )
        if not asked.yes or asked.dry_run:
            _confirmed(estimate(plan, asked.out, trainer, say), jobs, asked.dry_run, as_json)
        outcome = run_study(plan, asked.out, trainer)
        say(f"{len(outcome.written)} results written, {outcome.known} were there before")
        say_failures(outcome.failures)
        if outcome.interrupted:
            say("Stopped; the same command resumes.")
            raise Refused("stopped; the same command resumes", INTERRUPTED)
        _judged(asked.out, as_json)
    if outcome.failures:
        raise typer.Exit(FAILED)


def _confirmed(found: Sequence[StudyEstimate], jobs: int, dry_run: bool, as_json: bool) -> None:
    """Say how long it takes, and end the command unless the user agrees."""
    by_problem: dict[str, list[StudyEstimate]] = {}
    for entry in found:
        by_problem.setdefault(entry.problem, []).append(entry)
    rows = [
        [name, str(len(own)), str(sum(e.runs for e in own)), _hours(sum(e.seconds for e in own))]
        for name, own in by_problem.items()
    ]
    total = sum(entry.seconds for entry in found)
    rows.append(["all", str(len(found)), str(sum(e.runs for e in found)), _hours(total)])
    if as_json and dry_run:
        print_json({"missing": [vars(entry) for entry in found], "seconds": total, "jobs": jobs})
        raise typer.Exit
    heads = ["problem", "methods", "runs", "core time"]
    print_grid("What is missing", heads, rows, sys.stderr if as_json else sys.stdout)
    say(
        f"About {_hours(total / jobs)} with {jobs} runs at a time, from a few steps of each method "
        "on this machine's processor"
    )
    if dry_run:
        raise typer.Exit
    if total and not sys.stdin.isatty():
        refuse(
            "a study asks before it starts, and this is not a terminal: add --yes to start, or "
            "--dry-run to know the time only"
        )
    if total and not typer.confirm("Start?", err=True):
        raise typer.Exit


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _judged(out: Path, as_json: bool) -> None:
    """Judge the results in a folder, write the page, and print the judgement."""
    from ntkmtl.bench.study import judge, write_page
    from ntkmtl.bench.study.plan import stored_plan
    from ntkmtl.bench.study.results import read_results
    from ntkmtl.files import write_json

    with refusing(ValueError):
        found = judge(read_results(out), stored_plan(out).diagram)
    write_json(out / "judgement.json", found.to_json())
    page = write_page(found, out / "study.html")
    if as_json:
        print_json(found.to_json())
    else:
        for sentence in found.words:
            print(sentence)
    say(f"Page: {page}")
