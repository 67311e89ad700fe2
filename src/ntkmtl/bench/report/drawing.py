"""What figures of the bench share: colors, style, and how a figure is made and written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.report._render import printable
from ntkmtl.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "DASHES",
    "GRID",
    "INK",
    "MUTED",
    "STYLE",
    "new_figure",
    "plain_text",
    "set_title",
    "write_figure",
]

INK, MUTED, GRID = "#1c2128", "#5b6570", "#e8ebef"
# Okabe and Ito's colors without black and yellow, and an olive; then the same dashed.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c7a2b")
DASHES = ("-", "--", ":", "-.")
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
    "grid.color": GRID,
    # Equal figures get equal bytes.
    "svg.hashsalt": "ntkmtl",
}


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
