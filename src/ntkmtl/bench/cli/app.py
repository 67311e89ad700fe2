"""The commands of ``ntkmtl``. Torch is imported inside those that need it: help is quick."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from ntkmtl._version import __version__
from ntkmtl.bench.cli.analyze import analyze
from ntkmtl.bench.cli.catalog import data, methods, problems
from ntkmtl.bench.cli.console import Refused, json_alone, print_json, refuse
from ntkmtl.bench.cli.paper import paper
from ntkmtl.bench.cli.predict import predict
from ntkmtl.bench.cli.results import report, table
from ntkmtl.bench.cli.study import study
from ntkmtl.bench.cli.train import compare, run
from ntkmtl.bench.cli.tune import tune
from ntkmtl.bench.cli.weigh import weigh


class CommandGroup(TyperGroup):
    """The commands; with ``--json`` they also print errors as JSON."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note whether JSON is asked for, before the other arguments are parsed."""
        ctx.meta[__name__] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Call the command that the arguments name.

        With ``--json``, everything else that is printed to standard output, as by the code of a
        custom problem, goes to standard error.
        """
        as_json = ctx.meta[__name__]
        try:
            try:
                with json_alone() if as_json else contextlib.nullcontext():
                    return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except Exception as error:
            # Typer's usage errors have this method; their class is not public.
            told = getattr(error, "format_message", None)
            message = error.message if isinstance(error, Refused) else told and told()
            if message and as_json:
                with contextlib.suppress(OSError):
                    print_json({"error": message})
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                if error.filename is None:
                    _discard_output()
                refuse(f"{error.filename or 'standard output'}: {error.strerror}")
            raise


def _discard_output() -> None:
    """Discard what standard output still holds: Python would try again to write it at exit."""
    with contextlib.suppress(OSError):  # no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
