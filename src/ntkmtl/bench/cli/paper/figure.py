"""``ntkmtl paper figure``: measure what a figure of the paper shows, and draw it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from ntkmtl.bench.cli.console import print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import (
    Json,
    Overwrite,
    grouped,
    names_in,
    option,
    options_in,
    refuse_others,
)
from ntkmtl.bench.cli.outputs import check_output, refuse_loss
from ntkmtl.bench.cli.paper.published import named
from ntkmtl.bench.cli.paper.run import RequestOptions, prepared, read
from ntkmtl.bench.cli.sweeps import trained
from ntkmtl.files import numbers_beside

if TYPE_CHECKING:
    from ntkmtl.bench.paper import PaperResult
    from ntkmtl.bench.paper._figures import Drawn
    from ntkmtl.bench.paper._runs import PreparedRuns


_ALWAYS = frozenset({"figure", "output", "as_json"})
_PROBLEM = frozenset(
    {"recipe", "problem", "methods", "out", "data_dir", "batch_size", "problem_option"}
)
_TRAINED = _PROBLEM | {*("seeds", "seed_list", "stl", "jobs", "epochs", "lr", "overwrite")}
_TIMED = _PROBLEM | {"ns", "steps", "turns", "measured"}
_TAKES = {1: _TIMED, 2: _TRAINED | {"every"}, 3: _TRAINED | {"ns"}, 4: _TIMED}
"""Options that have an effect, by figure."""


@dataclass(frozen=True)
class FigureOptions:
    """What is measured for a figure, and where it is drawn."""

    ns: str | None = option(
        "For figures 1, 3 and 4: numbers of mini-batches n.",
        metavar="1,2,...",
        show_default="1,2,3,4,6; for figure 1 each method's own",
    )
    every: int | None = option(
        "For figure 2: record the kernel every N steps.", min=1, show_default="60 records"
    )
    steps: int = option("For figures 1 and 4: steps of a turn.", default=5, min=1)
    turns: int = option("For figures 1 and 4: turns per method.", default=7, min=1)
    measured: Path | None = option(
        "For figures 1 and 4: draw the times that benchmarks/peers.py wrote.",
        metavar="FILE",
        dir_okay=False,
    )
    output: Path | None = option(
        "Where to write the PNG; the numbers go beside it as .json.",
        "--output",
        "-o",
        show_default="in the folder of --out",
        dir_okay=False,
    )


@grouped
def figure(
    context: typer.Context,
    figure: Annotated[str, Argument(metavar="FIGURE", help="A figure of the paper, as figure3.")],
    *,
    how: RequestOptions,
    overwrite: Overwrite = False,
    shown: FigureOptions,
    as_json: Json = False,
) -> None:
    """Measure what a figure of the paper shows, draw it and write its numbers.

    Called again, it trains nothing twice.
    """
    result = named(figure)
    if result.kind != "figure":
        refuse(f"figure takes a figure; train a table by: ntkmtl paper run {result.name}")
    if shown.measured is not None:
        why = f"is not for {result.name} with --measured"
        refuse_others(context, _ALWAYS | {"measured"}, why)
        _check_place(shown, how)
        drawn = _read_times(result, shown.measured)
        _draw(drawn, shown.output or Path(f"{result.name}-measured.png"), as_json)
        return
    refuse_others(context, _ALWAYS | _TAKES[result.number], f"is not for {result.name}")
    _check_place(shown, how)
    counts = [1, 2, 3, 4, 6] if shown.ns is None else _counts(shown.ns)
    (one,) = prepared(result, how)
    if result.number == 2:
        drawn = _eigenvalues(result, one, shown.every, overwrite)
    elif result.number == 3:
        drawn = _ablation(result, one, counts, overwrite)
    else:
        # In Figure 1 each method has its own n.
        own = result.number == 1 and shown.ns is None
        drawn = _times(result, one, None if own else counts, shown.steps, shown.turns)
    _draw(drawn, shown.output or how.out / f"{result.name}-{one.folder.name}.png", as_json)


def _check_place(shown: FigureOptions, how: RequestOptions) -> None:
    check_output(shown.output, b"\x89png")
    if shown.output is not None:
        read_here = (shown.measured, how.data_dir, *options_in(how.problem_option).values())
        for path in (shown.output, numbers_beside(shown.output)):
            refuse_loss(path, read_here)


def _counts(text: str) -> list[int]:
    try:
        found = [int(number) for number in names_in(text)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        refuse(f"--ns takes whole numbers from 1 with commas between them. Found {text!r}.")
    return list(dict.fromkeys(found))


def _eigenvalues(
    result: PaperResult, prepared: PreparedRuns, every: int | None, overwrite: bool
) -> Drawn:
    if len(prepared.methods) != 1:
        refuse(f"figure2 shows the training of one method. Found {', '.join(prepared.methods)}.")
    # Recorded runs go into a separate folder: their settings differ from those of other runs.
    prepared = prepared.variant("recorded", stl="none")
    comparison = prepared.comparison()
    with refusing(ValueError):
        from dataclasses import replace

        from ntkmtl.bench.training.comparison import recipe_of
        from ntkmtl.bench.training.spec import steps_per_epoch

        recipe = recipe_of(comparison, prepared.problem)
        total = recipe.epochs * steps_per_epoch(prepared.problem, recipe)
        record = {"every": every or max(1, total // 60), "source": "exact"}
        comparison = replace(comparison, record=record)
    trained(comparison, overwrite=overwrite)
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import eigenvalues
        from ntkmtl.bench.report._analysis import read_study
        from ntkmtl.bench.runs import folder_name

        study = read_study(
            prepared.folder / folder_name(prepared.problem.name),
            methods=prepared.methods[:1],
            seeds=list(prepared.request.seeds),
        )
        return eigenvalues(result, study, read(prepared))


def _ablation(result: PaperResult, prepared: PreparedRuns, ns: list[int], overwrite: bool) -> Drawn:
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
        found[n] = read(one)
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import ablation

        return ablation(result, found)


def _times(
    result: PaperResult, prepared: PreparedRuns, ns: list[int] | None, steps: int, turns: int
) -> Drawn:
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import times
        from ntkmtl.bench.paper._timing import measure

        found, facts = measure(prepared, ns, steps=steps, turns=turns, progress=say)
        return times(result, found, facts, prepared.part.problem)


def _read_times(result: PaperResult, file: Path) -> Drawn:
    with refusing(ValueError):
        from ntkmtl.bench.paper._figures import times
        from ntkmtl.bench.paper._timing import read_measured

        network = result.parts[0].problem
        found, facts = read_measured(file, network)
        return times(result, found, facts, network)


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
