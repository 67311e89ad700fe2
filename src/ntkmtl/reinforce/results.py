"""Success rates of finished runs: the table and the curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ntkmtl.errors import missing_extra
from ntkmtl.files import atomic_write
from ntkmtl.reinforce.training import PROBLEM
from ntkmtl.training.runs import SINGLE_TASK, Run, folder_name, load_runs

__all__ = ["Success", "as_markdown", "bootstrap", "interquartile_mean", "save_curves", "summarise"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Success:
    """What a row came to over its seeds, in percent.

    Attributes:
        row: Its name.
        seeds: The seeds whose runs are complete.
        tasks: Names of the k tasks.
        steps: Vector steps at the T evaluations.
        curves: Success per seed, evaluation and task, shape (seeds, T, k).
        reduced: Whether the recipe was a reduced one.
    """

    row: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    curves: Array
    reduced: bool

    @property
    def over_time(self) -> Array:
        """Mean over tasks, shape (seeds, T)."""
        means: Array = self.curves.mean(axis=2)
        return means

    @property
    def best(self) -> float:
        """Maximum over time of the mean over seeds: what Table 4 reports.

        A maximum over evaluations is higher than what a trained agent does.
        """
        return float(self.over_time.mean(axis=0).max())

    @property
    def final(self) -> float:
        """Mean over seeds after the last step."""
        return float(self.over_time[:, -1].mean())

    @property
    def final_interquartile_mean(self) -> float:
        """Interquartile mean over seeds and tasks after the last step."""
        return interquartile_mean(self.curves[:, -1])

    def interval(self, draws: int = 2000, seed: int = 0) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval of :attr:`final` over seeds; None for one seed."""
        return bootstrap(self.over_time[:, -1], draws, seed)

    @property
    def per_task(self) -> tuple[float, ...]:
        """Mean over seeds of each task after the last step."""
        return tuple(self.curves[:, -1].mean(axis=0).tolist())


def interquartile_mean(values: Array) -> float:
    """Return the mean of the middle half of all values, those at its ends in part.

    Example:
        >>> import numpy as np
        >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
        1.5
        >>> interquartile_mean(np.array([1.0, 2.0, 6.0]))  # 0.25 and 0.25 of the ends
        2.5
    """
    ordered = np.sort(values.reshape(-1))
    n = len(ordered)
    # Value i covers [i, i + 1]; what of it lies in the middle half is its weight.
    edges = np.arange(n, dtype=np.float64)
    weights = np.clip(np.minimum(edges + 1, 0.75 * n) - np.maximum(edges, 0.25 * n), 0.0, None)
    return float((weights * ordered).sum() / weights.sum())


def bootstrap(values: Array, draws: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean over resampled seeds; None for one seed.

    Example:
        >>> import numpy as np
        >>> bootstrap(np.array([3.0, 3.0]))
        (3.0, 3.0)
    """
    if len(values) < 2:
        return None
    generator = np.random.default_rng(seed)
    at = generator.integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[at].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(out: str | os.PathLike[str]) -> list[Success]:
    """Read the finished runs of a comparison.

    Args:
        out: The folder that the comparison was given.

    Returns:
        One entry per row, in the order of Table 4. A single-task row counts a seed once all of its
        tasks are complete.

    Raises:
        ValueError: There are no finished runs, or they are of different recipes.
    """
    from ntkmtl.reinforce.recipes import ROWS

    folder = Path(out) / folder_name(PROBLEM)
    runs = load_runs(folder)[0] if folder.is_dir() else []
    if not runs:
        raise ValueError(f"{folder} holds no finished runs; train some with `ntkmtl reinforce`")
    first = dict(runs[0].config.problem_options)
    for run in runs:
        if dict(run.config.problem_options) != first:
            raise ValueError(
                f"{run.path} was trained by another recipe than {runs[0].path}; give each its own "
                "folder"
            )
    tasks = tuple(first["tasks"])
    grouped: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.config.method, {}).setdefault(run.config.seed, []).append(run)
    order = {name: place for place, name in enumerate(ROWS)}
    found = []
    for row in sorted(grouped, key=lambda name: (order.get(name, len(order)), name)):
        curves, seeds = [], []
        for seed, own in sorted(grouped[row].items()):
            by_task = {task: run for run in own for task in run.config.tasks}
            if set(by_task) != set(tasks):
                continue
            columns = [
                [epoch.val[by_task[task].config.tasks.index(task)] for epoch in run_history]
                for task in tasks
                for run_history in (by_task[task].history,)
            ]
            curves.append(np.array(columns, dtype=np.float64).T)
            seeds.append(seed)
        if not curves:
            continue
        steps = tuple(
            first["evaluate_every"] * (number + 1) for number in range(curves[0].shape[0])
        )
        found.append(
            Success(
                row, tuple(seeds), tasks, steps, np.stack(curves), runs[0].config.recipe["reduced"]
            )
        )
    if not found:
        raise ValueError(f"{folder} holds no seed with all {SINGLE_TASK} runs complete")
    return found


def as_markdown(found: Sequence[Success]) -> str:
    """Return the table of success rates in percent as Markdown."""
    heads = ["row", "seeds", "final", "95 % interval", "IQM", "max over time", *found[0].tasks]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for entry in found:
        interval = entry.interval()
        cells = [
            entry.row,
            str(len(entry.seeds)),
            f"{entry.final:.1f}",
            "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
            f"{entry.final_interquartile_mean:.1f}",
            f"{entry.best:.1f}",
            *(f"{value:.0f}" for value in entry.per_task),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save_curves(found: Sequence[Success], path: str | os.PathLike[str]) -> None:
    """Draw success over training, mean over seeds and their range, as a PNG or SVG file.

    Args:
        found: The rows.
        path: The file; its suffix says which kind.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("a figure", "bench", error) from error
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for entry in found:
        mean = entry.over_time.mean(axis=0)
        (line,) = axes.plot(entry.steps, mean, label=f"{entry.row} ({len(entry.seeds)})")
        if len(entry.seeds) > 1:
            low, high = entry.over_time.min(axis=0), entry.over_time.max(axis=0)
            axes.fill_between(entry.steps, low, high, color=line.get_color(), alpha=0.12, lw=0)
    axes.set(xlabel="vector steps", ylabel="success, mean over tasks (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="row (seeds)")
    with atomic_write(path) as file:
        figure.savefig(file, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
