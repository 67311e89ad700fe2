"""What commands say: results to standard output, all else to standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from ntkmtl.errors import MissingExtraError

if TYPE_CHECKING:
    from ntkmtl.bench.report import ResultTable


FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit statuses."""


@contextlib.contextmanager
def refusing(*more: type[Exception]) -> Iterator[None]:
    """Turn errors that a user can fix into one line and exit status 2."""
    kinds: tuple[type[Exception], ...] = (MissingExtraError, OSError, *more)
    try:
        yield
    except kinds as error:
        refuse(_words(error))
    except ValueError as error:
        from ntkmtl.bench.problems import ProblemNotFoundError
        from ntkmtl.bench.runs import RunFileError
        from ntkmtl.bench.runs.layout import RunBusyError
        from ntkmtl.bench.training import SweepError

        known = ProblemNotFoundError | RunBusyError | RunFileError | SweepError
        if not isinstance(error, known):
            raise
        refuse(str(error))
    except KeyboardInterrupt:
        # A second Ctrl-C, or one before training: nothing is left half-written.
        say("Stopped.")
        raise Refused("stopped", INTERRUPTED) from None


def _words(error: Exception) -> str:
    """Return what an error says; those of files say the number of the error first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


class Refused(typer.Exit):
    """A command has ended without a result."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(code)
        self.message = message


def refuse(message: str) -> NoReturn:
    """Print why a command cannot be run, and end it with exit status 2."""
    say(f"Error: {message}")
    raise Refused(message) from None


_results: TextIO | None = None
"""Standard output while only JSON may go there, else None."""


@contextlib.contextmanager
def json_alone() -> Iterator[None]:
    """Let only results go to standard output: what else is printed goes to standard error."""
    global _results
    _results = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results = None


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    write_result(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_result(text: str) -> None:
    """Write to standard output, also where only JSON may go there."""
    (_results or sys.stdout).write(text)


def print_columns(rows: Sequence[tuple[str, str]]) -> None:
    """Print pairs in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_table(found: ResultTable) -> None:
    """Print a table of results, with color where standard output is a terminal."""
    from ntkmtl.bench import report

    if sys.stdout.isatty():
        report.print_table(found)
    else:
        sys.stdout.write(report.render(found, "text"))


def print_grid(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    file: TextIO | None = None,
) -> None:
    """Print rows of text under a title, the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width: the table takes what it needs there, in one line per row.
    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else 1000)
    grid = Table(title=title, title_justify="left")
    for position, head in enumerate(heads):
        grid.add_column(Text(head), justify="left" if position == 0 else "right")
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid)
