"""``ntkmtl paper``: the paper's tables and figures, as published and as trained here."""

from __future__ import annotations

import typer

from ntkmtl.bench.cli.paper.figure import figure
from ntkmtl.bench.cli.paper.published import check, show
from ntkmtl.bench.cli.paper.run import run

__all__ = ["paper"]

paper = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Print the tables of the paper, or train what is behind a table or figure.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (show, check, run, figure):
    paper.command()(_command)
