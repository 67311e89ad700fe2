"""``ntkmtl paper show`` and ``paper check``: tables and figures as published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ntkmtl.bench.cli.catalog import describe, list_data
from ntkmtl.bench.cli.console import print_columns, print_grid, print_json, refuse, refusing
from ntkmtl.bench.cli.options import Json

if TYPE_CHECKING:
    from ntkmtl.bench.paper import PaperResult


def show(
    what: Annotated[
        str | None,
        Argument(
            metavar="[WHAT]",
            help="A table or figure of the paper: table3 (or 3), figure3.",
            show_default="list them all",
        ),
    ] = None,
    recomputed: Annotated[
        bool, Option("--recomputed", help="Add what the printed metrics give for MR and Delta-m.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print a table of the paper as published, or list all tables and figures."""
    if what is None:
        if recomputed:
            refuse("--recomputed goes with a table, as table3")
        _list(as_json)
        return
    result = named(what)
    if result.kind == "table":
        _table(result, recomputed, as_json)
        return
    if recomputed:
        refuse(f"--recomputed goes with a table, found {result.name}")
    if as_json:
        print_json({**_entry(result), "said": result.said})
        return
    print(f"{result.label}: {result.title}")
    print(result.said)
    print(f"The paper prints no numbers. Measure it: {_run_line(result)}")


def _table(result: PaperResult, recomputed: bool, as_json: bool) -> None:
    from ntkmtl.bench import paper as tables

    found = tables.table(result.number)
    heads, rows = tables.render(result.number, recomputed=recomputed)
    if as_json:
        print_json(
            {
                "number": found.number,
                "title": found.title,
                "rows": [dict(zip(heads, row, strict=True)) for row in rows],
                "notes": list(found.notes),
            }
        )
        return
    print_grid(f"Table {found.number}: {found.title}", heads, rows)
    for note in found.notes:
        print(note)


def _list(as_json: bool) -> None:
    from ntkmtl.bench.paper import paper_results

    with refusing():
        entries = [_entry(one) for one in paper_results()]
    if as_json:
        print_json(entries)
        return
    problems: dict[str, dict[str, Any]] = {}
    lines = []
    for entry in entries:
        names = [problem["name"] for problem in entry["problems"]]
        lines.append((entry["label"], f"{entry['title']} ({', '.join(names)})"))
        problems.update({problem["name"]: problem for problem in entry["problems"]})
    print_columns(lines)
    print("\nThe problems behind them:")
    lines = []
    for name, problem in problems.items():
        lines += [(name, problem["published"]), ("", f"data {problem['data']}")]
    print_columns(lines)
    print(
        "\nPrint one: ntkmtl paper show table3. Train one: ntkmtl paper run table3 --recipe small, "
        "reduced\nfor a CPU, or --recipe paper. Without the data of qm9: ntkmtl paper run table3 "
        "--problem qm9-mini."
    )


def _entry(result: PaperResult) -> dict[str, Any]:
    from ntkmtl.bench.paper._results import recipes_of
    from ntkmtl.bench.paper._settings import summary

    data = {entry["problem"]: describe(entry) for entry in list_data()}
    return {
        "name": result.name,
        "label": result.label,
        "kind": result.kind,
        "number": result.number,
        "title": result.title,
        "problems": [
            {
                "name": part.problem,
                "published": summary(part.problem),
                "recipes": list(recipes_of(part.problem)),
                "data": data[part.problem],
            }
            for part in result.parts
        ],
        "run": _run_line(result),
    }


def _run_line(result: PaperResult) -> str:
    command = "run" if result.kind == "table" else "figure"
    return f"ntkmtl paper {command} {result.name} --recipe {result.recipes[0]}"


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


def named(name: str) -> PaperResult:
    """Return the table or figure of a name, or end the command."""
    from ntkmtl.bench.paper import find_result

    try:
        return find_result(name)
    except KeyError as error:
        refuse(str(error.args[0]))
