"""What the subcommands of ``ntkmtl paper`` share: options, and finding what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ntkmtl.bench.cli.console import refuse, refusing
from ntkmtl.bench.cli.options import (
    BatchSize,
    Epochs,
    Jobs,
    LearningRate,
    ProblemOption,
    SeedList,
    Seeds,
)
from ntkmtl.bench.cli.values import (
    check_folder,
    find_modules_here,
    names_in,
    options_in,
    seeds_of,
)

if TYPE_CHECKING:
    from ntkmtl.bench.paper import PaperResult
    from ntkmtl.bench.paper._runs import Measured, PreparedRuns, Request

__all__ = ["Baselines", "RequestOptions", "named", "prepared", "read"]


class Baselines(str, Enum):
    """Where the STL row of Delta-m is from."""

    trained = "trained"
    published = "published"
    none = "none"


@dataclass(frozen=True)
class RequestOptions:
    """How to train what is behind a table or figure."""

    recipe: Annotated[
        str | None,
        Option("--recipe", metavar="NAME", help="small (reduced, for a CPU) or paper (for a GPU)."),
    ] = None
    problem: Annotated[
        str | None,
        Option(
            "--problem",
            metavar="NAME",
            help="One of its problems only, or another problem in its place, as qm9-mini.",
        ),
    ] = None
    methods: Annotated[
        str | None,
        Option(
            "--methods",
            help="Names with commas between them, or all: those of the published table.",
            show_default="ls,ntkmtl,ntkmtl-sr",
        ),
    ] = None
    seeds: Seeds = 3
    seed_list: SeedList = None
    stl: Annotated[
        Baselines,
        Option(
            "--stl", help="The baselines of Delta-m: trained here, the paper's STL row, or none."
        ),
    ] = Baselines.trained
    jobs: Jobs = None
    out: Annotated[
        Path,
        Option(
            "--out",
            help="Folder of the comparisons, one folder per problem and recipe.",
            file_okay=False,
            callback=check_folder,
        ),
    ] = Path("paper-runs")
    data_dir: Annotated[
        str | None,
        Option(
            "--data",
            metavar="DIR",
            help="Prepared data; where a table has two problems, the folder that holds one folder "
            "for each.",
        ),
    ] = None
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
            problem_options=options_in(self.problem_option or []),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.lr,
        )


def named(name: str) -> PaperResult:
    """Return the table or figure of a name, or end the command."""
    from ntkmtl.bench.paper import find_result

    try:
        return find_result(name)
    except KeyError as error:
        refuse(str(error.args[0]))


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
