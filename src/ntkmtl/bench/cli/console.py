"""What commands say: results to standard output, all else to standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ntkmtl.errors import MissingExtraError

if TYPE_CHECKING:
    from ntkmtl.bench.report import ResultTable

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "REFUSED",
    "print_columns",
    "print_grid",
    "print_json",
    "print_table",
    "refuse",
    "refusing",
    "say",
]

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses."""


@contextlib.contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Turn what a user can put right into one line and exit status 2."""
    kinds: tuple[type[Exception], ...] = (MissingExtraError, OSError, *more)
    try:
        yield
    except kinds as error:
        refuse(str(error))
    except ValueError as error:
        from ntkmtl.bench.jobs.engine import EngineError
        from ntkmtl.bench.problems import ProblemNotFoundError
        from ntkmtl.bench.runs import RunFileError
        from ntkmtl.bench.runs.locks import RunBusyError
        from ntkmtl.bench.training import SweepError

        known = EngineError | ProblemNotFoundError | RunBusyError | RunFileError | SweepError
        if not isinstance(error, known):
            raise
        refuse(str(error))
    except KeyboardInterrupt:
        # A second Ctrl-C, or one before training: nothing is left half-written.
        say("Stopped.")
        raise typer.Exit(INTERRUPTED) from None


def refuse(message: str) -> NoReturn:
    """Say why a command cannot be done, and end it with exit status 2."""
    say(f"Error: {message}")
    raise typer.Exit(REFUSED) from None


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_columns(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and what belongs to them in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_table(found: ResultTable) -> None:
    """Print a table of results, with color where standard output is a terminal."""
    from ntkmtl.bench import report

    if sys.stdout.isatty():
        from rich.console import Console

        from ntkmtl.bench.report._render import print_table as render

        render(found, Console())
    else:
        sys.stdout.write(report.render(found, "text"))


def print_grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a title, the first column to the left, the others to the right."""
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
