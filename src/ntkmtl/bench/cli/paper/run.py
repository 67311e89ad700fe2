"""``ntkmtl paper run``: train what is behind a table, and print published beside measured."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ntkmtl.bench.cli.console import FAILED, refuse, refusing, write_result
from ntkmtl.bench.cli.options import Json, Overwrite, grouped
from ntkmtl.bench.cli.paper.common import RequestOptions, named, prepared, read
from ntkmtl.bench.cli.registered import train_registered
from ntkmtl.bench.cli.sweeps import trained
from ntkmtl.bench.cli.values import refuse_others, seeds_of

if TYPE_CHECKING:
    from ntkmtl.bench.paper import PaperResult

__all__ = ["run"]


class RowLayout(str, Enum):
    """What published and measured numbers can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"


@grouped
def run(
    context: typer.Context,
    table: Annotated[
        str, Argument(metavar="TABLE", help="A table of the paper, as table3 (or 3).")
    ],
    *,
    how: RequestOptions,
    overwrite: Overwrite = False,
    format: Annotated[RowLayout, Option("--format", help="What to print.")] = RowLayout.text,
    as_json: Json = False,
) -> None:
    """Train what is behind a table; print published and measured numbers side by side.

    Called again, it trains nothing twice.
    """
    result = named(table)
    if result.kind != "table":
        refuse(f"run takes a table; measure a figure by: ntkmtl paper figure {result.name}")
    layout = (RowLayout.json if as_json else format).value
    if not result.supervised:
        _run_agents(context, result, how, overwrite, layout)
        return
    ready = prepared(result, how)
    for one in ready:
        trained(one.comparison(), overwrite=overwrite)
    found = [read(one) for one in ready]
    with refusing(ValueError):
        from ntkmtl.bench.paper._sidebyside import render, side_by_side

        write_result(render(side_by_side(result, found), layout))


def _run_agents(
    context: typer.Context, result: PaperResult, how: RequestOptions, overwrite: bool, layout: str
) -> None:
    """Train the agents behind a table."""
    with refusing(ValueError):
        from ntkmtl.bench import problems
        from ntkmtl.bench.compute.environment import cores

        problem = result.parts[0].problem
        kind = problems.load_target(problem)
        refuse_others(context, {*kind.takes, "table", "format"} - {"problem"}, kind.refusal)
        if how.recipe is None:
            refuse(f"say what to train: --recipe {', '.join(result.recipes)}")
        asked = how.names or result.methods
        names = [
            n for name in asked for n in (("stl", *result.all_methods) if name == "all" else [name])
        ]
        comparison = kind.asked(
            names,
            seeds_of(how.seeds, how.seed_list),
            how.out / f"{problem}-{how.recipe}",
            jobs=how.jobs or cores(),
            options={"recipe": how.recipe},
        )
    failed = train_registered(comparison, overwrite=overwrite)
    with refusing(ValueError):
        from ntkmtl.bench.paper._reinforce import success_of
        from ntkmtl.bench.paper._sidebyside import render

        write_result(render(success_of(comparison), layout))
    if failed:
        raise typer.Exit(FAILED)
