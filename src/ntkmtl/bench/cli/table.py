"""``ntkmtl table``: the table of finished runs."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from typer import Option

from ntkmtl.bench.cli.console import print_table, refusing, write_result
from ntkmtl.bench.cli.options import Directory, Json

__all__ = ["table"]


class Format(str, Enum):
    """What a table can be printed as."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def table(
    directory: Directory,
    format: Annotated[Format, Option("--format", help="What to print.")] = Format.text,
    problem: Annotated[
        str | None, Option("--problem", help="Needed where DIR holds several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the table of finished runs."""
    with refusing(ValueError):
        from ntkmtl.bench import report

        found = report.build_table(directory, problem)
        chosen = Format.json if as_json else format
        if chosen is Format.text:
            print_table(found)
        else:
            write_result(report.render(found, chosen.value))
