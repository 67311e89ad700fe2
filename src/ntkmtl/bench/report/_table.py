"""The numbers of a comparison: means, standard errors, MR, Delta-m and times."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench import problems
from ntkmtl.bench.runs import (
    SINGLE_TASK,
    IncompleteRun,
    Run,
    RunFileError,
    RunMetric,
    load_runs,
    method_labels,
)
from ntkmtl.bench.search.records import Tuning, read_tuning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "Column",
    "Estimate",
    "Row",
    "Runs",
    "Table",
    "build_table",
    "build_tables",
    "duration",
    "load",
    "plain_label",
    "plain_method",
    "table_of",
    "task_labels",
]


@dataclass(frozen=True)
class Column:
    """One metric, which is one column of a table.

    Attributes:
        name: Short name, unique in the problem.
        task: The task that it judges.
        unit: Physical unit, ``""`` for none.
        higher_is_better: Direction.
        label: Name as shown to people, never empty.
    """

    name: str
    task: str
    unit: str
    higher_is_better: bool
    label: str

    @classmethod
    def of(cls, metric: RunMetric) -> Column:
        """Return the column of a metric as a run records it."""
        label = metric.label or metric.name
        return cls(metric.name, metric.task, metric.unit, metric.higher_is_better, label)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and how well it is known.

    Attributes:
        mean: Mean over seeds.
        stderr: Standard error of the mean, the sample standard deviation over the square root of
            the number of seeds. None for one seed.
        count: Number of seeds.

    Example:
        >>> Estimate.of([1.0, 2.0, 3.0]).mean
        2.0
        >>> round(Estimate.of([1.0, 2.0, 3.0]).stderr, 4)
        0.5774
        >>> Estimate.of([4.0])
        Estimate(mean=4.0, stderr=None, count=1)
    """

    mean: float
    stderr: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from one value per seed.

        Raises:
            ValueError: There are no values.
        """
        if not values:
            raise ValueError("an estimate needs at least one value, found none")
        count = len(values)
        # Numbers of a diverged run may be finite and yet too large to square.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.mean(values, dtype=np.float64))
            if count == 1:
                return cls(mean, None, 1)
            return cls(mean, float(np.std(values, ddof=1, dtype=np.float64)) / count**0.5, count)


@dataclass(frozen=True)
class Row:
    """One method's numbers.

    Attributes:
        method: Name of the method.
        seeds: The seeds whose runs are complete.
        estimates: One per column of the table, None where STL was not trained on the task.
        mean_rank: MR over the metrics among the multi-task methods, on means over seeds. None for
            STL.
        delta_m: Delta-m in percent against STL, over seeds. None where it cannot be had.
        seconds_per_epoch: Median over seeds; for STL the sum of it over the tasks.
        relative_time: ``seconds_per_epoch`` over that of LS, None without LS.
        options: The options given to the method.
        tuning: The search that found the options, None where they were not tuned.
        short: Name for people, of a class outside the package without its module; that of the
            method if empty.
    """

    method: str
    seeds: tuple[int, ...]
    estimates: tuple[Estimate | None, ...]
    mean_rank: float | None
    delta_m: Estimate | None
    seconds_per_epoch: float | None
    relative_time: float | None
    options: dict[str, Any]
    tuning: Tuning | None = None
    short: str = ""

    @property
    def label(self) -> str:
        """The method as shown to people, who must see which ones were tuned."""
        name = self.short or self.method
        if self.tuning is None:
            return name
        return f"{name} (tuned, {_count(self.tuning.trials, 'trial')})"

    @property
    def is_baseline(self) -> bool:
        """Whether this is the row of the single-task baselines, which is not ranked."""
        return self.method == SINGLE_TASK


@dataclass(frozen=True)
class Table:
    """The comparison of methods on one problem.

    Attributes:
        problem: Name of the problem.
        columns: The metrics.
        rows: STL first where there is one, then the methods.
        facts: What was run, as JSON values: ``seeds``, ``methods`` and ``runs`` (numbers of),
            ``stl_runs`` (number of), ``stl_same_budget``, ``recipe``, ``reduced``, ``sizes``,
            ``tasks``, ``parameters``, ``problem_options``, ``wall_seconds`` (summed),
            ``hardware``, ``versions``, ``finished`` (UTC time of the last run).
        notes: The facts as sentences, to be printed under the table.
        warnings: What makes the numbers less comparable than they look, as sentences.
    """

    problem: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def row(self, method: str) -> Row:
        """Return a method's row.

        Raises:
            KeyError: The method is not in the table.
        """
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(f"no row {method!r} in the table; it has {[r.method for r in self.rows]}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "problem": self.problem,
            "columns": [asdict(column) for column in self.columns],
            "rows": [{**asdict(row), "is_baseline": row.is_baseline} for row in self.rows],
            "facts": self.facts,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Runs:
    """The runs of one problem.

    Attributes:
        problem: Its name.
        multi: Complete runs by method and seed.
        single: Complete runs of the single-task baselines by task and seed.
        open: Runs without a result.
        asked: Methods in the order to show them.
    """

    problem: str
    multi: dict[str, dict[int, Run]]
    single: dict[str, dict[int, Run]]
    open: list[IncompleteRun]
    asked: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """The multi-task methods in the order to show them."""
        order = [method for method in dict.fromkeys(self.asked) if method in self.multi]
        return order + sorted(set(self.multi) - set(order))

    @property
    def done(self) -> list[Run]:
        """All complete runs, the baselines last."""
        groups = [*(self.multi[method] for method in self.methods), *self.single.values()]
        return [run for group in groups for _, run in sorted(group.items())]


def load(runs_dir: str | os.PathLike[str]) -> dict[str, Runs]:
    """Read the runs of each problem that has at least one complete multi-task run.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``.

    Returns:
        The runs by name of the problem, in alphabetical order.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No multi-task run is complete, a file cannot be read, or two runs are the same.
    """
    complete, incomplete = load_runs(runs_dir)
    asked = _asked(Path(runs_dir))
    found: dict[str, Runs] = {}
    for run in complete:
        config = run.config
        if config.problem not in found:
            found[config.problem] = Runs(config.problem, {}, {}, [], asked)
        runs = found[config.problem]
        task = config.single_task
        kin = (
            runs.multi.setdefault(config.method, {})
            if task is None
            else runs.single.setdefault(task, {})
        )
        if config.seed in kin:
            raise ValueError(
                f"{kin[config.seed].path} and {run.path} are both runs of {config.method!r} with "
                f"seed {config.seed}; move one of them to another folder"
            )
        kin[config.seed] = run
    found = {problem: runs for problem, runs in sorted(found.items()) if runs.multi}
    if not found:
        raise ValueError(
            f"no finished multi-task run in {os.fspath(runs_dir)} (found {len(complete)} finished "
            f"single-task runs and {len(incomplete)} unfinished runs). Name the folder that "
            "`ntkmtl compare --out` wrote, or let the comparison finish"
        )
    for place in incomplete:
        # What an unfinished run belongs to is told by its folder: its files may not be whole.
        for runs in found.values():
            root = runs.done[0].path.parents[1]
            if root in place.path.parents:
                runs.open.append(place)
    return found


def _asked(root: Path) -> tuple[str, ...]:
    path = root / "compare.json"
    if not path.is_file():
        return ()
    try:
        methods = json.loads(path.read_bytes())["methods"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunFileError(path, f"does not say which methods were asked for ({error})") from error
    if not isinstance(methods, list):
        raise RunFileError(path, f"key 'methods' must be a list, found {methods!r:.60}")
    return tuple(method for method in methods if isinstance(method, str))


def build_tables(runs_dir: str | os.PathLike[str]) -> dict[str, Table]:
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


def build_table(runs_dir: str | os.PathLike[str], problem: str | None = None) -> Table:
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
                "name one of them, or use build_tables for all"
            )
        problem = next(iter(found))
    elif problem not in found:
        raise ValueError(
            f"no finished run of {problem!r} in {os.fspath(runs_dir)}; found {', '.join(found)}"
        )
    return table_of(found[problem])


def table_of(runs: Runs) -> Table:
    """Build the table of one problem's runs.

    Raises:
        ValueError: The runs do not report the same metrics.
    """
    columns = _columns(runs)
    multi = {
        method: [run for _, run in sorted(runs.multi[method].items())] for method in runs.methods
    }
    values = {method: [run.result.test for run in group] for method, group in multi.items()}
    baseline = _baseline(columns, runs.single)
    delta, why_not = _delta_m(columns, values, baseline)
    ranks = _mean_ranks(columns, values)
    seconds = {method: _seconds(group) for method, group in multi.items()}
    reference = seconds.get(plain_method(runs.problem))
    labels = method_labels(multi)

    rows = []
    if runs.single:
        whole = set(runs.single) >= {column.task for column in columns}
        total = math.fsum(_seconds(group.values()) for group in runs.single.values())
        rows.append(
            Row(
                method=SINGLE_TASK,
                seeds=tuple(sorted({seed for group in runs.single.values() for seed in group})),
                estimates=tuple(baseline),
                mean_rank=None,
                delta_m=None,
                seconds_per_epoch=total if whole else None,
                relative_time=_ratio(total, reference) if whole else None,
                options={},
            )
        )
    rows += [
        Row(
            method=method,
            seeds=tuple(run.config.seed for run in group),
            estimates=tuple(Estimate.of(each) for each in zip(*values[method], strict=True)),
            mean_rank=ranks[method],
            delta_m=delta.get(method),
            seconds_per_epoch=seconds[method],
            relative_time=_ratio(seconds[method], reference),
            options=dict(group[0].config.method_options),
            tuning=_tuning(group),
            short=labels[method],
        )
        for method, group in multi.items()
    ]
    facts = _facts(runs)
    return Table(
        problem=runs.problem,
        columns=columns,
        rows=tuple(rows),
        facts=facts,
        notes=(
            *_notes(runs.problem, facts, rows, bool(delta)),
            *_custom_notes(multi, labels),
        ),
        warnings=tuple(_warnings(runs, why_not)),
    )


def _tuning(group: Sequence[Run]) -> Tuning | None:
    """Return the search that found the settings of all these runs of one method.

    Raises:
        RunFileError: Its file is damaged.
    """
    found = read_tuning(group[0].path.parent)
    if found is None:
        return None
    wanted = dict(found.method_options), dict(found.recipe)
    for run in group:
        recipe = {key: run.config.recipe.get(key) for key in found.recipe}
        if (dict(run.config.method_options), recipe) != wanted:
            return None
    return found


def task_labels(table: Table) -> list[str]:
    """Return names of the tasks for people: the label of a task's metric, if each has just one."""
    labels: dict[str, list[str]] = {task: [] for task in table.facts["tasks"]}
    for column in table.columns:
        labels.setdefault(column.task, []).append(column.label)
    single = all(len(labels[task]) == 1 for task in table.facts["tasks"])
    return [labels[task][0] if single else task for task in table.facts["tasks"]]


def _columns(runs: Runs) -> tuple[Column, ...]:
    """Return the metrics that all multi-task runs report.

    Raises:
        ValueError: They report different ones, none, or one twice.
    """
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
    return tuple(map(Column.of, metrics))


def _ratio(seconds: float, reference: float | None) -> float | None:
    return seconds / reference if reference else None


def _seconds(runs: Iterable[Run]) -> float:
    return statistics.median(run.result.seconds_per_epoch for run in runs)


def _baseline(
    columns: Sequence[Column], single: Mapping[str, Mapping[int, Run]]
) -> list[Estimate | None]:
    """Return the STL row: for each metric, the runs that were trained on its task alone."""
    estimates: list[Estimate | None] = []
    for column in columns:
        values = [
            value
            for _, run in sorted(single.get(column.task, {}).items())
            for metric, value in zip(run.config.metrics, run.result.test, strict=True)
            if metric.name == column.name
        ]
        estimates.append(Estimate.of(values) if values else None)
    return estimates


def _delta_m(
    columns: Sequence[Column],
    values: Mapping[str, Sequence[Sequence[float]]],
    baseline: Sequence[Estimate | None],
) -> tuple[dict[str, Estimate], str]:
    """Return Delta-m by method, over seeds, or a sentence on why there is none."""
    from ntkmtl.metrics import delta_m

    missing = [c.label for c, estimate in zip(columns, baseline, strict=True) if estimate is None]
    if len(missing) == len(columns):
        return {}, "There are no STL runs, so Δm is not known."
    if missing:
        return {}, f"There are no STL runs for {_listing(missing)}, so Δm is not known."
    means = [estimate.mean for estimate in baseline if estimate is not None]
    zero = [c.label for c, mean in zip(columns, means, strict=True) if mean == 0]
    if zero:
        return {}, f"STL is exactly 0 in {_listing(zero)}, which Δm divides by: Δm is not known."
    below = [c.label for c, mean in zip(columns, means, strict=True) if mean < 0]
    if below:
        return {}, (
            f"STL is negative in {_listing(below)}. A relative change of a negative number has the "
            "wrong sign, so Δm is not known; report a metric that is positive."
        )
    higher = [column.higher_is_better for column in columns]
    return {
        method: Estimate.of(delta_m(seeds, means, higher).tolist())
        for method, seeds in values.items()
    }, ""


def _mean_ranks(
    columns: Sequence[Column], values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, float]:
    from ntkmtl.metrics import mean_rank

    means = [np.mean(seeds, axis=0).tolist() for seeds in values.values()]
    ranks = mean_rank(means, [column.higher_is_better for column in columns])
    return dict(zip(values, ranks.tolist(), strict=True))


def _facts(runs: Runs) -> dict[str, Any]:
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
        "runs": len(done),
        "stl_runs": sum(map(len, runs.single.values())),
        "stl_same_budget": all(
            _budget(run) == _budget(done[0])
            for group in runs.single.values()
            for run in group.values()
        ),
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


def _warnings(runs: Runs, why_no_delta: str) -> list[str]:
    """Return what makes the numbers less comparable than they look."""
    done = runs.done
    found = []
    if runs.open:
        root = done[0].path.parents[1]
        names = [f"{place.path.relative_to(root)} ({place.reason})" for place in runs.open]
        verb = "run is not complete and is" if len(names) == 1 else "runs are not complete and are"
        found.append(f"{len(names)} {verb} left out: {_listing(names)}.")
    if why_no_delta:
        found.append(why_no_delta)
    found += _early_epochs(done)
    groups = {**{f"stl {task}": group for task, group in runs.single.items()}, **runs.multi}
    found += _differences("seeds", {name: [sorted(group)] for name, group in groups.items()})
    for section in ("recipe", "problem_options", "sizes"):
        keys = dict.fromkeys(key for run in done for key in getattr(run.config, section))
        for key in keys:
            if key != "description":
                name = key if section != "sizes" else f"size of {key}"
                found += _differences(name, _by_method(done, section, key))
    for method, group in runs.multi.items():
        members = list(group.values())
        if read_tuning(members[0].path.parent) is not None and _tuning(members) is None:
            found.append(f"{method} was tuned, and not all of its runs have the settings found.")
        by_seed = {f"seed {s}": [dict(r.config.method_options)] for s, r in sorted(group.items())}
        found += _differences(f"options of {method}", by_seed)
    found += filter(None, (_left_out(name, group) for name, group in groups.items()))
    for section in ("hardware", "versions"):
        found += _differences(section, _by_method(done, section))
    return found


def _left_out(name: str, group: Mapping[int, Run]) -> str:
    """Return a sentence on the steps that runs did not take, nothing for none."""
    results = [run.result for run in group.values()]
    missed = sum(r.skipped_steps or 0 for r in results)
    steps = sum(r.steps for r in results)
    if not missed:
        return ""
    return f"{name} left out {missed:,} of {steps:,} steps, as a loss or a gradient was not finite."


def _early_epochs(done: Sequence[Run]) -> list[str]:
    """Return a sentence where test metrics are means over epochs of networks hardly trained."""
    recipes = {
        (run.config.recipe.get("tested_epochs", 1), run.config.recipe["epochs"]) for run in done
    }
    few = [
        (tested, epochs) for tested, epochs in sorted(recipes) if tested > 1 and 2 * tested > epochs
    ]
    return [
        f"Test metrics are means over the last {min(tested, epochs)} of {epochs} epochs. Networks "
        "of the first epochs, which are hardly trained, are averaged in: train longer, or take "
        "another protocol."
        for tested, epochs in few
    ]


def _by_method(runs: Iterable[Run], section: str, key: str | None = None) -> dict[str, list[Any]]:
    """Return the different values that each method's runs have in their configuration."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        value = dict(getattr(run.config, section))
        item = value if key is None else value.get(key)
        found[run.config.method].setdefault(_key(item), item)
    return {method: list(items.values()) for method, items in found.items()}


def _key(item: Any) -> str:
    """Return a text that equal JSON values share; most are plain ones, in a thousand runs each."""
    return repr(item) if type(item) in (int, str, bool) else json.dumps(item, sort_keys=True)


def _differences(what: str, values: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a sentence on who has which value, nothing where all have one and the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, items in values.items():
        groups[" or ".join(map(_shown, items))].append(name)
    if len(groups) < 2 and not any(len(items) > 1 for items in values.values()):
        return []
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    parts = [f"{value} in {_listing(names)}" for value, names in ordered]
    return [f"Runs differ in {what}: {'; '.join(parts)}."]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _listing(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain_method(problem: str) -> str:
    """Return the method whose time per epoch is 1: the plain sum of losses."""
    entry = problems.spec(problem)
    return "ls" if entry is None else entry.plain


def plain_label(problem: str) -> str:
    """Return the name of :func:`plain_method` as people see it."""
    plain = plain_method(problem)
    return "LS" if plain == "ls" else plain


def _sizes_text(problem: str, sizes: Mapping[str, int]) -> str:
    entry = problems.spec(problem)
    if entry is None or not entry.units:
        return ", ".join(f"{size:,} {split}" for split, size in sizes.items()) + " samples"
    return ", ".join(f"{sizes[split]:,} {unit}" for split, unit in entry.units.items())


def _notes(problem: str, facts: dict[str, Any], rows: Sequence[Row], delta: bool) -> list[str]:
    """Return what was run, and what the columns mean, as sentences."""
    seeds, recipe = facts["seeds"], facts["recipe"]
    spread = "Mean ± standard error over" if len(seeds) > 1 else "Numbers of"
    entry = problems.spec(problem)
    judged = "on the test split" if entry is None or entry.supervised else "in evaluations"
    notes = [
        f"{spread} {_count(len(seeds), 'seed')} ({_listing([str(seed) for seed in seeds], 10)}), "
        f"{judged} {_when(recipe)}; no epoch is selected."
    ]
    if delta:
        notes.append("Δm: mean relative change of the metrics against STL, in percent.")
    if facts["stl_runs"]:
        budget = "the same budget" if facts["stl_same_budget"] else "another budget (see above)"
        notes.append(
            f"STL: trained here with {budget}, one network per task; its time is the sum over "
            "the tasks."
        )
    methods = _count(facts["methods"], "multi-task method")
    notes.append(f"MR: mean rank over the metrics among {methods}, STL left out.")
    plain = plain_label(problem)
    reference = next((row for row in rows if row.method == plain_method(problem)), None)
    notes.append(
        f"Time: not known relative to {plain}, as {plain} is not among the runs."
        if reference is None
        else f"Time: training per epoch relative to {plain} "
        f"({reference.seconds_per_epoch:.3g} s), medians over epochs and seeds."
    )
    notes += [_tuning_note(row, recipe["epochs"]) for row in rows if row.tuning is not None]
    sizes = _sizes_text(problem, facts["sizes"])
    kind = "Reduced recipe, smaller than in the literature" if facts["reduced"] else "Recipe"
    description = recipe["description"].strip()
    notes.append(
        f"{kind}: {_count(recipe['epochs'], 'epoch')}, batch size {recipe['batch_size']:,}, "
        f"learning rate {recipe['learning_rate']:g}, {sizes}, "
        f"{_count(facts['parameters'], 'parameter')}.{' ' if description else ''}{description}"
    )
    hardware = facts["hardware"]
    where = [str(hardware[key]) for key in ("device", "processor") if hardware.get(key)]
    for key, what in (("cores", "core"), ("threads", "thread")):
        if isinstance(hardware.get(key), int):
            where.append(_count(hardware[key], what) + (" per run" if key == "threads" else ""))
    notes.append(
        f"Wall time {duration(facts['wall_seconds'])}, summed over {_count(facts['runs'], 'run')}"
        f"{', on ' if where else ''}{', '.join(where)}."
    )
    if facts["versions"]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        notes.append(f"Versions: {versions}.")
    return notes


def _custom_notes(multi: Mapping[str, Sequence[Run]], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield where the methods come from that are not of this package."""
    for method, group in multi.items():
        if source := group[0].config.method_source:
            yield f"{labels[method]}: {method}, a class outside ntkmtl, its source {source}."


def _tuning_note(row: Row, epochs: int) -> str:
    tuning = row.tuning
    assert tuning is not None
    length = _count(tuning.epochs, "epoch")
    if tuning.epochs != epochs:
        length += f" (the runs have {epochs})"
    chosen = "Optuna's TPE" if tuning.sampler == "tpe" else tuning.sampler
    start = "with diverged" if tuning.start_value is None else f"with: {tuning.start_value:.2f} %"
    diverged = f", of which {tuning.diverged} diverged" if tuning.diverged else ""
    split = _SPLITS.get(tuning.split, tuning.split)
    return (
        f"{row.short or row.method} is tuned: the best of {_count(tuning.trials, 'trial')}"
        f"{diverged}, by Δm on the {split} split: {tuning.value:.2f} % (the settings that the "
        f"search began {start}). Settings were chosen by {chosen}; trials have seed {tuning.seed} "
        f"and {length}, and took {duration(tuning.wall_seconds)} in all, which the times here "
        "leave out. A method of which this is not said is not tuned."
    )


_SPLITS = {"val": "validation", "train": "training"}


def _when(recipe: Mapping[str, Any]) -> str:
    averaged = min(recipe.get("tested_epochs", 1), recipe["epochs"])
    return "after the last epoch" if averaged == 1 else f"as means over the last {averaged} epochs"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a length of time for people.

    Example:
        >>> duration(7.25), duration(200.0), duration(7384.0)
        ('7.2 s', '3 min 20 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
