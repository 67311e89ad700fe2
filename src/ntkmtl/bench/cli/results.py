"""``ntkmtl table`` and ``ntkmtl report``: what finished runs came to."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Option

from ntkmtl.bench.cli.console import print_json, print_table, refusing, write_result
from ntkmtl.bench.cli.options import Directory, Json
from ntkmtl.bench.cli.outputs import PAGE_BEGINS, check_kept


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


def report(
    directory: Directory,
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="Where to write the page.",
            show_default="DIR/report.html",
            dir_okay=False,
        ),
    ] = None,
    gallery: Annotated[
        bool,
        Option(
            "--gallery",
            help="Show predictions of the best network on single samples; reads the data.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the report of finished runs: one HTML page that needs no network."""
    check_kept(output or directory / "report.html", PAGE_BEGINS)
    with refusing(ValueError):
        from ntkmtl.bench.report import write_html

        page = write_html(directory, output or directory / "report.html", gallery=gallery)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)
