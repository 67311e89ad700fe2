"""A study's judgement as one page that opens with no network, and its figures."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench.report._html import rendered
from ntkmtl.bench.study.inference import Ranking, posthocs
from ntkmtl.bench.study.judgement import (
    MethodOnProblem,
    Overall,
    ProblemJudgement,
    StudyJudgement,
    mean_of,
)
from ntkmtl.bench.study.plan import REFERENCE
from ntkmtl.errors import imports_for
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "cost_figure",
    "pareto_front",
    "rank_figure",
    "rate_figure",
    "trade_figure",
    "write_page",
]

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Equal figures get equal bytes.
    "svg.hashsalt": "ntkmtl",
}


def write_page(judgement: StudyJudgement, output: Path) -> Path:
    """Write a judgement as one HTML file: words, diagram, costs, and a table for each problem.

    Args:
        judgement: The judgement.
        output: Where to write.

    Returns:
        The path of the page.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    with imports_for("the page of a study"):
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    text = rendered(
        Path(__file__).parent / "templates" / "study.html.jinja",
        words=judgement.words,
        ranks=None if judgement.ranking is None else _svg(rank_figure(judgement.ranking)),
        costs=_svg(cost_figure(judgement.overall)),
        problems=[_problem(problem) for problem in judgement.problems],
    )
    write_text(output, text)
    return output


def _problem(problem: ProblemJudgement) -> dict[str, Any]:
    trades = len(problem.metrics) == 2 and any(len(row.tasks) == 2 for row in problem.methods)
    rows = sorted(problem.methods, key=lambda row: math.inf if row.mean is None else row.mean)
    return {
        "name": problem.problem,
        "rates": ", ".join(f"{t} {rate:g}" for t, rate in problem.single_task_rates.items()),
        "rows": [_row(row) for row in rows],
        "sensitivity": _svg(rate_figure(problem)),
        "trades": _svg(trade_figure(problem)) if trades else None,
    }


def _row(row: MethodOnProblem) -> list[str]:
    return [
        row.method,
        _spread(row.published),
        _spread(row.tuned),
        "" if row.p_value is None else f"{row.p_value:.2g}",
        "recipe's" if row.learning_rate is None else f"{row.learning_rate:g}",
        "" if row.step_ratio is None else f"{row.step_ratio:.2f}",
        f"{row.tuning_seconds:.0f}",
    ]


def _spread(values: list[float | None]) -> str:
    """Return mean and half the range over seeds."""
    if not values:
        return "not tuned"
    known = [value for value in values if value is not None]
    mean = mean_of(values)
    if mean is None:
        return f"{len(values) - len(known)} of {len(values)} diverged"
    return f"{mean:.1f} ± {(max(known) - min(known)) / 2:.1f}"


def _svg(figure: Figure) -> Any:
    """Return a figure as SVG for a page, without the lines that a file begins with."""
    from markupsafe import Markup

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


# ------------------------------------------------------------------------------------------------
# Figures


@contextlib.contextmanager
def _drawn(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def rank_figure(ranking: Ranking) -> Figure:
    """Draw the critical-difference diagram: a bar joins methods that cannot be distinguished.

    Raises:
        MissingExtraError: scikit-posthocs is not installed.
    """
    import pandas

    names = [f"{name} " for name in ranking.methods]
    table = pandas.DataFrame(ranking.pairs, index=names, columns=names)
    with _drawn(7.5, 0.6 + 0.24 * len(names)) as (figure, axes):
        posthocs().critical_difference_diagram(
            dict(zip(names, ranking.ranks, strict=True)), table, ax=axes
        )
        # The bars join methods in the order of a set, which differs from process to process.
        for line in axes.lines:
            x, y = np.asarray(line.get_data(), dtype=float)
            if len(np.unique(y)) == 1:
                line.set_data(np.sort(x), y)
    return figure


def cost_figure(overall: Sequence[Overall]) -> Figure:
    """Draw the difference to the plain sum against the time of a step."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with _drawn(7.0, 4.4) as (figure, axes):
        points = []
        for entry in overall:
            if entry.difference is None or entry.step_ratio is None:
                continue
            found = entry.difference
            errors = [[found.mean - found.low], [found.high - found.mean]]
            axes.errorbar(entry.step_ratio, found.mean, yerr=errors, fmt="o", capsize=2)
            points.append((entry.method, entry.step_ratio, found.mean))
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        axes.margins(x=0.12)
        low, high = axes.get_xlim()
        axes.set_xticks([tick for tick in (0.5, 1, 1.5, 2, 3, 4, 6, 10, 20) if low < tick < high])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"time of a training step, times that of {REFERENCE}")
        axes.set_ylabel(f"Δm minus that of {REFERENCE}, in points (below 0: better)")
        _label(axes, points)
    return figure


def _label(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names to the right of points, moved up where they would cover a name or a point."""
    axes.figure.canvas.draw()
    places = [axes.transData.transform((x, y)) for _, x, y in points]
    taken: list[tuple[float, float]] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
        across, up = axes.transData.transform((x, y))
        at = up
        while any(abs(across - a) < 75 and abs(at - u) < 13 for a, u in taken) or any(
            0 < a - across < 85 and abs(at - u) < 17 for a, u in places
        ):
            at += 2
        taken.append((across, at))
        axes.annotate(
            name,
            (x, y),
            xytext=(6, (at - up) * 72 / axes.figure.dpi - 3),
            textcoords="offset points",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
        )


def rate_figure(problem: ProblemJudgement) -> Figure:
    """Draw what every trial scored against its learning rate."""
    with _drawn(7.0, 4.2) as (figure, axes):
        for row in problem.methods:
            points = sorted((rate, value) for rate, value in row.trials if value is not None)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=row.method)
        axes.set_xscale("log")
        # One trial that nearly diverged would flatten all others.
        axes.set_yscale("symlog", linthresh=10)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("Δm on the validation split, %")
        if axes.has_data():
            axes.legend(fontsize=7, ncols=2)
    return figure


def trade_figure(problem: ProblemJudgement) -> Figure:
    """Draw one metric against the other, for problems of two.

    Dots are the final runs of each method; the line goes through those trials of fixed weights
    that no other trial of them beats in both metrics.
    """
    with _drawn(5.2, 4.6) as (figure, axes):
        fixed = problem.of("fixed")
        if fixed is not None and (front := pareto_front(fixed.tried)):
            axes.plot(*zip(*front, strict=True), "-", color="0.7", label="trials of fixed weights")
            axes.legend(fontsize=7)
        for row in problem.methods:
            if len(row.tasks) == 2:
                axes.plot(*row.tasks, "o")
                axes.annotate(
                    row.method,
                    (row.tasks[0], row.tasks[1]),
                    xytext=(4, 3),
                    textcoords="offset points",
                )
        for place, name in enumerate(problem.metrics):
            label = axes.set_ylabel if place else axes.set_xlabel
            label(f"{name}: Δm, %")
    return figure


def pareto_front(points: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the points of two numbers that no other is below in both, from left to right.

    Example:
        >>> pareto_front([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
        [[1.0, 2.0], [3.0, 1.0]]
    """
    front: list[Sequence[float]] = []
    for point in sorted(points, key=lambda p: (p[0], p[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
