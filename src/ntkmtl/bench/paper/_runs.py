"""Training what is behind a table or figure, and reading the outcome."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ntkmtl.bench import problems
from ntkmtl.bench.paper._tables import table
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.report._build import table_of
from ntkmtl.bench.report._runs import ProblemRuns, load
from ntkmtl.bench.report._table import SeedMean
from ntkmtl.bench.runs import SINGLE_TASK, Run, folder_name
from ntkmtl.bench.training import Comparison, method_names
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from ntkmtl.bench.paper._results import PaperResult, ResultPart
    from ntkmtl.bench.problems.base import Problem
    from ntkmtl.bench.report import MethodRow, ResultTable

Baseline = Literal["trained", "published", "none"]
"""Where the STL row of Δm% is from."""


class RequestError(ValueError):
    """What is behind a table or figure cannot be run as asked for; nothing was trained."""


@dataclass(frozen=True)
class Request:
    """How to run what is behind a table or figure.

    Attributes:
        recipe: Name of the problems' recipe, None for the problem's own.
        problem: One of the result's problems to run that alone, or another problem to stand in
            for it; None for all of the result's.
        methods: Names; ``"all"`` stands for those of the published table. None for the usual.
        seeds: Seeds.
        out: Folder of the comparisons, one subfolder each.
        jobs: Runs at a time.
        data: Folder of the prepared data, or of one folder per problem where there are several.
        stl: Where the STL row of Δm% is from.
        problem_options: Options given to the problem.
        epochs: Instead of the recipe's.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's.
    """

    recipe: str | None = None
    problem: str | None = None
    methods: Sequence[str] | None = None
    seeds: Sequence[int] = (0, 1, 2)
    out: str | os.PathLike[str] = "paper-runs"
    jobs: int = 1
    data: str | None = None
    stl: Baseline = "trained"
    problem_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class PreparedRuns:
    """One problem that is ready to be trained.

    Attributes:
        part: The part of the result that it measures.
        source: Its name as asked for.
        problem: The problem.
        options: Options that it was created with.
        folder: Folder of its comparison.
        methods: Methods to train, without the baselines.
        request: How.
    """

    part: ResultPart
    source: str
    problem: Problem
    options: Mapping[str, Any]
    folder: Path
    methods: tuple[str, ...]
    request: Request

    def variant(self, name: str, **changes: Any) -> PreparedRuns:
        """Return the same with a changed request, and a folder that ends in the name."""
        return replace(
            self,
            folder=self.folder.with_name(f"{self.folder.name}-{name}"),
            request=replace(self.request, **changes),
        )

    def comparison(
        self, method_options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Comparison:
        """Return what :func:`ntkmtl.bench.training.compare` is asked for."""
        asked = self.request
        return Comparison(
            problem=self.source,
            methods=self.methods,
            seeds=list(asked.seeds),
            out=self.folder,
            jobs=asked.jobs,
            problem_options=self.options,
            method_options=method_options or {},
            epochs=asked.epochs,
            batch_size=asked.batch_size,
            learning_rate=asked.learning_rate,
            single_task_baselines=asked.stl == "trained",
        )


def prepare(result: PaperResult, request: Request) -> list[PreparedRuns]:
    """Find the problems behind a table or figure; missing data are reported before training.

    Raises:
        RequestError: It cannot be run as asked for.
        ProblemNotFoundError: There is no such problem, or it refuses its options.
        DataMissingError: Data have not been prepared.
        SweepError: A method is unknown.
    """
    if not result.supervised:
        raise RequestError(
            f"{result.label} is of reinforcement learning, which has its own recipes: "
            f"`ntkmtl paper run {result.name} --recipe {result.recipes[0]}`"
        )
    chosen = _chosen(result, request)
    asked = result.methods if request.methods is None else request.methods
    names = [n for name in asked for n in (result.all_methods if name == "all" else [name])]
    methods = tuple(name for name in method_names(names) if name != SINGLE_TASK)
    if not methods:
        raise RequestError(
            "at least one multi-task method is needed. The baselines alone are trained by "
            f"`ntkmtl compare PROBLEM --methods {SINGLE_TASK}`"
        )
    found = []
    for part, source in chosen:
        options = dict(request.problem_options)
        _check_stand_in(part, source, request)
        if request.recipe is not None:
            options["recipe"] = request.recipe
        if request.data is not None:
            several = len(chosen) > 1
            options["data"] = str(Path(request.data, source)) if several else request.data
        try:
            problem = find_problem(source, options)
        except FileNotFoundError as error:
            others = [part.problem for part, _ in chosen if part.problem != source]
            if not others:
                raise
            raise RequestError(
                f"{error} To run the rest of {result.label} alone: --problem {others[0]}"
            ) from error
        _check_baseline(result, part, problem, request)
        name = folder_name(problem.name)
        if request.recipe is not None:
            name = f"{name}-{request.recipe}"
        found.append(
            PreparedRuns(part, source, problem, options, Path(request.out) / name, methods, request)
        )
    return found


def _chosen(result: PaperResult, request: Request) -> list[tuple[ResultPart, str]]:
    """Return the parts to run, each with the name of its problem."""
    wanted = request.problem
    if wanted is None:
        return [(part, part.problem) for part in result.parts]
    own = [part for part in result.parts if part.problem == wanted]
    if own:
        return [(own[0], wanted)]
    if len(result.parts) > 1:
        names = " and ".join(part.problem for part in result.parts)
        raise RequestError(
            f"{result.label} shows {names}: --problem chooses one of them. Found {wanted!r}, "
            "which can stand in for the problem of a table that shows one only"
        )
    return [(result.parts[0], wanted)]


def _check_stand_in(part: ResultPart, source: str, request: Request) -> None:
    """Refuse options that only the paper's own problem can have."""
    if source == part.problem:
        return
    if request.stl == "published":
        raise RequestError(
            f"--stl published needs the paper's problem, {part.problem}, found {source}, whose "
            "metrics are of other data: leave --stl out, and its baselines are trained"
        )
    if request.recipe is not None and not getattr(problems.load_target(source), "recipes", None):
        raise RequestError(
            f"{source} has one recipe only, found --recipe {request.recipe}: leave --recipe out"
        )


def _check_baseline(
    result: PaperResult, part: ResultPart, problem: Problem, request: Request
) -> None:
    if request.stl != "published":
        return
    if not part.baseline:
        raise RequestError(
            f"the paper prints no STL metrics of {part.problem}: leave --stl published out of "
            f"{result.label}, and its baselines are trained"
        )
    printed = {column.name for column in table(part.baseline).metrics}
    unknown = [metric.name for metric in problem.metrics if metric.name not in printed]
    if unknown:
        raise RequestError(
            f"the paper prints no STL for {', '.join(unknown)} of {problem.name}: leave --stl "
            "published out, and the baselines are trained"
        )


@dataclass(frozen=True)
class Measured:
    """What was measured for one problem of a table or figure."""

    prepared: PreparedRuns
    table: ResultTable

    @property
    def part(self) -> ResultPart:
        """The part of the result that it measures."""
        return self.prepared.part

    def rows(self) -> list[MethodRow]:
        """Return the rows of the multi-task methods in the order asked for."""
        there = {row.method: row for row in self.table.rows}
        return [there[name] for name in self.prepared.methods if name in there]


def measured(prepared: PreparedRuns) -> Measured:
    """Read the comparison of a problem, as far as it was asked for.

    Raises:
        FileNotFoundError: It was not trained.
        ValueError: No run is complete, or a file is damaged.
    """
    asked = prepared.request
    seeds = set(asked.seeds)
    everything = load(prepared.folder)[prepared.problem.name]

    def asked_for(groups: Mapping[str, Mapping[int, Run]]) -> dict[str, dict[int, Run]]:
        found = {
            name: {seed: run for seed, run in group.items() if seed in seeds}
            for name, group in groups.items()
        }
        return {name: group for name, group in found.items() if group}

    runs = replace(
        everything,
        multi=asked_for({m: g for m, g in everything.multi.items() if m in prepared.methods}),
        single=asked_for(everything.single) if asked.stl == "trained" else {},
        asked=prepared.methods,
    )
    if not runs.multi:
        raise ValueError(
            f"no run of {', '.join(prepared.methods)} in {prepared.folder} is complete"
        )
    found = table_of(runs)
    if asked.stl != "trained":
        # The user chose not to train baselines: drop that warning.
        warnings = tuple(w for w in found.warnings if not w.startswith("There are no STL runs"))
        found = replace(found, warnings=warnings)
    if asked.stl == "published":
        found = _with_published_baseline(prepared, runs, found)
    return Measured(prepared, found)


def _with_published_baseline(
    prepared: PreparedRuns, runs: ProblemRuns, found: ResultTable
) -> ResultTable:
    """Return the table with Δm% against the paper's STL row."""
    reference = table(prepared.part.baseline)
    variant = "reproduced" if prepared.part.baseline == 6 else ""
    row = reference.row(SINGLE_TASK, variant)
    stl = [row.cells[column.name].value for column in found.columns]
    higher = [column.higher_is_better for column in found.columns]
    rows = []
    for each in found.rows:
        tested = [run.result.test for _, run in sorted(runs.multi[each.method].items())]
        values = delta_m(tested, stl, higher).tolist()
        rows.append(replace(each, delta_m=SeedMean.of(values)))
    return replace(
        found,
        rows=tuple(rows),
        notes=(
            "Δm: mean relative change of the metrics in percent, against the STL row that the "
            f"paper prints in Table {prepared.part.baseline}; no baseline was trained here.",
            *found.notes,
        ),
    )
