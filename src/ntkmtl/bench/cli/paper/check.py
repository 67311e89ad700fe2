"""``ntkmtl paper check``: published columns that do not follow from the published metrics."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from ntkmtl.bench.cli.console import print_json, refuse
from ntkmtl.bench.cli.options import Json
from ntkmtl.bench.cli.paper.common import named

__all__ = ["check"]


def check(
    table: Annotated[
        str | None,
        Argument(
            metavar="[TABLE]", help="One table of the paper, as table3 (or 3).", show_default="all"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which published columns do not follow from the published metrics."""
    from ntkmtl.bench import paper as tables

    number = None
    if table is not None:
        result = named(table)
        if result.kind != "table":
            refuse(f"check takes a table, found {result.name}")
        number = result.number
    if not as_json:
        print(tables.report(number))
        return
    print_json(
        [
            {
                "table": found.table,
                "method": found.row.method,
                "column": found.column.name,
                "published": found.published,
                "recomputed": found.recomputed,
            }
            for found in tables.discrepancies(number)
        ]
    )
