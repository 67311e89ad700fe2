"""What was recorded of the kernels while training on one problem, by method, and its page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntkmtl.analysis._record import Recorder
from ntkmtl.analysis.grouping import Grouping, group_tasks
from ntkmtl.analysis.kernels import convergence_steps, imbalance
from ntkmtl.bench.report._curves import columns_of
from ntkmtl.bench.report._html import page_text
from ntkmtl.bench.report._words import printable, seeds_text
from ntkmtl.bench.runs import RECORD, SINGLE_TASK, RunConfig, load_runs, method_labels
from ntkmtl.files import finite, write_text

FRACTION = 0.1
"""The fraction of a task's loss that is left after the predicted number of steps."""

_PER_TASK = (
    *("losses", "weights", "max_eigenvalues", "weighted_eigenvalues", "effective_ranks"),
    *("participation_ratios", "residual_traces", "residual_eigenvalues"),
)
"""Numbers of each task that are averaged over seeds."""
_PAIRS = ("condition", "rank", "imbalance")
"""Numbers before and after weighting."""
_BY_LOGARITHM = frozenset({"convergence", "condition", "imbalance"})
"""Numbers of which the geometric mean over seeds is taken."""


class StudyError(ValueError):
    """A folder holds nothing to analyze, or records that do not belong together."""


@dataclass(frozen=True, eq=False)
class MethodRecord:
    """What was recorded of one method, averaged over its seeds.

    T steps, k tasks. All float64, NaN where nothing is known.

    Attributes:
        method: Its name.
        label: Its name for people.
        seeds: Seeds of the runs, rising.
        every: Steps from one record to the next.
        source: ``"exact"``, ``"representation"``, or "" if the record does not say.
        step: Recorded steps that all seeds have, int64 of shape (T,).
        losses: Shape (T, k).
        weights: Shape (T, k).
        max_eigenvalues: Of each task's kernel, shape (T, k).
        weighted_eigenvalues: The same under the step's weights, w^2 lambda (Eq. 13), shape (T, k).
        effective_ranks: Shape (T, k).
        participation_ratios: Shape (T, k).
        residual_traces: Of each task's kernel of residuals, per point, shape (T, k).
        residual_eigenvalues: Its largest eigenvalue, per point, shape (T, k).
        convergence: Predicted steps under the step's weights, shape (T, k); see
            :func:`ntkmtl.analysis.convergence_steps`.
        condition: Of the extended kernel, before and after weighting, shape (T, 2): means of the
            logarithm over seeds.
        rank: Its numerical rank, before and after, shape (T, 2).
        imbalance: Largest over smallest of the tasks' eigenvalues, before and after, shape (T, 2).
        affinity: Shape (T, k, k).
    """

    method: str
    label: str
    seeds: tuple[int, ...]
    every: int
    source: str
    step: Tensor
    losses: Tensor
    weights: Tensor
    max_eigenvalues: Tensor
    weighted_eigenvalues: Tensor
    effective_ranks: Tensor
    participation_ratios: Tensor
    residual_traces: Tensor
    residual_eigenvalues: Tensor
    convergence: Tensor
    condition: Tensor
    rank: Tensor
    imbalance: Tensor
    affinity: Tensor

    def mean_affinity(self) -> Tensor:
        """Return the affinity averaged over training, shape (k, k)."""
        return self.affinity.nanmean(dim=0)

    def grouping(self, groups: int | None = None) -> Grouping | None:
        """Return the groups by the averaged affinity, None where a pair was never compared.

        Args:
            groups: Their number; chosen by the rule of :func:`group_tasks` if None.

        Raises:
            ValueError: ``groups`` is not in 1..k.
        """
        affinity = self.mean_affinity()
        return None if bool(affinity.isnan().any()) else group_tasks(affinity, groups)


@dataclass(frozen=True, eq=False)
class Study:
    """The records of the runs of one problem.

    Attributes:
        problem: Its name.
        tasks: Names of the k tasks.
        methods: One record per method.
        configs: One configuration per method, of its first seed.
        learning_rate: Peak learning rate.
        notes: What a reader must know about the records.
    """

    problem: str
    tasks: tuple[str, ...]
    methods: tuple[MethodRecord, ...]
    configs: tuple[RunConfig, ...]
    learning_rate: float
    notes: tuple[str, ...] = ()

    def to_json(self, groups: int | None = None) -> dict[str, Any]:
        """Return everything as JSON values, NaN and infinity as null.

        Args:
            groups: See :meth:`MethodRecord.grouping`.
        """
        return {
            "problem": self.problem,
            "tasks": list(self.tasks),
            "learning_rate": self.learning_rate,
            "fraction": FRACTION,
            "notes": list(self.notes),
            "methods": [_method_json(self, record, groups) for record in self.methods],
        }


def _method_json(study: Study, record: MethodRecord, groups: int | None) -> dict[str, Any]:
    grouping = record.grouping(groups)
    numbers = {name: getattr(record, name).tolist() for name in ("step", *_PER_TASK)}
    numbers["predicted_steps"] = record.convergence.tolist()
    for name in _PAIRS:
        before, after = getattr(record, name).T.tolist()
        numbers[name] = {"before": before, "after": after}
    found: dict[str, Any] = {
        "method": record.method,
        "seeds": list(record.seeds),
        "every": record.every,
        "source": record.source or None,
        **numbers,
        "mean_affinity": record.mean_affinity().tolist(),
        "groups": None if grouping is None else grouping.names(study.tasks),
        "affinity_within_groups": None if grouping is None else list(grouping.within),
        "affinity_between_groups": None if grouping is None else grouping.between,
    }
    plain: dict[str, Any] = finite(found)
    return plain


def read_study(
    folder: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Study:
    """Read the records of the complete runs below a folder.

    Args:
        folder: A run's folder, or one above that holds the runs of one problem.
        methods: Methods to read, all if None.
        seeds: Seeds to read, all if None.

    Raises:
        FileNotFoundError: There is no such folder.
        StudyError: It holds no record, or those of several problems.
        RecordFileError: A record is damaged.
        RunFileError: Another file of a run is damaged.
    """
    folder = Path(folder)
    runs, incomplete = load_runs(folder)
    kept = [
        run
        for run in runs
        if run.config.method != SINGLE_TASK
        and (methods is None or run.config.method in methods)
        and (seeds is None or run.config.seed in seeds)
    ]
    recorded = [
        (run.config, Recorder.load(run.path / RECORD))
        for run in kept
        if (run.path / RECORD).exists()
    ]
    if not recorded:
        what = f"{len(kept)} complete runs, none with {RECORD}" if kept else "no complete run"
        raise StudyError(
            f"{folder} holds {what}. Record while training: ntkmtl compare PROBLEM --methods "
            f"ls,ntkmtl-sr --record 50 --out {folder} --overwrite, or ntkmtl analyze PROBLEM"
        )
    notes = []
    if len(recorded) < len(kept):
        notes.append(f"{len(kept) - len(recorded)} complete runs hold no record: left out.")
    if incomplete and methods is None and seeds is None:
        notes.append(f"{len(incomplete)} runs are not complete: left out.")
    return study_of(recorded, notes=notes)


def study_of(recorded: Sequence[tuple[RunConfig, Recorder]], *, notes: Sequence[str] = ()) -> Study:
    """Gather records by method.

    Args:
        recorded: Configuration and record of each, at least one.
        notes: Sentences for the reader.

    Raises:
        StudyError: They are of several problems or tasks, a record is empty, or the seeds of a
            method have no recorded step in common.
    """
    problems = list(dict.fromkeys(config.problem for config, _ in recorded))
    if len(problems) != 1:
        raise StudyError(
            f"there are runs of {len(problems)} problems ({', '.join(problems)}); give the folder "
            "of one, DIR/PROBLEM"
        )
    config = recorded[0][0]
    for other, record in recorded:
        if other.tasks != config.tasks or (len(record) and record.tasks != other.tasks):
            raise StudyError(
                f"the runs have different tasks: {list(config.tasks)} and {list(other.tasks)}"
            )
        if not len(record):
            raise StudyError(f"the record of {other.method}, seed {other.seed}, holds no step")
    methods: dict[str, list[tuple[RunConfig, Recorder]]] = {}
    for other, record in recorded:
        methods.setdefault(other.method, []).append((other, record))
    more = list(notes)
    if any(other.recipe != config.recipe for other, _ in recorded):
        more.append(
            "The runs have different recipes, of which one is shown: predicted steps are for each "
            "run's own learning rate."
        )
    if any(record.source != recorded[0][1].source for _, record in recorded):
        more.append("The kernels are of different sources: do not compare them between methods.")
    order = sorted(methods, key=lambda name: (name != "ls", name))
    labels = method_labels(order)
    return Study(
        problem=problems[0],
        tasks=config.tasks,
        methods=tuple(_method(methods[name], label) for name, label in labels.items()),
        configs=tuple(methods[name][0][0] for name in order),
        learning_rate=float(config.recipe["learning_rate"]),
        notes=tuple(more),
    )


def _method(entries: Sequence[tuple[RunConfig, Recorder]], label: str) -> MethodRecord:
    entries = sorted(entries, key=lambda entry: entry[0].seed)
    name = entries[0][0].method
    common = set.intersection(*(set(record.steps.tolist()) for _, record in entries))
    if not common:
        raise StudyError(f"the seeds of {name} have no recorded step in common")
    step = torch.tensor(sorted(common), dtype=torch.int64)
    measured = [_columns(config, record, step) for config, record in entries]
    means = {key: _mean(key, [columns[key] for columns in measured]) for key in measured[0]}
    record = entries[0][1]
    return MethodRecord(
        method=name,
        label=label,
        seeds=tuple(config.seed for config, _ in entries),
        every=record.every,
        source=record.source or "",
        step=step,
        **means,
    )


def _columns(config: RunConfig, record: Recorder, step: Tensor) -> dict[str, Tensor]:
    """Return one run's numbers at the steps, by the names that :class:`MethodRecord` has."""
    at = torch.isin(record.steps, step)
    weights, eigenvalues = record["weights"][at], record["max_eigenvalues"][at]
    weighted = weights.square() * eigenvalues
    found = {"weighted_eigenvalues": weighted, "affinity": record["affinity"][at]}
    found |= {key: record[key][at] for key in _PER_TASK if key not in found}
    found["convergence"] = convergence_steps(
        eigenvalues,
        float(config.recipe["learning_rate"]),
        losses=found["losses"],
        minibatches=record["kernel_minibatches"][at][:, None],
        weights=weights,
        fraction=FRACTION,
    )
    for key in ("condition", "rank"):
        found[key] = torch.stack([record[key][at], record[f"{key}_weighted"][at]], dim=1)
    spread = [
        [imbalance(before), imbalance(after)]
        for before, after in zip(eigenvalues, weighted, strict=True)
    ]
    found["imbalance"] = torch.tensor(spread, dtype=torch.float64)
    return found


def _mean(key: str, by_seed: Sequence[Tensor]) -> Tensor:
    """Return the mean over seeds of what is known."""
    values = torch.stack(list(by_seed))
    return values.log().nanmean(dim=0).exp() if key in _BY_LOGARITHM else values.nanmean(dim=0)


# ------------------------------------------------------------------------------------------------
# The page

_POINTS = 400
"""Points of a line; longer runs are averaged over windows of steps."""
_WINDOWS = 8
"""Parts of training for which the affinity is shown."""
_LINES = {
    "eigenvalues": "max_eigenvalues",
    "weighted": "weighted_eigenvalues",
    "entropy": "effective_ranks",
    "participation": "participation_ratios",
    **{name: name for name in ("residual_traces", "residual_eigenvalues", "convergence")},
    **{name: name for name in ("weights", "losses")},
}
"""Lines of each task by their name in the page's script, from a record's attribute."""
_SOURCES = {"exact": "shared parameters (exact)", "representation": "shared representation"}


def write_page(study: Study, path: str | os.PathLike[str], *, groups: int | None = None) -> Path:
    """Write the page.

    Args:
        study: The records.
        path: Where to write.
        groups: Number of groups of tasks, chosen by the rule of
            :func:`ntkmtl.analysis.group_tasks` if None.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``groups`` is not in 1..k.
        MissingExtraError: plotly, jinja2 or scipy is not installed.
    """
    data = {
        "tasks": [printable(task) for task in study.tasks],
        "methods": [_charts(record, groups) for record in study.methods],
    }
    title = printable(study.problem)
    write_text(path, page_text("analysis", [data], page=_page(study, groups), title=title))
    return Path(path)


def _page(study: Study, groups: int | None) -> dict[str, Any]:
    """Return what the template shows."""
    config = study.configs[0]
    recipe = config.recipe
    seeds = sorted({seed for record in study.methods for seed in record.seeds})
    last = max(int(record.step[-1]) for record in study.methods)
    return {
        "name": printable(study.problem),
        "reduced": bool(recipe["reduced"]),
        "facts": [
            ("Methods", str(len(study.methods))),
            ("Tasks", str(len(study.tasks))),
            ("Seeds", seeds_text(seeds)),
            ("Epochs", f"{recipe['epochs']:,}"),
            ("Batch size", f"{recipe['batch_size']:,}"),
            ("Learning rate", f"{float(recipe['learning_rate']):g}"),
            ("Last recorded step", f"{last:,}"),
            ("Parameters", f"{config.parameters:,}"),
        ],
        "description": printable(str(recipe["description"]), 500),
        "notes": [printable(note, 500) for note in study.notes],
        "methods": [printable(record.label) for record in study.methods],
        "rows": [_row(study, record, groups) for record in study.methods],
        "percent": f"{100 * FRACTION:g}",
        "residuals": any(bool(r.residual_traces.isfinite().any()) for r in study.methods),
    }


def _row(study: Study, record: MethodRecord, groups: int | None) -> dict[str, Any]:
    found = record.grouping(groups)
    every = f"every {record.every} steps" if len(record.step) > 1 else "once"
    return {
        "method": printable(record.label),
        "kernel": f"{_SOURCES.get(record.source, 'not said')}, {every}",
        **{name: [_median(side) for side in getattr(record, name).T] for name in _PAIRS},
        "groups": None
        if found is None
        else [
            {
                "tasks": ", ".join(printable(name) for name in names),
                "within": "alone" if math.isnan(within) else _text(within),
            }
            for names, within in zip(found.names(study.tasks), found.within, strict=True)
        ],
        "between": "" if found is None or math.isnan(found.between) else _text(found.between),
    }


def _median(values: Tensor) -> str:
    known = values[values.isfinite()]
    return _text(float(known.quantile(0.5))) if len(known) else "–"


def _text(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def _charts(record: MethodRecord, groups: int | None) -> dict[str, Any]:
    """Return what the charts of one method draw."""
    windows = torch.arange(len(record.step)).chunk(_POINTS)
    step = torch.stack([record.step[window].double().mean() for window in windows])

    def lines(values: Tensor) -> list[list[float | None]]:
        return columns_of(torch.stack([values[w].nanmean(dim=0) for w in windows]).numpy())

    grouping = record.grouping(groups)
    return {
        "name": printable(record.label),
        "step": [round(value) for value in step.tolist()],
        "tasks": {name: lines(getattr(record, own)) for name, own in _LINES.items()},
        "pairs": {name: lines(getattr(record, name)) for name in _PAIRS},
        "affinity": _affinity(record),
        "order": list(range(record.affinity.shape[1]) if grouping is None else grouping.order),
    }


def _affinity(record: MethodRecord) -> list[dict[str, Any]]:
    """Return the matrix averaged over the whole training, then over parts of it."""
    parts = torch.arange(len(record.step)).chunk(_WINDOWS)
    windows = [torch.arange(len(record.step)), *(parts if len(parts) > 1 else ())]
    return [
        {
            "first": int(record.step[window[0]]),
            "last": int(record.step[window[-1]]),
            "values": columns_of(record.affinity[window].nanmean(dim=0).T.numpy()),
        }
        for window in windows
    ]
