"""The commands of ``ntkmtl``. Torch is imported inside those that need it: help is quick."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from ntkmtl._version import __version__
from ntkmtl.bench.cli.analyze import analyze
from ntkmtl.bench.cli.compare import compare
from ntkmtl.bench.cli.console import CommandGroup
from ntkmtl.bench.cli.data import data
from ntkmtl.bench.cli.methods import methods
from ntkmtl.bench.cli.paper import paper
from ntkmtl.bench.cli.predict import predict
from ntkmtl.bench.cli.problems import problems
from ntkmtl.bench.cli.report import report
from ntkmtl.bench.cli.run import run
from ntkmtl.bench.cli.study import study
from ntkmtl.bench.cli.table import table
from ntkmtl.bench.cli.tune import tune
from ntkmtl.bench.cli.weigh import weigh

__all__ = ["app"]

app = typer.Typer(
    name="ntkmtl",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (
    compare,
    run,
    predict,
    table,
    report,
    methods,
    problems,
    data,
    analyze,
    tune,
    study,
    weigh,
):
    app.command()(_command)
app.add_typer(paper, name="paper")


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Multi-task learning balanced by the neural tangent kernel: train, compare, report."""
