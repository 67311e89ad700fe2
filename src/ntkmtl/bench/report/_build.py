"""The table of a comparison: means, standard errors, MR, Delta-m, times, facts and warnings."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ntkmtl.bench.report._runs import ProblemRuns, load
from ntkmtl.bench.report._table import (
    LEAST_CPU_SHARE,
    SPLITS,
    MethodRow,
    MetricColumn,
    ResultTable,
    SeedMean,
    entry_of,
    notes_of,
)
from ntkmtl.bench.report._words import listing
from ntkmtl.bench.runs import SINGLE_TASK, Run, RunFileError, method_labels
from ntkmtl.bench.runs.run import read_references
from ntkmtl.bench.search.records import Tuning, read_tuning, tuning_of


def build_tables(runs_dir: str | os.PathLike[str]) -> dict[str, ResultTable]:
    """Build the table of each problem in a comparison's folder.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``.

    Returns:
        The tables by name of the problem, in alphabetical order.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No run in it is complete, a file cannot be read, or the runs of a problem do not
            report the same metrics.
    """
    return {problem: table_of(runs) for problem, runs in load(runs_dir).items()}


def build_table(runs_dir: str | os.PathLike[str], problem: str | None = None) -> ResultTable:
    """Build the table of one problem.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``.
        problem: Name of the problem; may be left out where the folder holds only one.

    Returns:
        The table: STL first, then the methods in the order last asked for, then others by name.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No run in it is complete, a file cannot be read, the runs do not report the same
            metrics, or ``problem`` is not in the folder or is needed to choose.
    """
    found = load(runs_dir)
    if problem is None:
        if len(found) > 1:
            raise ValueError(
                f"{os.fspath(runs_dir)} holds {len(found)} problems ({', '.join(found)}); "
                "name one of them (problem=, or --problem), or make the report, which shows all"
            )
        problem = next(iter(found))
    elif problem not in found:
        here = [
            name
            for name, runs in found.items()
            if runs.done[0].config.problem == problem
            and runs.done[0].path.parents[2] == Path(runs_dir)
        ]
        if len(here) == 1:
            return table_of(found[here[0]])
        raise ValueError(
            f"no finished run of {problem!r} in {os.fspath(runs_dir)}; found {', '.join(found)}"
        )
    return table_of(found[problem])


def table_of(runs: ProblemRuns) -> ResultTable:
    """Build the table of one problem's runs.

    Raises:
        ValueError: The runs do not report the same metrics.
    """
    columns = _columns(runs)
    multi = {method: list(runs.multi[method].values()) for method in runs.methods}
    values = {method: [run.result.test for run in group] for method, group in multi.items()}
    baseline = _baseline(columns, runs.single)
    delta, why_not = _delta_m(columns, values, baseline)
    ranks = _mean_ranks(columns, values)
    times = _times(runs)
    labels = method_labels(multi)

    rows = []
    if runs.single:
        whole = set(runs.single) >= {column.task for column in columns}
        seeds = sorted({seed for group in runs.single.values() for seed in group})
        own = times.get(SINGLE_TASK, {}) if whole else {}
        rows.append(MethodRow(SINGLE_TASK, tuple(seeds), tuple(baseline), **own))
    rows += [
        MethodRow(
            method=method,
            seeds=tuple(run.config.seed for run in group),
            estimates=tuple(SeedMean.of(each) for each in zip(*values[method], strict=True)),
            mean_rank=ranks[method],
            delta_m=delta.get(method),
            options=dict(group[0].config.method_options),
            tuning=tuning_of(group),
            short=labels[method],
            **times.get(method, {}),
        )
        for method, group in multi.items()
    ]
    table = ResultTable(
        problem=runs.problem,
        columns=columns,
        rows=tuple(rows),
        facts=_facts(runs),
        references=_references(runs, len(columns)),
        notes=(),
        warnings=tuple(_warnings(runs, columns, why_not)),
    )
    sources = {method: group[0].config.method_source for method, group in multi.items()}
    known = {method: source for method, source in sources.items() if source}
    return replace(table, notes=tuple(notes_of(table, known)))


def _references(runs: ProblemRuns, metrics: int) -> tuple[MethodRow, ...]:
    """Return the rows of models that are not networks, where they were computed."""
    first = runs.done[0]
    found = read_references(first.path.parents[1], first.config.problem_options, metrics)
    return tuple(
        MethodRow(
            method=each.name,
            seeds=(),
            estimates=tuple(SeedMean(value, None, 1) for value in each.test),
            reference=each.description,
        )
        for each in found
    )


def _columns(runs: ProblemRuns) -> tuple[MetricColumn, ...]:
    """Return the metrics that all multi-task runs report."""
    first = runs.done[0]
    metrics = first.config.metrics
    names = [metric.name for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise RunFileError(
            first.path / "config.json", f"'metrics' must be named, each once, found {names}"
        )
    for group in runs.multi.values():
        for run in group.values():
            if run.config.metrics != metrics:
                found = [metric.name for metric in run.config.metrics]
                raise ValueError(
                    f"{first.path} and {run.path} report different metrics ({names} and {found}), "
                    "so they cannot share a table; move one of them to another folder"
                )
    return tuple(
        MetricColumn(m.name, m.task, m.unit, m.higher_is_better, label=m.label or m.name)
        for m in metrics
    )


def _baseline(
    columns: Sequence[MetricColumn], single: Mapping[str, Mapping[int, Run]], split: str = "test"
) -> list[SeedMean | None]:
    """Return the STL row: for each metric, the runs that were trained on its task alone."""
    estimates: list[SeedMean | None] = []
    for column in columns:
        values = [
            value
            for run in single.get(column.task, {}).values()
            for metric, value in zip(run.config.metrics, getattr(run.result, split), strict=True)
            if metric.name == column.name
        ]
        estimates.append(SeedMean.of(values) if values else None)
    return estimates


def _is_busy(run: Run) -> bool:
    """Return whether the machine was too busy for a run's time to count."""
    share = run.result.cpu_share
    return share is not None and share < LEAST_CPU_SHARE


def _times(runs: ProblemRuns) -> dict[str, dict[str, Any]]:
    """Return the columns of time by method that has them, STL among them.

    Runs that shared their cores with something else do not count. The time of STL is the sum over
    the tasks, of seeds that have all of them.
    """
    seconds = {
        method: [run.result.seconds_per_epoch for run in group.values() if not _is_busy(run)]
        for method, group in runs.multi.items()
    }
    alone: dict[int, list[float]] = defaultdict(list)
    for group in runs.single.values():
        for seed, run in group.items():
            if not _is_busy(run):
                alone[seed].append(run.result.seconds_per_epoch)
    seconds[SINGLE_TASK] = [
        math.fsum(each) for each in alone.values() if len(each) == len(runs.single)
    ]
    plain = statistics.fmean(seconds.get(entry_of(runs.problem).plain) or [0.0])
    return {
        method: {
            "seconds_per_epoch": statistics.fmean(found),
            "relative_time": SeedMean.of([each / plain for each in found]) if plain else None,
        }
        for method, found in seconds.items()
        if found
    }


def _delta_m(
    columns: Sequence[MetricColumn],
    values: Mapping[str, Sequence[Sequence[float]]],
    baseline: Sequence[SeedMean | None],
) -> tuple[dict[str, SeedMean], str]:
    """Return Delta-m by method, over seeds, or a sentence on why there is none."""
    from ntkmtl.metrics import delta_m

    missing = [c.label for c, estimate in zip(columns, baseline, strict=True) if estimate is None]
    if len(missing) == len(columns):
        return {}, "There are no STL runs, so Δm is not known."
    if missing:
        return {}, f"There are no STL runs for {listing(missing)}, so Δm is not known."
    means = [estimate.mean for estimate in baseline if estimate is not None]
    zero = [c.label for c, mean in zip(columns, means, strict=True) if mean == 0]
    if zero:
        return {}, f"STL is exactly 0 in {listing(zero)}, which Δm divides by: Δm is not known."
    below = [c.label for c, mean in zip(columns, means, strict=True) if mean < 0]
    if below:
        return {}, (
            f"STL is negative in {listing(below)}. A relative change of a negative number has the "
            "wrong sign, so Δm is not known; report a metric that is positive."
        )
    higher = [column.higher_is_better for column in columns]
    return {
        method: SeedMean.of(delta_m(seeds, means, higher).tolist())
        for method, seeds in values.items()
    }, ""


def _mean_ranks(
    columns: Sequence[MetricColumn], values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, float]:
    from ntkmtl.metrics import mean_rank

    means = [np.mean(seeds, axis=0).tolist() for seeds in values.values()]
    ranks = mean_rank(means, [column.higher_is_better for column in columns])
    return dict(zip(values, ranks.tolist(), strict=True))


def _facts(runs: ProblemRuns) -> dict[str, Any]:
    """Return what was run, see :attr:`ResultTable.facts`."""
    multi = [run for group in runs.multi.values() for run in group.values()]
    done = runs.done
    config = done[0].config
    return {
        "seeds": sorted({run.config.seed for run in multi}),
        "methods": len(runs.multi),
        "recipe": dict(config.recipe),
        "reduced": any(run.config.recipe["reduced"] for run in multi),
        "sizes": {split: config.sizes[split] for split in ("train", "val", "test")},
        "tasks": list(config.tasks),
        "parameters": config.parameters,
        "problem_options": dict(config.problem_options),
        **({"data_file": runs.data_file} if runs.data_file else {}),
        "runs": len(done),
        "stl_runs": sum(map(len, runs.single.values())),
        "stl_same_budget": all(
            _budget(run) == _budget(done[0])
            for group in runs.single.values()
            for run in group.values()
        ),
        "busy_runs": sum(map(_is_busy, done)),
        "wall_seconds": math.fsum(run.result.wall_seconds for run in done),
        "hardware": _most_common(run.config.hardware for run in done),
        "versions": _most_common(run.config.versions for run in done),
        "finished": max(run.result.finished for run in done),
    }


def _budget(run: Run) -> tuple[Any, ...]:
    recipe = run.config.recipe
    return recipe["epochs"], recipe["batch_size"], recipe["learning_rate"], run.config.sizes


def _most_common(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    counted = Counter(json.dumps(value, sort_keys=True) for value in values)
    result: dict[str, Any] = json.loads(counted.most_common(1)[0][0])
    return result


# ------------------------------------------------------------------------------------------------
# What makes the numbers less comparable


def _warnings(
    runs: ProblemRuns, columns: Sequence[MetricColumn], why_no_delta: str
) -> Iterator[str]:
    """Yield what makes the numbers less comparable than they look, as sentences."""
    done = runs.done
    if runs.open:
        root = done[0].path.parents[1]
        names = [f"{place.path.relative_to(root)} ({place.reason})" for place in runs.open]
        verb = "run is not complete and is" if len(names) == 1 else "runs are not complete and are"
        yield f"{len(names)} {verb} left out: {listing(names)}."
    if why_no_delta:
        yield why_no_delta
    yield from _early_epochs(done)
    groups = {**{f"stl {task}": group for task, group in runs.single.items()}, **runs.multi}
    yield from _differences("seeds", {name: [list(group)] for name, group in groups.items()})
    for section in ("recipe", "problem_options", "sizes"):
        for key in dict.fromkeys(key for run in done for key in getattr(run.config, section)):
            if key != "description":
                name = key if section != "sizes" else f"size of {key}"
                yield from _differences(name, _by_method(done, section, key))
    for method, group in runs.multi.items():
        members = list(group.values())
        if (tuning := tuning_of(members)) is not None:
            yield from _tuned_in_vain(runs, columns, method, tuning)
        elif read_tuning(members[0].path.parent) is not None:
            yield f"{method} was tuned, and not all of its runs have the settings found."
        by_seed = {f"seed {s}": [dict(r.config.method_options)] for s, r in group.items()}
        yield from _differences(f"options of {method}", by_seed)
    for name, group in groups.items():
        steps = sum(run.result.steps for run in group.values())
        if missed := sum(run.result.skipped_steps or 0 for run in group.values()):
            yield (
                f"{name} left out {missed:,} of {steps:,} steps, as a loss or a gradient was not "
                "finite."
            )
    for section in ("hardware", "versions"):
        yield from _differences(section, _by_method(done, section))


def _tuned_in_vain(
    runs: ProblemRuns, columns: Sequence[MetricColumn], method: str, tuning: Tuning
) -> Iterator[str]:
    """Yield a sentence if the settings found clearly do worse here than the first ones did."""
    values = [run.result.val for run in runs.multi[method].values()]
    baseline = _baseline(columns, runs.single, "val")
    delta, _ = _delta_m(columns, {method: values}, baseline)
    if tuning.start_value is not None and tuning.number > 0 and method in delta:
        mean, error = delta[method].mean, delta[method].stderr or 0.0
        if not mean - 2 * error <= tuning.start_value:
            yield (
                f"The settings found for {method} do not hold for these seeds: Δm on the "
                f"{SPLITS.get(tuning.split, tuning.split)} split is {mean:.2f} %, with "
                f"{tuning.value:.2f} % in the best trial and {tuning.start_value:.2f} % with the "
                "settings that the search began with. Search with more trials."
            )


def _early_epochs(done: Sequence[Run]) -> Iterator[str]:
    """Yield a sentence where test metrics are means over epochs of networks hardly trained."""
    recipes = {
        (run.config.recipe.get("tested_epochs", 1), run.config.recipe["epochs"]) for run in done
    }
    for tested, epochs in sorted(recipes):
        if tested > 1 and 2 * tested > epochs:
            yield (
                f"Test metrics are means over the last {min(tested, epochs)} of {epochs} epochs. "
                "Networks of the first epochs, which are hardly trained, are averaged in: train "
                "longer, or take another protocol."
            )


def _by_method(runs: Sequence[Run], section: str, key: str | None = None) -> dict[str, list[Any]]:
    """Return the different values that each method's runs have in their configuration."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        value = dict(getattr(run.config, section))
        item = value if key is None else value.get(key)
        found[run.config.method].setdefault(_key(item), item)
    return {method: list(items.values()) for method, items in found.items()}


def _key(item: Any) -> str:
    """Return a key that equal JSON values share; the many plain values do without JSON."""
    return repr(item) if type(item) in (int, str, bool) else json.dumps(item, sort_keys=True)


def _differences(what: str, values: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield a sentence on who has which value, none where all have one and the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, items in values.items():
        groups[" or ".join(map(_shown, items))].append(name)
    if len(groups) > 1 or any(len(items) > 1 for items in values.values()):
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        parts = [f"{value} in {listing(names)}" for value, names in ordered]
        yield f"Runs differ in {what}: {'; '.join(parts)}."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
