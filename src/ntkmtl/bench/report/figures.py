"""Figures of a comparison as PNG and SVG files, and the style of the bench's figures."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench.report._build import table_of
from ntkmtl.bench.report._curves import Series, series_of
from ntkmtl.bench.report._runs import load
from ntkmtl.bench.report._table import MethodRow, ResultTable
from ntkmtl.bench.report._words import printable, run_text
from ntkmtl.bench.runs import folder_name
from ntkmtl.errors import imports_for
from ntkmtl.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "INK",
    "MUTED",
    "STYLE",
    "eigenvalue_figure",
    "new_figure",
    "plain_text",
    "save_figures",
    "set_title",
    "write_figure",
]

INK, MUTED = "#1c2128", "#5b6570"
# Okabe and Ito's colors without black and yellow, and an olive; then the same dashed.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c7a2b")
_DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#e8ebef",
    # Equal figures get equal bytes.
    "svg.hashsalt": "ntkmtl",
}

_POINTS = 60
"""Windows of steps that a curve averages over: eigenvalues of single steps are noisy."""


def save_figures(
    runs_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    method: str | None = None,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw Delta-m by method, and the tasks' eigenvalues over training (the paper's Figure 2).

    The files are named ``PROBLEM-delta-m`` and ``PROBLEM-eigenvalues``. A figure without data is
    left out: Delta-m without STL, eigenvalues without a method that reads them.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``.
        out_dir: Folder for the files, made if there is none.
        method: The method whose eigenvalues to draw; the one of lowest Delta-m (else of lowest mean
            rank) that has eigenvalues if None.
        formats: Endings of the files, as matplotlib knows them.

    Returns:
        The paths of the files.

    Raises:
        FileNotFoundError: There is no folder ``runs_dir``.
        ValueError: No run in it is complete, a file cannot be read, or ``method`` has no
            eigenvalues.
        MissingExtraError: Matplotlib is not installed.
    """
    with imports_for("figures as files"):
        import matplotlib as mpl

    written = []
    with mpl.rc_context(STYLE):
        for problem, runs in load(runs_dir).items():
            table = table_of(runs)
            methods = [row.method for row in table.rows if not row.is_baseline]
            series = series_of(runs, "eigenvalues", methods, _POINTS)
            for name, figure in _figures(table, series, method):
                for ending in formats:
                    path = Path(out_dir) / f"{folder_name(problem)}-{name}.{ending}"
                    write_figure(figure, path, ending)
                    written.append(path)
    return written


def _figures(
    table: ResultTable, series: dict[str, Series], method: str | None
) -> Iterator[tuple[str, Figure]]:
    rows = [
        row
        for row in table.rows
        if row.delta_m is not None and math.isfinite(row.delta_m.mean)
    ]  # fmt: skip
    if rows:
        yield "delta-m", _delta_m(table, rows)
    if method is not None and method not in series:
        raise ValueError(
            f"{method!r} has no eigenvalues on {table.problem!r}; "
            f"methods that have: {', '.join(series) or 'none'}"
        )
    if series:
        chosen = method or min(series, key=lambda name: _worth(table.row(name)))
        yield "eigenvalues", _eigenvalues(table, series[chosen], chosen)


def _worth(row: MethodRow) -> float:
    if row.delta_m is not None and math.isfinite(row.delta_m.mean):
        return row.delta_m.mean
    return math.inf if row.mean_rank is None else row.mean_rank


def _delta_m(table: ResultTable, rows: Sequence[MethodRow]) -> Figure:
    """Draw bars of Delta-m, the best on top."""
    order = sorted(rows, key=_worth)
    figure, axes = new_figure(6.4, 1.1 + 0.27 * len(order))
    place = np.arange(len(order))
    means = [row.delta_m.mean for row in order if row.delta_m is not None]
    errors = [row.delta_m.stderr or 0.0 for row in order if row.delta_m is not None]
    colors = [COLORS[0] if mean < 0 else COLORS[1] for mean in means]
    axes.barh(place, means, height=0.66, color=colors)
    if any(errors):
        axes.errorbar(means, place, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(place, [plain_text(row.label, 40) for row in order])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Δm against single-task learning (%), lower is better")
    set_title(axes, run_text(printable(table.problem, 40), table.facts))
    return figure


def _eigenvalues(table: ResultTable, series: Series, method: str) -> Figure:
    window = round(series.window)
    about = f"{run_text(printable(table.problem, 40), table.facts)}, {printable(method, 40)}"
    return eigenvalue_figure(
        series.step,
        series.values,
        table.facts["tasks"],
        title=about,
        xlabel=f"Step (means over windows of {window} steps)" if window > 1 else "Step",
        ylabel="Largest eigenvalue",
        linewidth=1.2,
    )


def eigenvalue_figure(
    step: NDArray[Any],
    values: NDArray[np.float64],
    tasks: Sequence[str],
    *,
    title: str,
    xlabel: str = "Step",
    ylabel: str,
    linewidth: float,
) -> Figure:
    """Draw the largest eigenvalue of each task's kernel, shape (T, k), over the steps, (T,)."""
    legend_columns = math.ceil(len(tasks) / 16)
    figure, axes = new_figure(5.6 + 1.2 * legend_columns, 3.6)
    lines = []
    for task, own in enumerate(values.T):
        known = np.isfinite(own)
        lines += axes.plot(
            step[known],
            own[known],
            color=COLORS[task % len(COLORS)],
            linestyle=_DASHES[task // len(COLORS) % len(_DASHES)],
            linewidth=linewidth,
            marker="o" if known.sum() == 1 else "",
        )
    present = values[np.isfinite(values)]
    if present.size and (present > 0).all():
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.01)
    axes.grid(axis="y")
    set_title(axes, title)
    # Given the lines, the legend keeps names that begin with an underscore.
    axes.legend(
        handles=lines,
        labels=[plain_text(name, 24) for name in tasks],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
        ncols=legend_columns,
    )
    return figure


# ------------------------------------------------------------------------------------------------
# Parts of figures


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one plot; width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def set_title(axes: Axes, text: str, longest: int = 160) -> None:
    """Write a title on the left, cut to its ``longest`` characters."""
    axes.set_title(plain_text(text, longest), loc="left", fontsize=9.5, color=MUTED)


def plain_text(text: str, longest: int) -> str:
    """Return a text with dollar signs escaped, which matplotlib would read as mathematics."""
    return printable(text, longest).replace("$", r"\$")


def write_figure(figure: Figure, path: Path, ending: str) -> None:
    """Write a figure as the format that ``ending`` names; equal figures get equal bytes."""
    buffer = io.BytesIO()
    undated = {"Date": None} if ending == "svg" else None
    figure.savefig(buffer, format=ending, dpi=200, metadata=undated)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
