"""The command ``ntkmtl paper``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ntkmtl.bench.cli.console import (
    FAILED,
    print_columns,
    print_grid,
    print_json,
    refuse,
    refusing,
    say,
)
from ntkmtl.bench.cli.options import (
    BatchSize,
    Epochs,
    Jobs,
    Json,
    LearningRate,
    Overwrite,
    ProblemOption,
    SeedList,
    find_modules_here,
    names_in,
    options_in,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ntkmtl.bench.paper._exhibits import Exhibit
    from ntkmtl.bench.paper._figures import Drawn
    from ntkmtl.bench.paper._runs import Measured, Prepared

__all__ = ["paper"]


class Baselines(str, Enum):
    """Where the STL row of Delta-m is from."""

    trained = "trained"
    published = "published"
    none = "none"


class Layout(str, Enum):
    """What published and measured numbers can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"


_OF_A_RUN = "Of a run: "


def paper(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]", help="A table or figure of the paper: table3 (or 3), figure3."
        ),
    ] = None,
    recomputed: Annotated[
        bool,
        typer.Option("--recomputed", help="Add what the printed metrics give for MR and Delta-m."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say which published columns do not follow.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Run what is behind it: small (reduced, for a CPU) or paper (for a GPU).",
        ),
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(
            "--problem",
            metavar="NAME",
            help="Run one of its problems only, or another problem in its place, as qm9-mini.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Names with commas between them, or all: those of the published table.",
            show_default="ls,ntkmtl,ntkmtl-sr",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Use seeds 0 to N - 1.", show_default="3"),
    ] = None,
    seed_list: SeedList = None,
    stl: Annotated[
        Baselines | None,
        typer.Option(
            "--stl",
            help="The baselines of Delta-m: trained here, the paper's STL row, or none.",
            show_default="trained",
        ),
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the comparisons, one folder per problem and recipe.",
            show_default="paper-runs",
            file_okay=False,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Prepared data; where a table has two problems, the folder that holds one folder "
            "for each.",
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    problem_option: ProblemOption = None,
    overwrite: Overwrite = False,
    ns: Annotated[
        str | None,
        typer.Option(
            "--ns",
            metavar="1,2,...",
            help="For figures 1, 3 and 4: numbers of mini-batches n.",
            show_default="1,2,3,4,6; for figure 1 each method's own",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            min=1,
            help="For figure 2: record the kernel every N steps.",
            show_default="60 records",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, help="For figures 1 and 4: steps of a turn.", show_default="5"
        ),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            "--turns", min=1, help="For figures 1 and 4: turns per method.", show_default="7"
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help="For figures 1 and 4: draw the times that benchmarks/peers.py wrote.",
            dir_okay=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="For figures: where to write the PNG; the numbers go beside it as .json.",
            show_default="in the folder of --out",
            dir_okay=False,
        ),
    ] = None,
    format: Annotated[
        Layout | None,
        typer.Option("--format", help="How to print published and measured.", show_default="text"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a table of the paper, or train what is behind a table or figure and compare.

    Without WHAT: lists what there is. With --recipe or --problem: trains, and prints published and
    measured numbers side by side. Called again, it trains nothing twice.
    """
    given = {
        "--methods": methods,
        "--seeds": seeds,
        "--seed-list": seed_list,
        "--stl": stl,
        "--jobs": jobs,
        "--out": out,
        "--data": data_dir,
        "--epochs": epochs,
        "--batch-size": batch_size,
        "--lr": lr,
        "--problem-option": problem_option or None,
        "--overwrite": overwrite or None,
        "--ns": ns,
        "--every": every,
        "--steps": steps,
        "--turns": turns,
        "--output": output,
        "--format": format,
    }
    if check or what is None:
        of_a_run = {**given, "--recipe": recipe, "--problem": problem, "--measured": measured}
        for option, value in of_a_run.items():
            if value is not None:
                refuse(
                    f"{option} is for a run, and --check looks at what is published"
                    if check
                    else f"{option} is for a run: say of which table or figure, as table3"
                )
    if check:
        _check(None if what is None else _exhibit(what), as_json)
        return
    if what is None:
        _list(as_json)
        return
    exhibit = _exhibit(what)
    if output is not None:
        with refusing(ValueError):
            from ntkmtl.files import numbers_beside

            numbers_beside(output)
    _refuse_strangers(exhibit, {**given, "--measured": measured, "--recomputed": recomputed})
    if measured is not None:
        for option, value in {**given, "--recipe": recipe, "--problem": problem}.items():
            if value is not None and option != "--output":
                refuse(f"{option} is for a run; --measured draws what a file holds")
        _draw_measured(exhibit, measured, output, as_json)
        return
    if recipe is None and problem is None:
        strange = [option for option, value in given.items() if value is not None]
        if strange:
            refuse(
                f"{strange[0]} is for a run: add --recipe small, --recipe paper or --problem NAME"
                if exhibit.name != "table4"
                else f"{strange[0]} is for a run: add --recipe cpu-mt4, cpu-mt10 or paper"
            )
        _show_published(exhibit, recomputed, as_json)
        return
    if recomputed:
        refuse("--recomputed is for the published table alone: leave --recipe and --problem out")
    layout = "json" if as_json else (format or Layout.text).value
    if exhibit.name == "table4":
        known = (
            "--methods",
            "--seeds",
            "--seed-list",
            "--jobs",
            "--out",
            "--overwrite",
            "--format",
        )
        for option, value in {**given, "--problem": problem}.items():
            if value is not None and option not in known:
                refuse(f"{option} is not for table4, which is trained as its recipe says")
        _run_table4(
            recipe or "",
            exhibit.methods if methods is None else names_in(methods),
            seeds_of(seeds or 3, seed_list),
            out or Path("paper-runs"),
            jobs,
            overwrite,
            layout,
        )
        return
    with refusing(ValueError):
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.paper._runs import Request, prepare

        if problem is not None:
            find_modules_here(problem)
        request = Request(
            recipe=recipe,
            problem=problem,
            methods=None if methods is None else names_in(methods),
            seeds=seeds_of(seeds or 3, seed_list),
            out=out or Path("paper-runs"),
            jobs=jobs or cores(),
            data=data_dir,
            stl=(stl or Baselines.trained).value,
            problem_options=options_in(problem_option or []),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
        )
        prepared = prepare(exhibit, request)
    if exhibit.kind == "table":
        _run_table(exhibit, prepared, overwrite, layout)
        return
    wanted = None if ns is None else _counts(ns)
    if exhibit.number == 2:
        drawn = _figure2(exhibit, prepared[0], every, overwrite)
    elif exhibit.number == 3:
        drawn = _figure3(exhibit, prepared[0], wanted or [1, 2, 3, 4, 6], overwrite)
    else:
        if wanted is None and exhibit.number == 4:
            wanted = [1, 2, 3, 4, 6]
        drawn = _time(exhibit, prepared[0], wanted, steps or 5, turns or 7)
    name = prepared[0].folder.name
    _draw(drawn, output or Path(request.out) / f"{exhibit.name}-{name}.png", as_json)


def _exhibit(name: str) -> Exhibit:
    from ntkmtl.bench.paper import exhibit

    try:
        return exhibit(name)
    except KeyError as error:
        refuse(str(error.args[0]))


_FOR = {
    "--ns": ("figure1", "figure3", "figure4"),
    "--every": ("figure2",),
    "--steps": ("figure1", "figure4"),
    "--turns": ("figure1", "figure4"),
    "--measured": ("figure1", "figure4"),
    "--output": ("figure1", "figure2", "figure3", "figure4"),
}


_TRAINED = ("--seeds", "--seed-list", "--stl", "--jobs", "--epochs", "--lr", "--overwrite")
"""What says nothing where steps are timed and networks thrown away."""


def _refuse_strangers(exhibit: Exhibit, given: dict[str, Any]) -> None:
    """Refuse options that say nothing for this table or figure."""
    for option, names in _FOR.items():
        if given.get(option) is not None and exhibit.name not in names:
            refuse(f"{option} is for {', '.join(names)}, not for {exhibit.name}")
    if exhibit.kind == "figure":
        for option in ("--format", "--recomputed"):
            if given.get(option):
                refuse(f"{option} is for tables, not for {exhibit.name}; --json prints numbers")
    if exhibit.name in _FOR["--steps"]:
        for option in _TRAINED:
            if given.get(option) is not None:
                refuse(f"{option} is for what trains; {exhibit.name} times a few steps")


def _counts(text: str) -> list[int]:
    try:
        found = [int(number) for number in names_in(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        refuse(f"--ns takes whole numbers from 1 with commas between them. Found {text!r}.")
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------
# What is published


def _check(exhibit: Exhibit | None, as_json: bool) -> None:
    from ntkmtl.bench import paper as tables

    if exhibit is not None and exhibit.kind != "table":
        refuse(f"--check is for tables, not for {exhibit.name}")
    if not as_json:
        print(tables.report(None if exhibit is None else exhibit.number))
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
            for found in tables.discrepancies(None if exhibit is None else exhibit.number)
        ]
    )


def _list(as_json: bool) -> None:
    from ntkmtl.bench.paper import exhibits

    with refusing():
        entries = [_entry(one) for one in exhibits()]
    if as_json:
        print_json(entries)
        return
    lines: list[tuple[str, str]] = []
    problems: dict[str, dict[str, Any]] = {}
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
        "\nPrint one: ntkmtl paper table3. Run one: ntkmtl paper table3 --recipe small, reduced "
        "for a CPU,\nor --recipe paper. Without the data: --problem qm9-mini stands in for qm9."
    )


_MT10 = {
    "name": "mt10",
    "published": "2,000,000 vector steps, 10 seeds, Meta-World V1",
    "recipes": ["paper", "cpu-mt10", "cpu-mt4"],
    "data": "simulated: pip install 'ntkmtl[rl]'; today's V3 tasks are not comparable",
}


def _entry(exhibit: Exhibit) -> dict[str, Any]:
    from ntkmtl.bench.cli.data import describe, list_data
    from ntkmtl.bench.paper._exhibits import RECIPES
    from ntkmtl.bench.paper._settings import summary

    data = {entry["problem"]: describe(entry) for entry in list_data()}
    reinforced = exhibit.name == "table4"
    return {
        "name": exhibit.name,
        "label": exhibit.label,
        "kind": exhibit.kind,
        "number": exhibit.number,
        "title": exhibit.title,
        "problems": [
            {
                "name": part.problem,
                "published": summary(part.problem),
                "recipes": list(RECIPES),
                "data": data[part.problem],
            }
            for part in exhibit.parts
        ]
        or [_MT10],
        "run": f"ntkmtl paper {exhibit.name} --recipe {'cpu-mt4' if reinforced else 'small'}",
    }


def _show_published(exhibit: Exhibit, recomputed: bool, as_json: bool) -> None:
    from ntkmtl.bench import paper as tables

    if exhibit.kind == "figure":
        if as_json:
            print_json({**_entry(exhibit), "said": exhibit.said})
            return
        print(f"{exhibit.label}: {exhibit.title}")
        print(exhibit.said)
        print(f"The paper prints no numbers. Run it: ntkmtl paper {exhibit.name} --recipe small")
        return
    found = tables.table(exhibit.number)
    heads, rows = tables.render(exhibit.number, recomputed=recomputed)
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


# ------------------------------------------------------------------------------------------------
# Runs


def _read(prepared: Prepared) -> Measured:
    with refusing(ValueError):
        from ntkmtl.bench.paper._runs import measured

        return measured(prepared)


def _run_table(exhibit: Exhibit, prepared: list[Prepared], overwrite: bool, format: str) -> None:
    for one in prepared:
        trained(one.comparison(), overwrite=overwrite)
    found = [_read(one) for one in prepared]
    with refusing(ValueError):
        from ntkmtl.bench.paper._sidebyside import render, side_by_side

        both = side_by_side(exhibit, found)
        sys.stdout.write(render(both, format))


def _run_table4(
    recipe: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    jobs: int | None,
    overwrite: bool,
    format: str,
) -> None:
    """Train rows of Table 4 by reinforcement learning."""
    from ntkmtl.bench.cli.reinforce import train_only
    from ntkmtl.bench.compute.environment import cores

    folder = out / f"mt10-{recipe}"
    with refusing(ValueError):
        from ntkmtl.bench import reinforce as rl
        from ntkmtl.bench.paper import exhibit

        chosen = rl.recipe_named(recipe)
        every = ("stl", *exhibit("table4").all_methods)
        rows = [row for name in methods for row in (every if name == "all" else (name,))]
    failed = train_only(recipe, rows, seeds, folder, jobs=jobs or cores(), overwrite=overwrite)
    with refusing(ValueError):
        from ntkmtl.bench.paper._reinforce import success_side_by_side
        from ntkmtl.bench.paper._sidebyside import render
        from ntkmtl.bench.runs import load_runs

        asked = {rl.row_named(row).name for row in rows}
        found = [one for one in rl.summarise(folder) if one.row in asked]
        runs = [run for run in load_runs(folder)[0] if run.config.method in asked]
        sys.stdout.write(render(success_side_by_side(found, chosen, runs, folder), format))
    if failed:
        raise typer.Exit(FAILED)


def _figure2(exhibit: Exhibit, prepared: Prepared, every: int | None, overwrite: bool) -> Drawn:
    if len(prepared.methods) != 1:
        refuse(f"figure2 shows the training of one method. Found {', '.join(prepared.methods)}.")
    # Runs without a record are other runs: these have a folder of their own.
    prepared = prepared.variant("recorded", stl="none")
    comparison = prepared.comparison()
    with refusing(ValueError):
        from dataclasses import replace

        from ntkmtl.bench.training.identity import steps_per_epoch
        from ntkmtl.bench.training.sweep import changed_recipe

        recipe = changed_recipe(
            prepared.problem.recipe,
            epochs=comparison.epochs,
            batch_size=comparison.batch_size,
            learning_rate=comparison.learning_rate,
        )
        total = recipe.epochs * steps_per_epoch(prepared.problem, recipe)
        record = {"every": every or max(1, total // 60), "source": "exact"}
        comparison = replace(comparison, record=record)
    trained(comparison, overwrite=overwrite)
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import eigenvalues
        from ntkmtl.bench.report._study import read_study
        from ntkmtl.bench.runs import folder_name

        study = read_study(
            prepared.folder / folder_name(prepared.problem.name),
            methods=prepared.methods[:1],
            seeds=list(prepared.request.seeds),
        )
        return eigenvalues(exhibit, study, _read(prepared))


def _figure3(exhibit: Exhibit, prepared: Prepared, ns: list[int], overwrite: bool) -> Drawn:
    if len(prepared.methods) != 1:
        refuse(f"figure3 varies n of one method. Found {', '.join(prepared.methods)}.")
    if prepared.request.stl == "none":
        refuse("figure3 shows Delta-m, which needs baselines: --stl trained or published")
    method = prepared.methods[0]
    most = prepared.request.batch_size or prepared.problem.recipe.batch_size
    if max(ns) > most:
        refuse(f"--ns must be at most the batch size, {most}. Found {max(ns)}.")
    from ntkmtl.weighting import spec

    has_n = "minibatches" in spec(method).defaults
    found = {}
    for n in ns:
        # The method's own n is what the tables train: 1, or the recipe's where it has an n at all.
        own = n == (prepared.problem.recipe.minibatches if has_n else 1)
        one = prepared if own else prepared.variant(f"n{n}")
        say(f"n = {n}: {one.folder}")
        options = {} if own else {method: {"minibatches": n}}
        trained(one.comparison(options), overwrite=overwrite)
        found[n] = _read(one)
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import ablation

        return ablation(exhibit, found)


def _time(
    exhibit: Exhibit, prepared: Prepared, ns: list[int] | None, steps: int, turns: int
) -> Drawn:
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import times
        from ntkmtl.bench.paper._timing import measure

        found, facts = measure(prepared, ns, steps=steps, turns=turns, progress=say)
        return times(exhibit, found, facts, prepared.part.problem)


def _draw_measured(exhibit: Exhibit, file: Path, output: Path | None, as_json: bool) -> None:
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import times
        from ntkmtl.bench.paper._timing import read_measured

        network = exhibit.parts[0].problem
        found, facts = read_measured(file, network)
        drawn = times(exhibit, found, facts, network)
    _draw(drawn, output or Path(f"{exhibit.name}-measured.png"), as_json)


def _draw(drawn: Drawn, path: Path, as_json: bool) -> None:
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import draw, text_of

        picture, numbers = draw(drawn, path)
    if as_json:
        print_json({"figure": str(picture), "numbers": str(numbers), **drawn.to_json()})
        return
    sys.stdout.write(text_of(drawn))
    say(f"Figure: {picture}")
    say(f"Numbers: {numbers}")
