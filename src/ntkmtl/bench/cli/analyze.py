"""The command ``ntkmtl analyze``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from ntkmtl.bench.cli.console import print_columns, print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import (
    DataOptions,
    Device,
    Jobs,
    Json,
    MethodSettings,
    Out,
    Overwrite,
    RecipeOptions,
    SeedList,
    Seeds,
    find_modules_here,
    grouped,
    method_settings,
    methods_of,
    option,
    refuse_others,
    seeds_of,
)
from ntkmtl.bench.cli.outputs import PAGE_BEGINS, check_output, refuse_loss
from ntkmtl.bench.cli.sweeps import planned, trained
from ntkmtl.files import numbers_beside, write_json

if TYPE_CHECKING:
    from ntkmtl.bench.report._analysis import Study
    from ntkmtl.bench.training import Comparison


class RecordSource(str, Enum):
    """What the kernel is recorded of: the shared parameters, or the shared representation."""

    exact = "exact"
    representation = "representation"


_OF_FOLDERS = frozenset({"target", "groups", "output", "as_json"})
"""Options that apply to a folder of runs as well."""


@dataclass(frozen=True)
class KernelOptions:
    """How the kernel is recorded."""

    every: int = option("Record the kernel every N steps.", default=10, min=1)
    source: RecordSource = option(
        "The kernel of the shared parameters, at one pass over the trunk per task and "
        "mini-batch, or of the shared features, at next to no cost.",
        default=RecordSource.exact,
    )


@dataclass(frozen=True)
class PageOptions:
    """What the page shows and where it goes."""

    groups: int | None = option(
        "Number of groups of tasks.", min=1, show_default="as few as do not conflict on average"
    )
    output: Path | None = option(
        "Where to write the page; the numbers go beside it as .json.",
        "--output",
        "-o",
        show_default="analysis.html in the folder of the runs",
        dir_okay=False,
    )


@grouped
def analyze(
    context: typer.Context,
    target: Annotated[
        str,
        Argument(
            metavar="PROBLEM|DIR",
            help="A problem to train and record, or a folder of runs made with --record.",
        ),
    ],
    *,
    methods: Annotated[
        str | None,
        Option(
            "--methods",
            help="Methods to train, with commas between them.",
            show_default="ls and ntkmtl-sr, or what fits the problem",
        ),
    ] = None,
    seeds: Seeds = 1,
    seed_list: SeedList = None,
    recorded: KernelOptions,
    page: PageOptions,
    jobs: Jobs = None,
    out: Out = Path("analysis"),
    changed: RecipeOptions,
    settings: MethodSettings = None,
    made_with: DataOptions,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what the kernel says over training: eigenvalues, balance, who helps whom.

    For a problem, trains it with each method and records; called again, it continues where it
    stopped. For a folder, reads what was recorded.
    """
    check_output(page.output, PAGE_BEGINS)
    if _is_folder(target):
        why = f"is for a problem to train; {target} is a folder of runs"
        refuse_others(context, _OF_FOLDERS, why)
        place = page.output or Path(target) / "analysis.html"
        _write(Path(target), place, page.groups, as_json)
        return
    place = page.output or out / "analysis.html"
    options, names = made_with.options(), methods_of(target, methods)
    if methods is None:
        names = [names[0], names[-1]]
    for path in (place, numbers_beside(place)):
        refuse_loss(path, options.values())
    find_modules_here(target, *names)
    with refusing():
        from ntkmtl.bench.compute.environment import cores
        from ntkmtl.bench.runs import folder_name
        from ntkmtl.bench.training import method_names

        comparison = planned(
            target,
            names,
            problem_options=options,
            **changed.changes(),
            seeds=seeds_of(seeds, seed_list),
            out=out,
            jobs=jobs or cores(),
            method_options=method_settings(settings),
            single_task_baselines=False,
            record={"every": recorded.every, "source": recorded.source.value},
            device=device,
        )
        _check_groups(comparison, page.groups)
    sweep = trained(comparison, overwrite=overwrite)
    chosen = {"methods": method_names(comparison.methods), "seeds": comparison.seeds}
    _write(out / folder_name(sweep.problem), place, page.groups, as_json, **chosen)


def _check_groups(comparison: Comparison, groups: int | None) -> None:
    """Refuse more groups than tasks before anything is trained."""
    if groups is not None:
        from ntkmtl.bench.problems import find_problem

        tasks = find_problem(comparison.problem, comparison.problem_options).tasks
        if groups > len(tasks):
            refuse(f"--groups must be at most the number of tasks, {len(tasks)}, found {groups}")


def _write(folder: Path, page: Path, groups: int | None, as_json: bool, **chosen: Any) -> None:
    """Read what was recorded, write the page and its numbers, and print a summary."""
    with refusing(ValueError):
        from ntkmtl.bench.report._analysis import read_study, write_page

        study = read_study(folder, **chosen)
        numbers = study.to_json(groups)
        beside = numbers_beside(page)
        for config in study.configs:
            for path in (page, beside):
                refuse_loss(path, (config.created_with or {}).values())
        write_page(study, page, groups=groups)
        write_json(beside, numbers)
    if as_json:
        print_json({"page": str(page), **numbers})
        return
    print_columns(_lines(study, groups))
    say(f"Page: {page}")
    say(f"Numbers: {beside}")


def _is_folder(target: str) -> bool:
    """Return whether a folder is meant: a registered problem's bare name is the problem."""
    from ntkmtl.bench import problems

    if target in problems.names() or ":" in target:
        return False
    if Path(target).is_dir():
        return True
    if os.sep in target or target in (".", ".."):
        refuse(f"{target} is not a folder; give the one that --out named")
    return False


def _lines(study: Study, groups: int | None) -> list[tuple[str, str]]:
    lines = []
    for record in study.methods:
        before, after = record.imbalance.nanquantile(0.5, dim=0).tolist()
        lines.append((record.label, f"imbalance {before:.3g}, under its weights {after:.3g}"))
        found = record.grouping(groups)
        if found is not None:
            named = " | ".join(", ".join(group) for group in found.names(study.tasks))
            lines.append(("", f"groups: {named}"))
    return lines
