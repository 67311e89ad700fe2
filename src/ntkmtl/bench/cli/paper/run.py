"""``ntkmtl paper run``: train what is behind a table, and print published beside measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ntkmtl.bench.cli.console import FAILED, refuse, refusing, write_result
from ntkmtl.bench.cli.options import (
    BatchSize,
    Epochs,
    Jobs,
    Json,
    LearningRate,
    Overwrite,
    ProblemOption,
    SeedList,
    Seeds,
    check_folder,
    find_modules_here,
    grouped,
    names_in,
    option,
    options_in,
    refuse_others,
    seeds_of,
)
from ntkmtl.bench.cli.paper.published import named
from ntkmtl.bench.cli.sweeps import train_registered, trained

if TYPE_CHECKING:
    from ntkmtl.bench.paper import PaperResult
    from ntkmtl.bench.paper._runs import Measured, PreparedRuns, Request


class Baselines(str, Enum):
    """Where the STL row of Delta-m is from."""

    trained = "trained"
    published = "published"
    none = "none"


@dataclass(frozen=True)
class RequestOptions:
    """How to train what is behind a table or figure."""

    recipe: str | None = option("small (reduced, for a CPU) or paper (for a GPU).", metavar="NAME")
    problem: str | None = option(
        "One of its problems only, or another problem in its place, as qm9-mini.", metavar="NAME"
    )
    methods: str | None = option(
        "Names with commas between them, or all: those of the published table.",
        show_default="ls,ntkmtl,ntkmtl-sr",
    )
    seeds: Seeds = 3
    seed_list: SeedList = None
    stl: Baselines = option(
        "The baselines of Delta-m: trained here, the paper's STL row, or none.",
        default=Baselines.trained,
    )
    jobs: Jobs = None
    out: Path = option(
        "Folder of the comparisons, one folder per problem and recipe.",
        default=Path("paper-runs"),
        file_okay=False,
        callback=check_folder,
    )
    data_dir: str | None = option(
        "Prepared data; where a table has two problems, the folder that holds one folder for each.",
        "--data",
        metavar="DIR",
    )
    epochs: Epochs = None
    batch_size: BatchSize = None
    lr: LearningRate = None
    problem_option: ProblemOption = None

    @property
    def names(self) -> list[str] | None:
        """The methods asked for, None for the usual ones."""
        return None if self.methods is None else names_in(self.methods)

    def request(self) -> Request:
        """Return the request, its names checked."""
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.paper._runs import Request
        from ntkmtl.bench.training import method_names

        if self.recipe is None and self.problem is None:
            refuse("say what to train: --recipe small, --recipe paper or --problem NAME")
        if self.problem is not None:
            find_modules_here(self.problem)
        if self.names is not None:
            method_names(self.names)  # refuses unknown ones
        return Request(
            recipe=self.recipe,
            problem=self.problem,
            methods=self.names,
            seeds=seeds_of(self.seeds, self.seed_list),
            out=self.out,
            jobs=self.jobs or cores(),
            data=self.data_dir,
            stl=self.stl.value,
            problem_options=options_in(self.problem_option),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.lr,
        )


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


def prepared(result: PaperResult, options: RequestOptions) -> list[PreparedRuns]:
    """Find the problems behind a table or figure, or end the command."""
    with refusing(ValueError):
        from ntkmtl.bench.paper._runs import prepare

        return prepare(result, options.request())


def read(one: PreparedRuns) -> Measured:
    """Read the comparison of a problem, or end the command."""
    with refusing(ValueError):
        from ntkmtl.bench.paper._runs import measured

        return measured(one)
