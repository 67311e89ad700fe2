"""The command ``ntkmtl analyze``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ntkmtl._commands import (
    BatchSize,
    Csv,
    DataFolder,
    Device,
    Epochs,
    Jobs,
    Json,
    LearningRate,
    MethodSettings,
    Minibatches,
    Overwrite,
    ProblemOption,
    RecipeName,
    SeedList,
    Seeds,
    SplitColumn,
    Targets,
    Types,
    _find_modules_here,
    _method_settings,
    _names,
    _print_columns,
    _print_json,
    _problem_options,
    _refuse,
    _refuse_others,
    _refusing,
    _say,
    _seeds,
    _trained,
    app,
)

if TYPE_CHECKING:
    from ntkmtl.analysis._study import Study

__all__ = ["analyze"]


class Source(str, Enum):
    """With respect to what the recorded kernel is taken."""

    exact = "exact"
    representation = "representation"


_OF_FOLDERS = frozenset({"target", "groups", "output", "as_json"})
"""What means something for a folder of runs as well."""


@app.command()
def analyze(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="PROBLEM|DIR",
            help="A problem to train and record, or a folder of runs made with --record.",
        ),
    ],
    methods: Annotated[
        str, typer.Option("--methods", help="Methods to train, with commas between them.")
    ] = "ls,ntkmtl-sr",
    seeds: Seeds = 1,
    seed_list: SeedList = None,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Record the kernel every N steps.")
    ] = 10,
    source: Annotated[
        Source,
        typer.Option(
            "--source",
            help="The kernel of the shared parameters, at one pass over the trunk per task and "
            "mini-batch, or of the shared features, at next to no cost.",
        ),
    ] = Source.exact,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            min=1,
            help="Number of groups of tasks.",
            show_default="as few as do not conflict on average",
        ),
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs of a problem.", file_okay=False)
    ] = Path("analysis"),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the page; the numbers go beside it as .json.",
            show_default="analysis.html in the folder of the runs",
            dir_okay=False,
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    minibatches: Minibatches = None,
    settings: MethodSettings = None,
    problem_option: ProblemOption = None,
    recipe: RecipeName = None,
    data_dir: DataFolder = None,
    csv: Csv = None,
    targets: Targets = None,
    types: Types = None,
    split_column: SplitColumn = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what the kernel says over training: eigenvalues, balance, who helps whom.

    For a problem, trains it with each method and records; called again, it goes on where it
    stopped. For a folder, reads what was recorded.
    """
    if _is_folder(target):
        _refuse_others(
            context, _OF_FOLDERS, f"is for a problem to train; {target} is a folder of runs"
        )
        chosen: dict[str, Any] = {}
        folder, page = Path(target), Path(target) / "analysis.html"
    else:
        with _refusing():
            from ntkmtl.training.environment import cores
            from ntkmtl.training.runs import folder_name
            from ntkmtl.training.sweep import Comparison, method_names

            _find_modules_here(target)
            comparison = Comparison(
                problem=target,
                methods=_names(methods),
                seeds=_seeds(seeds, seed_list),
                out=out,
                jobs=jobs or cores(),
                problem_options=_problem_options(
                    problem_option, recipe, data_dir, csv, targets, types, split_column
                ),
                method_options=_method_settings(settings or []),
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=lr,
                minibatches=minibatches,
                single_task_baselines=False,
                record={"every": every, "source": source.value},
                device=cast("Any", device),
            )
        sweep = _trained(comparison, overwrite=overwrite)
        folder, page = out / folder_name(sweep.problem), out / "analysis.html"
        chosen = {"methods": method_names(comparison.methods), "seeds": comparison.seeds}
    page = output or page
    with _refusing(ValueError):
        from ntkmtl.analysis._page import write_page
        from ntkmtl.analysis._study import read_study
        from ntkmtl.files import write_json

        study = read_study(folder, **chosen)
        numbers = study.to_json(groups)
        write_page(study, page, groups=groups)
        write_json(page.with_suffix(".json"), numbers)
    if as_json:
        _print_json({"page": str(page), **numbers})
        return
    _print_columns(_lines(study, groups))
    _say(f"Page: {page}")
    _say(f"Numbers: {page.with_suffix('.json')}")


def _is_folder(target: str) -> bool:
    """Return whether a folder is meant: a registered problem's bare name is the problem."""
    from ntkmtl import problems

    if target in problems.names() or ":" in target:
        return False
    if Path(target).is_dir():
        return True
    if os.sep in target or target in (".", ".."):
        _refuse(f"{target} is not a folder; give the one that --out named")
    return False


def _lines(study: Study, groups: int | None) -> list[tuple[str, str]]:
    lines = []
    for record in study.methods:
        before, after = record.imbalance.nanmedian(dim=0).values.tolist()
        lines.append((record.method, f"imbalance {before:.3g}, under its weights {after:.3g}"))
        found = record.grouping(groups)
        if found is not None:
            named = " | ".join(", ".join(group) for group in found.names(study.tasks))
            lines.append(("", f"groups: {named}"))
    return lines
