"""A study's judgement as one page that opens with no network."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.report._html import rendered
from ntkmtl.bench.study.drawings import cost_figure, rank_figure, rate_figure, trade_figure
from ntkmtl.bench.study.judgement import MethodOnProblem, ProblemJudgement, StudyJudgement, mean_of
from ntkmtl.errors import imports_for
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_page"]


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
