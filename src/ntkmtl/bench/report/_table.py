"""The table of a comparison: its columns, its rows, and what is said below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ntkmtl.bench import problems
from ntkmtl.bench.jobs.reporters import duration
from ntkmtl.bench.report._words import count, listing
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.search.records import Tuning

LEAST_CPU_SHARE = 0.9
"""Least share of its training time with a processor core for a run's time to count."""

SPLITS = {"val": "validation", "train": "training"}


@dataclass(frozen=True)
class MetricColumn:
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


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds and how well it is known.

    Attributes:
        mean: Mean over seeds.
        stderr: Standard error of the mean, the sample standard deviation over the square root of
            the number of seeds. None for one seed.
        count: Number of seeds.

    Example:
        >>> SeedMean.of([1.0, 2.0, 3.0]).mean
        2.0
        >>> round(SeedMean.of([1.0, 2.0, 3.0]).stderr, 4)
        0.5774
        >>> SeedMean.of([4.0])
        SeedMean(mean=4.0, stderr=None, count=1)
    """

    mean: float
    stderr: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """Return the mean of one value per seed, with its standard error.

        Args:
            values: One per seed, all in the same unit.

        Raises:
            ValueError: There are no values.
        """
        if not values:
            raise ValueError("an estimate needs at least one value, found none")
        count = len(values)
        # Sums and squares of the largest numbers are infinite, and squares of the smallest are 0:
        # both are taken near 1, by a power of two, which changes no digit.
        scale = math.ldexp(1.0, math.frexp(max(map(abs, values)))[1] - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.asarray(values, dtype=np.float64) / scale
            mean = float(np.mean(scaled)) * scale
            if count == 1:
                return cls(mean, None, 1)
            return cls(mean, float(np.std(scaled, ddof=1)) / count**0.5 * scale, count)


@dataclass(frozen=True)
class MethodRow:
    """One method's numbers.

    Attributes:
        method: Name of the method.
        seeds: The seeds whose runs are complete.
        estimates: One per column of the table, None where STL was not trained on the task.
        mean_rank: MR over the metrics among the multi-task methods, on means over seeds. None for
            STL.
        delta_m: Delta-m in percent against STL, over seeds. None where it cannot be had.
        seconds_per_epoch: Mean over seeds; for STL the sum over the tasks. Runs that were trained
            while the machine was busy do not count; None where none does.
        relative_time: Seconds per epoch over the mean of LS, over seeds. None where either is not
            known.
        options: The options given to the method.
        tuning: The search that found the options, None where they were not tuned.
        short: Name for people, of a class outside the package without its module; that of the
            method if empty.
        reference: What the row is, where it is a model that is not a network; such rows are not
            ranked.
    """

    method: str
    seeds: tuple[int, ...]
    estimates: tuple[SeedMean | None, ...]
    mean_rank: float | None = None
    delta_m: SeedMean | None = None
    seconds_per_epoch: float | None = None
    relative_time: SeedMean | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    short: str = ""
    reference: str = ""

    @property
    def label(self) -> str:
        """The method as shown to people, who must see which ones were tuned."""
        name = self.short or self.method
        if self.tuning is None:
            return name
        return f"{name} (tuned, {count(self.tuning.trials, 'trial')})"

    @property
    def is_baseline(self) -> bool:
        """Whether this is a row that is not ranked: single-task networks, or a reference."""
        return self.method == SINGLE_TASK or bool(self.reference)


@dataclass(frozen=True)
class ResultTable:
    """The comparison of methods on one problem.

    Attributes:
        problem: Name of the problem.
        columns: The metrics.
        rows: STL first where there is one, then the methods.
        facts: What was run, as JSON values: ``seeds``, ``methods`` and ``runs`` (numbers of),
            ``stl_runs`` and ``busy_runs`` (numbers of, see :attr:`MethodRow.seconds_per_epoch`),
            ``stl_same_budget``, ``recipe``, ``reduced``, ``sizes``, ``tasks``,
            ``parameters``, ``problem_options``, ``wall_seconds`` (summed),
            ``hardware``, ``versions``, ``finished`` (UTC time of the last run).
        notes: The facts as sentences, to be printed under the table.
        warnings: What makes the numbers less comparable than they look, as sentences.
        references: Rows of reference models, which are not networks.
    """

    problem: str
    columns: tuple[MetricColumn, ...]
    rows: tuple[MethodRow, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    references: tuple[MethodRow, ...] = ()

    @property
    def lines(self) -> tuple[MethodRow, ...]:
        """The rows as they are printed, references last."""
        return self.rows + self.references

    def row(self, method: str) -> MethodRow:
        """Return a method's row.

        Args:
            method: Name of the method, ``"stl"`` for the single-task networks.

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
            **({"references": [asdict(row) for row in self.references]} if self.references else {}),
        }


def entry_of(problem: str) -> problems.ProblemSpec:
    """Return what the registry says of a problem; of another, what holds for most."""
    return problems.spec(problem) or problems.ProblemSpec(problem, target="", summary="")


def plain_label(problem: str) -> str:
    """Return the name in tables of the method whose time per epoch is 1."""
    plain = entry_of(problem).plain
    return "LS" if plain == "ls" else plain


def units_text(problem: str, sizes: Mapping[str, int]) -> str:
    """Return how much of what the splits hold, ``""`` where the problem counts samples."""
    units = entry_of(problem).units
    return ", ".join(f"{sizes[split]:,} {unit}" for split, unit in units.items())


# ------------------------------------------------------------------------------------------------
# What is said below


def notes_of(table: ResultTable, sources: Mapping[str, str]) -> Iterator[str]:
    """Yield what was run, and what the columns and rows mean, as sentences.

    Args:
        table: The table.
        sources: Digests of the sources of methods from outside this package.
    """
    problem, facts = table.problem, table.facts
    seeds, recipe, hardware = facts["seeds"], facts["recipe"], facts["hardware"]
    spread = "Mean ± standard error over" if len(seeds) > 1 else "Numbers of"
    judged = "on the test split" if entry_of(problem).supervised else "in evaluations"
    yield (
        f"{spread} {count(len(seeds), 'seed')} ({listing([str(seed) for seed in seeds], 10)}), "
        f"{judged} {_when(recipe)}"
    )
    if facts.get("data_file"):
        sha256 = facts["problem_options"].get("data_sha256", "")
        yield f"Data: {facts['data_file']} (SHA-256 {sha256[:12]})."
    if any(row.delta_m is not None for row in table.rows):
        yield "Δm: mean relative change of the metrics against STL, in percent."
    if facts["stl_runs"]:
        budget = "the same budget" if facts["stl_same_budget"] else "another budget (see above)"
        yield (
            f"STL: trained here with {budget}, one network per task; its time is the sum over "
            "the tasks."
        )
    methods = count(facts["methods"], "multi-task method")
    yield f"MR: mean rank over the metrics among {methods}, STL left out."
    yield from _time_notes(table)
    for row in table.rows:
        if row.tuning is not None:
            yield _tuning_note(row, row.tuning, recipe["epochs"])
    sizes = units_text(problem, facts["sizes"]) or (
        ", ".join(f"{size:,} {split}" for split, size in facts["sizes"].items()) + " samples"
    )
    kind = "Recipe"
    if facts["reduced"]:
        published = problem != "table" and problems.spec(problem) is not None
        than = "smaller than in the literature" if published else "shorter than the problem's own"
        kind = f"Reduced recipe, {than}"
    description = recipe["description"].strip()
    yield (
        f"{kind}: {count(recipe['epochs'], 'epoch')}, batch size {recipe['batch_size']:,}, "
        f"learning rate {recipe['learning_rate']:g}, {sizes}, "
        f"{count(facts['parameters'], 'parameter')}.{' ' if description else ''}{description}"
    )
    where = [str(hardware[key]) for key in ("device", "processor") if hardware.get(key)]
    for key, what in (("cores", "core"), ("threads", "thread")):
        if isinstance(hardware.get(key), int):
            where.append(count(hardware[key], what) + (" per run" if key == "threads" else ""))
    yield (
        f"Wall time {duration(facts['wall_seconds'])}, summed over {count(facts['runs'], 'run')}"
        f"{', on ' if where else ''}{', '.join(where)}."
    )
    if facts["versions"]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        yield f"Versions: {versions}."
    for method, source in sources.items():
        label = table.row(method).short
        yield f"{label}: {method}, a class outside ntkmtl, its source {source}."
    if "data_sha256" in facts["problem_options"] and (sharing := sharing_note(table)):
        yield sharing
    yield from (f"{row.method}: {row.reference}." for row in table.references)


def _when(recipe: Mapping[str, Any]) -> str:
    if recipe.get("chosen_epoch", "last") == "validation":
        return "after the epoch with the least loss on the validation split, chosen run by run."
    averaged = min(recipe.get("tested_epochs", 1), recipe["epochs"])
    last = "after the last epoch" if averaged == 1 else f"as means over the last {averaged} epochs"
    return f"{last}; no epoch is selected."


def _time_notes(table: ResultTable) -> Iterator[str]:
    plain, facts = plain_label(table.problem), table.facts
    method = entry_of(table.problem).plain
    reference = next((row for row in table.rows if row.method == method), None)
    if reference is None:
        yield f"Time: not known relative to {plain}, as {plain} is not among the runs."
    elif reference.seconds_per_epoch is None:
        yield f"Time: not known relative to {plain}, as the machine was busy meanwhile."
    else:
        yield (
            f"Time: training per epoch, median over epochs, relative to {plain} "
            f"({reference.seconds_per_epoch:.3g} s)."
        )
    if busy := facts["busy_runs"]:
        left_out = "all runs" if busy == facts["runs"] else f"{busy:,} of {facts['runs']:,} runs"
        yield (
            f"Times of {left_out} are left out, as the machine was busy: they had a processor core "
            f"for less than {100 * LEAST_CPU_SHARE:g} % of their training time."
        )


def _tuning_note(row: MethodRow, tuning: Tuning, epochs: int) -> str:
    length = count(tuning.epochs, "epoch")
    if tuning.epochs != epochs:
        length += f" (the runs have {epochs})"
    chosen = "Optuna's TPE" if tuning.sampler == "tpe" else tuning.sampler
    start = "with diverged" if tuning.start_value is None else f"with: {tuning.start_value:.2f} %"
    diverged = f", of which {tuning.diverged} diverged" if tuning.diverged else ""
    split = SPLITS.get(tuning.split, tuning.split)
    return (
        f"{row.short or row.method} is tuned: the best of {count(tuning.trials, 'trial')}"
        f"{diverged}, by Δm on the {split} split: {tuning.value:.2f} % (the settings that the "
        f"search began {start}). Settings were chosen by {chosen}; trials have seed {tuning.seed} "
        f"and {length}, and took {duration(tuning.wall_seconds)} in all, which the times here "
        "leave out. A method of which this is not said is not tuned."
    )


def sharing_note(table: ResultTable) -> str:
    """Return in which metrics the method of lowest mean rank beats the single-task networks.

    A difference counts where it is more than two standard errors of itself. Without rows of
    single-task networks the sentence is ``""``.
    """
    alone = next((row for row in table.rows if row.is_baseline), None)
    ranked = [row for row in table.rows if row.mean_rank is not None]
    if alone is None or not ranked:
        return ""
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found: dict[str, list[str]] = {"helped": [], "hurt": [], "made no clear difference in": []}
    for column, shared, single in zip(table.columns, best.estimates, alone.estimates, strict=True):
        if shared is None or single is None:
            continue
        said = f"{column.label} ({_mean_text(shared)}, alone {_mean_text(single)})"
        found[_verdict(shared, single, column.higher_is_better)].append(said)
    parts = [f"{what} {listing(names, 20)}" for what, names in found.items() if names]
    if not parts:
        return ""
    seeds = "" if len(best.seeds) > 1 else " One seed says little: differences are not judged."
    return f"Sharing with {best.label}, the lowest MR: {'; '.join(parts)}.{seeds}"


def _verdict(shared: SeedMean, single: SeedMean, higher_is_better: bool) -> str:
    if shared.stderr is None or single.stderr is None:
        return "made no clear difference in"
    gain = (shared.mean - single.mean) * (1 if higher_is_better else -1)
    error = math.hypot(shared.stderr, single.stderr)
    if abs(gain) <= 2 * error:
        return "made no clear difference in"
    return "helped" if gain > 0 else "hurt"


def _mean_text(value: SeedMean) -> str:
    return f"{value.mean:.3g}" + ("" if value.stderr is None else f" ± {value.stderr:.2g}")
