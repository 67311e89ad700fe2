"""The table of a comparison: its columns, its rows, and what is said below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench.report._words import count
from ntkmtl.bench.runs import SINGLE_TASK, RunMetric

if TYPE_CHECKING:
    from ntkmtl.bench.search.records import Tuning


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

    @classmethod
    def of(cls, metric: RunMetric) -> MetricColumn:
        """Return the column of a metric as a run records it.

        Args:
            metric: The metric; without a label, it is labeled by its name.
        """
        label = metric.label or metric.name
        return cls(metric.name, metric.task, metric.unit, metric.higher_is_better, label)


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
        # Numbers of a diverged run may be finite and yet too large to square.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.mean(values, dtype=np.float64))
            if count == 1:
                return cls(mean, None, 1)
            return cls(mean, float(np.std(values, ddof=1, dtype=np.float64)) / count**0.5, count)


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
        reference: What the row is, where it is a model that is no network; such rows are not
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
