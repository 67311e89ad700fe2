"""Success rates of finished runs: the table and the curves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ntkmtl.bench.reinforce.recipes import VARIANTS
from ntkmtl.bench.reinforce.training import PROBLEM
from ntkmtl.bench.runs import SINGLE_TASK, Run, folder_name, load_runs
from ntkmtl.errors import imports_for
from ntkmtl.files import atomic_write

__all__ = [
    "NOT_COMPARABLE",
    "Success",
    "as_markdown",
    "bootstrap",
    "interquartile_mean",
    "save_curves",
    "section",
    "summarize",
]

Array = npt.NDArray[np.float64]

CURVES, FRAMES = "success.png", "frames"
"""Where a comparison's folder has its curves and, one file per row, its strips of frames."""


@dataclass(frozen=True, eq=False)
class Success:
    """Success of a variant over its seeds, in percent.

    Attributes:
        variant: Its name.
        seeds: The seeds whose runs are complete.
        tasks: Names of the k tasks.
        steps: Vector steps at the T evaluations.
        curves: Success per seed, evaluation and task, shape (seeds, T, k).
        reduced: Whether the recipe was a reduced one.

    Example:
        >>> curves = np.array([[[0.0, 0.0], [100.0, 50.0]]])  # one seed, two evaluations, two tasks
        >>> success = Success("mtl-sac", (0,), ("reach", "push"), (500, 1000), curves, True)
        >>> success.best
        75.0
    """

    variant: str
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
    def best_stderr(self) -> float | None:
        """Standard error over seeds at the evaluation of :attr:`best`; None for one seed."""
        return _stderr(self.over_time[:, self.over_time.mean(axis=0).argmax()])

    @property
    def late(self) -> Array:
        """Mean over the last third of the evaluations, at least one, shape (seeds,).

        Where an evaluation is one episode per task it says more than the last one alone.
        """
        count = max(1, self.curves.shape[1] // 3)
        means: Array = self.over_time[:, -count:].mean(axis=1)
        return means

    @property
    def late_stderr(self) -> float | None:
        """Standard error of the mean of :attr:`late` over seeds; None for one seed."""
        return _stderr(self.late)

    @property
    def final(self) -> float:
        """Mean over seeds after the last step."""
        return float(self.over_time[:, -1].mean())

    @property
    def final_interquartile_mean(self) -> float:
        """Interquartile mean over seeds and tasks after the last step."""
        return interquartile_mean(self.curves[:, -1])

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval of :attr:`final` over seeds; None for one seed."""
        return bootstrap(self.over_time[:, -1], np.mean)

    def interquartile_interval(self) -> tuple[float, float] | None:
        """Return that of :attr:`final_interquartile_mean`: each draw is of whole seeds."""
        return bootstrap(self.curves[:, -1], interquartile_mean)

    @property
    def per_task(self) -> tuple[float, ...]:
        """Mean over seeds of each task after the last step."""
        return tuple(self.curves[:, -1].mean(axis=0).tolist())


def _stderr(values: Array) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def interquartile_mean(values: Array) -> float:
    """Return the mean of the middle half of all values: a quarter is cut off at each end.

    The number to cut is rounded down, as ``scipy.stats.trim_mean`` and rliable do.

    Example:
        >>> import numpy as np
        >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
        1.5
        >>> interquartile_mean(np.array([1.0, 2.0, 6.0]))
        3.0
    """
    with imports_for("an interquartile mean"):
        from scipy.stats import trim_mean
    return float(trim_mean(values.reshape(-1), 0.25))


def bootstrap(
    values: Array, statistic: Callable[[Array], float], draws: int = 2000
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a statistic over resampled seeds.

    Args:
        values: One entry per seed, shape (seeds, ...).
        statistic: From an array of that shape to a number.
        draws: Number of resamples.

    Returns:
        Its two ends; None for one seed.

    Example:
        >>> import numpy as np
        >>> bootstrap(np.array([3.0, 3.0]), np.mean)
        (3.0, 3.0)
    """
    if len(values) < 2:
        return None
    with imports_for("a bootstrap interval"):
        from scipy import stats
    # Positions are drawn, so that a statistic of several columns sees whole seeds.
    interval = stats.bootstrap(
        (np.arange(len(values)),),
        lambda at: statistic(values[at]),
        n_resamples=draws,
        vectorized=False,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarize(out: str | os.PathLike[str]) -> list[Success]:
    """Read the finished runs of a comparison.

    Args:
        out: The folder that the comparison was given.

    Returns:
        One entry per row, in the order of Table 4. A single-task row counts a seed once all of its
        tasks are complete.

    Raises:
        ValueError: There are no finished runs, or they are of different recipes.
    """
    folder = Path(out) / folder_name(PROBLEM)
    runs = load_runs(folder)[0] if folder.is_dir() else []
    if not runs:
        raise ValueError(f"{folder} holds no finished runs; train some with `ntkmtl compare mt10`")
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
    order = {name: place for place, name in enumerate(VARIANTS)}
    found = []
    for variant in sorted(grouped, key=lambda name: (order.get(name, len(order)), name)):
        curves, seeds = [], []
        for seed, own in sorted(grouped[variant].items()):
            by_task = {task: run for run in own for task in run.config.tasks}
            if set(by_task) != set(tasks):
                continue
            columns = [_curve(by_task[task], task) for task in tasks]
            curves.append(np.array(columns, dtype=np.float64).T)
            seeds.append(seed)
        if not curves:
            continue
        every, reduced = first["evaluate_every"], runs[0].config.recipe["reduced"]
        steps = tuple(every * (number + 1) for number in range(len(curves[0])))
        found.append(Success(variant, tuple(seeds), tasks, steps, np.stack(curves), reduced))
    if not found:
        raise ValueError(f"{folder} holds no seed with all {SINGLE_TASK} runs complete")
    return found


def _curve(run: Run, task: str) -> list[float]:
    place = run.config.tasks.index(task)
    return [epoch.val[place] for epoch in run.history]


HEADS = (
    "row",
    "seeds",
    "max over time",
    "last third",
    "final",
    "95 % interval",
    "final IQM",
    "95 % interval",
)


def cells(entry: Success) -> list[str]:
    """Return a row of the table of success rates in percent; the tasks are last."""

    def ends(found: tuple[float, float] | None) -> str:
        return "" if found is None else f"{found[0]:.1f} to {found[1]:.1f}"

    def with_error(value: float, error: float | None) -> str:
        return f"{value:.1f}" + ("" if error is None else f" ± {error:.1f}")

    return [
        entry.variant,
        str(len(entry.seeds)),
        with_error(entry.best, entry.best_stderr),
        with_error(float(entry.late.mean()), entry.late_stderr),
        f"{entry.final:.1f}",
        ends(entry.interval()),
        f"{entry.final_interquartile_mean:.1f}",
        ends(entry.interquartile_interval()),
        *(f"{value:.0f}" for value in entry.per_task),
    ]


def as_markdown(found: Sequence[Success]) -> str:
    """Return the table of success rates in percent as Markdown."""
    heads = [*HEADS, *found[0].tasks]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(cells(entry)) + " |" for entry in found]
    return "\n".join(lines) + "\n"


def save_curves(found: Sequence[Success], path: str | os.PathLike[str]) -> None:
    """Draw success over training, its mean over tasks and each task, as a PNG or SVG file.

    Lines are means over seeds. With up to three rows the band around the mean over tasks is the
    seeds' range. From 20 evaluations on, means over five in a row are drawn, and the evaluations
    themselves faintly.

    Args:
        found: The rows.
        path: The file; its suffix says which kind.

    Raises:
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> curves = np.array([[[0.0, 0.0], [100.0, 50.0]]])
        >>> success = Success("mtl-sac", (0,), ("reach", "push"), (500, 1000), curves, True)
        >>> path = Path(tempfile.mkdtemp()) / "success.svg"
        >>> save_curves([success], path)
        >>> path.exists()
        True
    """
    with imports_for("a figure"):
        from matplotlib.ticker import EngFormatter, MaxNLocator
    tasks = found[0].tasks
    figure, axes, small = _panels(len(tasks))
    # Seven colors, then the same dashed.
    styles = [(f"C{n % 7}", "--" if n >= 7 else "-") for n in range(len(found))]
    for entry, (color, dash) in zip(found, styles, strict=True):
        line: dict[str, Any] = {"color": color, "linestyle": dash}
        label = f"{entry.variant} ({len(entry.seeds)})"
        _draw(axes, entry.steps, entry.over_time.mean(axis=0), label=label, **line)
        if len(entry.seeds) > 1 and len(found) <= 3:
            low, high = entry.over_time.min(axis=0), entry.over_time.max(axis=0)
            axes.fill_between(entry.steps, low, high, color=color, alpha=0.12, lw=0)
        for panel, curve in zip(small, entry.curves.mean(axis=0).T, strict=True):
            _draw(panel, entry.steps, curve, lw=1, **line)
    axes.set(xlabel="vector steps", ylabel="success, mean over tasks (%)", ylim=(-2, 102))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 300k: of 300000 no two fit below a panel
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="row (seeds)", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for panel, task in zip(small, tasks, strict=True):
        panel.set_title(task, fontsize=8)
        panel.set_ylim(-5, 105)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format=Path(path).suffix.lstrip(".") or "png", dpi=150)


def _panels(tasks: int) -> tuple[Any, Any, list[Any]]:
    """Return a figure, its wide panel, and below it a small panel for each task."""
    from matplotlib.figure import Figure

    wide = min(tasks, 5)
    deep = math.ceil(tasks / wide)
    figure = Figure(figsize=(max(7.5, 1.9 * wide), 3.6 + 1.7 * deep), layout="constrained")
    grid = figure.add_gridspec(deep + 1, wide, height_ratios=[3.6, *[1.7] * deep])
    axes = figure.add_subplot(grid[0, :])
    small: list[Any] = []
    for place in range(tasks):
        first = small[0] if small else None
        spot = grid[1 + place // wide, place % wide]
        small.append(figure.add_subplot(spot, sharex=first, sharey=first))
    return figure, axes, small


def _draw(axes: Any, steps: Sequence[int], values: Array, **line: Any) -> None:
    if len(values) < 20:
        axes.plot(steps, values, **line)
        return
    faint = {**line, "lw": 0.6, "alpha": 0.3, "label": None}
    axes.plot(steps, values, **faint)
    axes.plot(steps[2:-2], np.convolve(values, np.full(5, 0.2), mode="valid"), **line)


NOT_COMPARABLE = (
    "Success in percent on V3 tasks with V2 rewards: not comparable with Table 4, which is of V1 "
    "tasks."
)


def section(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a report shows of success over training.

    Returns:
        ``heads`` and ``rows`` of text, ``notes``, and ``pictures``: PNG files with captions, as far
        as the command has drawn them. Where no row is complete or recipes are mixed there are no
        ``rows``, and the note says so.
    """
    try:
        found = summarize(out)
    except ValueError as error:
        return {"heads": [], "rows": [], "notes": [f"Not shown: {error}."], "pictures": []}
    caption = (
        "Success over training: mean over tasks, then each task; bold, means of five evaluations."
    )
    pictures = [(Path(out) / CURVES, caption)]
    for entry in found:
        seed = entry.seeds[0]
        caption = f"{entry.variant}, seed {seed}: one deterministic episode per task, goal 0."
        pictures.append((Path(out) / FRAMES / f"{folder_name(entry.variant)}.png", caption))
    return {
        "heads": [*HEADS, *found[0].tasks],
        "rows": [cells(entry) for entry in found],
        "notes": [
            NOT_COMPARABLE,
            "Max over time: the best evaluation of the mean over seeds, ± its standard error, as "
            "in Table 4. Last third: mean over the last third of the evaluations. Final: after the "
            "last step. IQM: interquartile mean over seeds and "
            "tasks. Intervals: 95 % bootstrap over seeds.",
        ],
        "pictures": [(path, caption) for path, caption in pictures if path.exists()],
    }
