"""The paper's figures, measured here: numbers as JSON, and the drawing as a PNG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.bench.paper._settings import differences, listing
from ntkmtl.bench.report._render import aligned
from ntkmtl.bench.report._words import printable, run_text
from ntkmtl.bench.report.figures import (
    COLORS,
    INK,
    MUTED,
    STYLE,
    eigenvalue_figure,
    new_figure,
    plain_text,
    set_title,
    write_figure,
)
from ntkmtl.errors import imports_for
from ntkmtl.files import finite, numbers_beside, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ntkmtl.bench.paper._results import PaperResult
    from ntkmtl.bench.paper._runs import Measured
    from ntkmtl.bench.paper._timing import Timed
    from ntkmtl.bench.report._analysis import Study


@dataclass(frozen=True)
class Drawn:
    """A figure's numbers.

    Attributes:
        result: The figure.
        problem: Name of the problem.
        subtitle: What was run, in a few words.
        heads: Heads of the numbers as a table.
        rows: The numbers as text cells.
        lines: Lines below: what the paper says, what differs, notes.
        numbers: Everything as JSON values.
    """

    result: PaperResult
    problem: str
    subtitle: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]
    numbers: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        plain: dict[str, Any] = finite(
            {
                "name": self.result.name,
                "title": self.result.title,
                "paper_says": self.result.said,
                "problem": self.problem,
                "notes": list(self.lines),
                **self.numbers,
            }
        )
        return plain


# ------------------------------------------------------------------------------------------------
# Numbers


def times(
    result: PaperResult, found: Sequence[Timed], facts: Mapping[str, Any], published: str
) -> Drawn:
    """Return the numbers of Figures 1 and 4: times by method and n.

    Args:
        result: The figure.
        found: What was measured.
        facts: What it depends on, as :func:`ntkmtl.bench.paper._timing.measure` returns it.
        published: Name of the problem that the paper timed.
    """
    rows = [
        (
            one.label,
            f"{1e3 * one.seconds:.3g}",
            f"{1e3 * one.lower:.3g} to {1e3 * one.upper:.3g}",
            "-" if one.seconds_per_epoch is None else f"{one.seconds_per_epoch:.3g}",
            f"{one.ratio:.2f}",
            f"{one.ratio_lower:.2f} to {one.ratio_upper:.2f}",
        )
        for one in found
    ]
    hardware = facts["hardware"]
    where = ", ".join(f"{key} {value}" for key, value in hardware.items() if value is not None)
    lines = [
        f"The paper: {result.said}",
        "Seconds per step are medians over turns, between quartiles; × LS is the median over "
        "turns of the time over that of LS just before, so it may differ from the ratio of the two "
        "medians. The bars show × LS, between quartiles.",
        f"Measured on {where}; batch size {facts['batch_size']}, {facts['tasks']} tasks.",
    ]
    if facts.get("load") is not None:
        lines.append(f"Load average before: {facts['load']:.1f}.")
    if facts["problem"] != published:
        lines.append(f"problem: {facts['problem']} here, {published} published")
    if facts.get("reduced"):
        lines.append(f"Reduced recipe: {facts['recipe']}")
    if "command" in facts:
        lines.append(f"Read from what this wrote: {facts['command']}")
    return Drawn(
        result=result,
        problem=facts["problem"],
        subtitle=f"{facts['problem']}: {facts['tasks']} tasks, batch {facts['batch_size']}",
        heads=("method", "ms per step", "quartiles", "s per epoch", "× LS", "quartiles"),
        rows=tuple(rows),
        lines=tuple(lines),
        numbers={"times": [asdict(one) for one in found], "facts": dict(facts)},
    )


def ablation(result: PaperResult, found: Mapping[int, Measured]) -> Drawn:
    """Return the numbers of Figure 3: Δm% by n.

    Raises:
        ValueError: Δm% is not known, as baselines are missing.
    """
    rows, numbers = [], []
    for n, each in found.items():
        (row,) = each.rows()
        if row.delta_m is None:
            raise ValueError(
                f"Δm% is not known for n = {n}: {' '.join(each.table.warnings)} "
                "Figure 3 needs the baselines: --stl trained or published"
            )
        stderr = row.delta_m.stderr
        rows.append(
            (
                str(n),
                f"{row.delta_m.mean:.2f}",
                "-" if stderr is None else f"{stderr:.2f}",
                str(len(row.seeds)),
                "-" if row.seconds_per_epoch is None else f"{row.seconds_per_epoch:.3g}",
            )
        )
        numbers.append(
            {
                "n": n,
                "delta_m": row.delta_m.mean,
                "stderr": stderr,
                "seeds": list(row.seeds),
                "seconds_per_epoch": row.seconds_per_epoch,
                "folder": str(each.prepared.folder),
            }
        )
    first = next(iter(found.values()))
    lines = [f"The paper: {result.said}", *_notes_of(result, first)]
    return Drawn(
        result=result,
        problem=first.prepared.problem.name,
        subtitle=run_text(first.table.problem, first.table.facts),
        heads=("n", "Δm%", "stderr", "seeds", "s per epoch"),
        rows=tuple(rows),
        lines=tuple(lines),
        numbers={
            "method": first.prepared.methods[0],
            "stl": first.prepared.request.stl,
            "by_n": numbers,
            "facts": first.table.facts,
        },
    )


def eigenvalues(result: PaperResult, study: Study, found: Measured) -> Drawn:
    """Return the numbers of Figure 2: each task's largest eigenvalue over training.

    ``study`` is of the records of the comparison ``found``.
    """
    record = study.methods[0]
    values = record.max_eigenvalues.numpy()
    known = np.isfinite(values).all(axis=1)
    smallest = values[known].argmin(axis=1) if known.any() else np.empty(0, dtype=np.int64)
    rows, numbers = [], []
    for task, name in enumerate(study.tasks):
        own = values[:, task]
        own = own[np.isfinite(own)]
        median = float(np.median(own)) if own.size else math.nan
        share = float((smallest == task).mean()) if smallest.size else math.nan
        rows.append((name, f"{median:.3g}", f"{100 * share:.0f} %"))
        numbers.append({"task": name, "median": median, "smallest": share})
    lines = [
        f"The paper: {result.said}",
        f"The kernel of {record.method}, source {record.source}: {len(record.step)} records, every "
        f"{record.every} steps. Smallest: the share of records in which the task's eigenvalue is "
        "below those of the others.",
        *study.notes,
        *_notes_of(result, found),
    ]
    return Drawn(
        result=result,
        problem=study.problem,
        subtitle=f"{run_text(found.table.problem, found.table.facts)}, {record.method}",
        heads=("task", "median eigenvalue", "smallest"),
        rows=tuple(rows),
        lines=tuple(lines),
        numbers={
            "method": record.method,
            "source": record.source,
            "every": record.every,
            "tasks": numbers,
            "step": record.step.tolist(),
            "max_eigenvalues": values.tolist(),
            "facts": found.table.facts,
        },
    )


def _notes_of(result: PaperResult, found: Measured) -> list[str]:
    prepared, facts = found.prepared, found.table.facts
    # Figure 3 varies n, so the recipe's n does not count as a difference.
    changed = [
        one
        for one in differences(facts, prepared.problem.name, found.part.problem)
        if not (one.setting == "n" and result.number == 3)
    ]
    lines = listing(changed) or ["nothing in the settings that are known"]
    if result.seeds is not None and len(facts["seeds"]) != result.seeds:
        lines.insert(0, f"seeds: {len(facts['seeds'])} here, {result.seeds} published")
    notes = ["Differs from the published training:", *(f"  {line}" for line in lines)]
    if prepared.problem.notice():
        notes.append(prepared.problem.notice())
    # A figure has no ranks, and no LS beside it.
    notes += [note for note in found.table.notes if not note.startswith(("MR:", "Time:"))]
    return [*notes, *(f"Warning: {warning}" for warning in found.table.warnings)]


# ------------------------------------------------------------------------------------------------
# Drawing


def draw(drawn: Drawn, path: Path) -> tuple[Path, Path]:
    """Write a figure and, beside it, its numbers.

    Args:
        drawn: The numbers.
        path: Where the PNG goes; the numbers get the ending ``.json``.

    Raises:
        ValueError: ``path`` ends in ``.json``.
        MissingExtraError: Matplotlib is not installed.
    """
    with imports_for("figures as files"):
        import matplotlib as mpl
    numbers = numbers_beside(path)
    make = {1: _bars, 2: _curves, 3: _points, 4: _bars}[drawn.result.number]
    with mpl.rc_context(STYLE):
        figure = make(drawn)
        write_figure(figure, path, "png")
    write_json(numbers, drawn.to_json())
    return path, numbers


def _bars(drawn: Drawn) -> Figure:
    """Draw one bar per method and n, as long as its ratio to LS times the time of LS.

    Bars, error bars and labels are all of the ratios: medians and quartiles over turns.
    """
    entries = drawn.numbers["times"]
    plain = entries[0]
    epochs = plain["seconds_per_epoch"] is not None
    scale = plain["seconds_per_epoch"] if epochs else 1e3 * plain["seconds"]
    middle = [one["ratio"] * scale for one in entries]
    errors = [
        [(one["ratio"] - one["ratio_lower"]) * scale for one in entries],
        [(one["ratio_upper"] - one["ratio"]) * scale for one in entries],
    ]
    names = [
        one["method"] + ("" if one["minibatches"] is None else f", n = {one['minibatches']}")
        for one in entries
    ]
    methods = list(dict.fromkeys(one["method"] for one in entries))
    figure, axes = new_figure(6.4, 1.1 + 0.3 * len(entries))
    place = np.arange(len(entries))
    axes.barh(
        place,
        middle,
        height=0.66,
        color=[COLORS[methods.index(one["method"]) % len(COLORS)] for one in entries],
        xerr=errors,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5},
    )
    right = max(m + e for m, e in zip(middle, errors[1], strict=True))
    for where, (value, error, one) in enumerate(zip(middle, errors[1], entries, strict=True)):
        axes.text(
            value + error + 0.015 * right,
            where,
            f"{one['ratio']:.2f} × LS",
            va="center",
            fontsize=8,
            color=MUTED,
        )
    axes.set_xlim(0, 1.18 * right)
    axes.set_yticks(place, [plain_text(name, 40) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    what = "Training time per epoch (s)" if epochs else "Time per training step (ms)"
    axes.set_xlabel(f"{what}: ratio to LS, times the median of LS")
    set_title(axes, drawn.subtitle, 80)
    return figure


def _points(drawn: Drawn) -> Figure:
    """Draw Delta-m over n with standard errors."""
    entries = drawn.numbers["by_n"]
    figure, axes = new_figure(5.6, 3.4)
    place = np.arange(len(entries))
    means = [one["delta_m"] for one in entries]
    axes.errorbar(
        place,
        means,
        yerr=[one["stderr"] or 0.0 for one in entries],
        color=COLORS[0],
        ecolor=INK,
        elinewidth=1,
        capsize=3,
        marker="o",
        linewidth=1.4,
    )
    # Numbers of mini-batches are names here: equal steps, as in the paper.
    axes.set_xticks(place, [str(one["n"]) for one in entries])
    axes.margins(x=0.08, y=0.15)
    axes.grid(axis="y")
    axes.set_xlabel(f"Mini-batches n of {plain_text(drawn.numbers['method'], 40)}")
    against = "the paper's STL row" if drawn.numbers["stl"] == "published" else "STL"
    axes.set_ylabel(f"Δm against {against} (%), lower is better")
    set_title(axes, drawn.subtitle, 80)
    return figure


def _curves(drawn: Drawn) -> Figure:
    numbers = drawn.numbers
    return eigenvalue_figure(
        np.array(numbers["step"]),
        np.array(numbers["max_eigenvalues"], dtype=np.float64),
        [task["task"] for task in numbers["tasks"]],
        title=printable(drawn.subtitle, 80),
        ylabel="Largest eigenvalue of the task's kernel",
        linewidth=1.3,
    )


def text_of(drawn: Drawn) -> str:
    """Return the numbers as aligned text, with the lines below them."""
    shown = aligned([drawn.heads, *drawn.rows])
    head = f"{drawn.result.label}: {drawn.result.title}"
    below = [printable(line, 2000) for line in drawn.lines]
    parts = [head, drawn.subtitle, "", shown[0], "-" * max(map(len, shown)), *shown[1:], ""]
    return "\n".join([*parts, *below]) + "\n"
