"""``ntkmtl report``: the page of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ntkmtl.bench.cli.console import print_json, refusing
from ntkmtl.bench.cli.options import Directory, Json

__all__ = ["report"]


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
    with refusing(ValueError):
        from ntkmtl.bench.report import write_html

        page = write_html(directory, output or directory / "report.html", gallery=gallery)
    if as_json:
        print_json({"report": str(page)})
    else:
        print(page)
