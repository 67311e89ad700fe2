"""``ntkmtl compare`` for registered problems that are not supervised ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ntkmtl.bench.cli.console import FAILED, INTERRUPTED, Refused, print_json, refusing, say
from ntkmtl.bench.cli.sweeps import say_failures
from ntkmtl.bench.cli.values import find_modules_here, refuse_others

if TYPE_CHECKING:
    from ntkmtl.bench.cli.options import EngineOptions
    from ntkmtl.bench.jobs.engine import Engine
    from ntkmtl.bench.problems import ProblemSpec

__all__ = ["compare_registered", "train_registered"]


def compare_registered(
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
    _show(comparison, out, as_json)
    if failed:
        raise typer.Exit(FAILED)


def _show(comparison: Any, out: Path, as_json: bool) -> None:
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


def train_registered(comparison: Any, *, overwrite: bool, engine: Engine | None = None) -> bool:
    """Train; return whether runs failed. End the command where all did or it was stopped."""
    from rich.console import Console

    with refusing(ValueError):
        from ntkmtl.bench.jobs.reporters import reporter_for

        reporter = reporter_for(Console(stderr=True))
        outcome = comparison.train(overwrite=overwrite, reporter=reporter, engine=engine)
    say_failures(outcome.failures)
    if outcome.interrupted:
        say("Stopped. The same command continues from there.")
        raise Refused("stopped", INTERRUPTED)
    if outcome.failures and not outcome.finished:
        why = "; ".join(f"{f.label}: {f.error}: {f.message}" for f in outcome.failures)
        raise Refused(why, FAILED)
    return bool(outcome.failures)
