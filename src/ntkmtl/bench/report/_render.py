"""The table as text, Markdown, LaTeX, CSV, JSON, or for a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ntkmtl.bench.report._table import MethodRow, ResultTable, SeedMean, plain_label
from ntkmtl.bench.report._words import printable
from ntkmtl.errors import imports_for
from ntkmtl.files import finite

if TYPE_CHECKING:
    import rich.console
    import rich.table
    from rich.text import Text

FORMATS = ("text", "markdown", "latex", "csv", "json")
"""The formats of :func:`render`."""

_DASH = "-"


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Attributes:
        key: Name for machines.
        label: Name for people.
        unit: Physical unit, ``""`` for none.
        higher_is_better: Direction, None where neither is.
    """

    key: str
    label: str
    unit: str = ""
    higher_is_better: bool | None = None

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else nothing."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    def text(self, separator: str = " ") -> str:
        """Return label, unit and arrow in one."""
        unit = f"({self.unit})" if self.unit else ""
        return separator.join(part for part in (self.label, unit, self.arrow) if part)


@dataclass(frozen=True)
class TableCell:
    """One number as shown.

    Attributes:
        text: The number, or ``-``.
        stderr: Its standard error, ``""`` where there is none.
        value: The number in full, None where there is none.
        best: Whether it is the best of its column.
    """

    text: str = _DASH
    stderr: str = ""
    value: float | None = None
    best: bool = False

    def plain(self, mark: Callable[[str], str], join: str) -> str:
        """Return number and standard error in one, the number marked where it is the best."""
        number = mark(self.text) if self.best else self.text
        return f"{number}{join}{self.stderr}" if self.stderr else number


def layout(table: ResultTable) -> tuple[list[Head], list[list[TableCell]]]:
    """Return heads and rows of cells: the metrics, MR, Delta-m and relative time.

    The best cell of a column is the best among the multi-task methods as shown, so methods that
    show the same number are best together. Time has no best, as LS is the floor.

    Returns:
        One head per column, and one list of cells per line of the table.
    """
    heads = [Head(c.name, c.label, c.unit, c.higher_is_better) for c in table.columns]
    heads += [
        Head("mean_rank", "MR", higher_is_better=False),
        Head("delta_m", "Δm", "%", higher_is_better=False),
        Head("relative_time", "time", f"× {plain_label(table.problem)}"),
    ]
    lines = [
        (*row.estimates, _exact(row.mean_rank), row.delta_m, row.relative_time)
        for row in table.lines
    ]
    decimals = [*(None for _ in table.columns), 2, 2, 2]
    columns = [
        _cells(table.lines, [line[place] for line in lines], head, decimals[place])
        for place, head in enumerate(heads)
    ]
    return heads, [list(cells) for cells in zip(*columns, strict=True)]


def _exact(value: float | None) -> SeedMean | None:
    return None if value is None else SeedMean(value, None, 1)


def _cells(
    rows: Sequence[MethodRow],
    estimates: Sequence[SeedMean | None],
    head: Head,
    decimals: int | None,
) -> list[TableCell]:
    if decimals is None:
        decimals = _decimals([estimate.mean for estimate in estimates if estimate is not None])
    shown = [
        TableCell() if e is None else TableCell(
            _number(e.mean, decimals),
            "" if e.stderr is None else _number(e.stderr, decimals),
            e.mean,
        )
        for e in estimates
    ]  # fmt: skip
    ranked = [
        cell.value
        for row, cell in zip(rows, shown, strict=True)
        if not row.is_baseline and cell.value is not None and math.isfinite(cell.value)
    ]
    if head.higher_is_better is None or len(ranked) < 2:
        return shown
    best = _number(max(ranked) if head.higher_is_better else min(ranked), decimals)
    return [
        replace(cell, best=not row.is_baseline and cell.text == best)
        for row, cell in zip(rows, shown, strict=True)
    ]


_MOST_DECIMALS = 8


def _decimals(values: Sequence[float]) -> int:
    """Return how many decimals show three to four significant digits of a typical value.

    Example:
        >>> [_decimals([value]) for value in (1e-10, 0.1064, 5.901, 73.57, 179.8, 12345.6)]
        [12, 3, 2, 2, 1, 0]
    """
    sizes = [abs(value) for value in values if value != 0 and math.isfinite(value)]
    if not sizes:
        return 2
    magnitude = math.floor(math.log10(statistics.median_low(sizes)))
    return max((3 if magnitude >= 1 else 2) - magnitude, 0)


def _number(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if decimals > _MOST_DECIMALS:
        return f"{value:.2e}"
    # The numbers of a diverged run would otherwise fill the line with digits.
    text = f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def render(table: ResultTable, format: str = "text") -> str:
    """Render a table.

    Args:
        table: The table.
        format: ``text``, ``markdown``, ``latex`` (booktabs; needs the packages ``booktabs`` and
            ``textcomp``), ``csv`` (full precision) or ``json`` (everything there is).

    Returns:
        The table, ending in a newline. All but CSV say below or beside the numbers what was run.

    Raises:
        ValueError: Unknown format.
    """
    formats = {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv, "json": _json}
    if format not in formats:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    return formats[format](table)


def _lines(table: ResultTable) -> list[str]:
    """Return the lines below the table."""
    lines = [f"Warning: {warning}" for warning in table.warnings]
    return [printable(line, 2000) for line in [*lines, *table.notes]]


def _grid(
    table: ResultTable, escape: Callable[[str], str], mark: Callable[[str], str], join: str
) -> list[list[str]]:
    """Return the head and the rows of a table as text, names escaped and the best marked."""
    heads, rows = layout(table)
    grid = [["Method", *(escape(printable(head.text())) for head in heads)]]
    for row, cells in zip(table.lines, rows, strict=True):
        grid.append([escape(printable(row.label)), *(cell.plain(mark, join) for cell in cells)])
    return grid


def _text(table: ResultTable) -> str:
    grid = _grid(table, str, lambda number: f"*{number}", " ±")
    grid[0][0] = "method"
    lines = aligned(grid)
    rule = "-" * max(map(len, lines))
    below = ["* best of the multi-task methods.", *_lines(table)]
    return "\n".join([printable(table.problem), "", lines[0], rule, *lines[1:], "", *below]) + "\n"


def aligned(grid: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return rows of cells as lines, the first columns to the left and the others to the right.

    Example:
        >>> aligned([["a", "100"], ["bc", "1"]])
        ['a   100', 'bc    1']
    """
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]


def _markdown(table: ResultTable) -> str:
    grid = _grid(table, _escape_markdown, lambda number: f"**{number}**", " ± ")
    grid.insert(1, ["---", *("---:" for _ in grid[0][1:])])
    below = [f"- {_escape_markdown(line)}" for line in _lines(table)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in grid), "", *below]) + "\n"


def _escape_markdown(text: str) -> str:
    escaped = "".join(f"\\{char}" if char in "\\`*_[]|~$" else char for char in text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "°": r"$^{\circ}$",
    "Å": r"\AA{}",
    "…": r"\ldots{}",
    "\ufffd": "?",
}
_LATEX.update(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", (f"$^{{{digit}}}$" for digit in range(10)), strict=True))
_LATEX.update(zip("₀₁₂₃₄₅₆₇₈₉", (f"$_{{{digit}}}$" for digit in range(10)), strict=True))
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε",
    "zeta": "ζ", "eta": "η", "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ",
    "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ",
    "phi": "ϕ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω",
}  # fmt: skip
_LATEX.update({letter: rf"$\{name}$" for name, letter in _GREEK.items()})
_LATEX["µ"] = r"$\mu$"


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _latex(table: ResultTable) -> str:
    head, *grid = _grid(table, _escape_latex, lambda s: rf"\textbf{{{_minus(s)}}}", r" $\pm$ ")
    body = []
    for row, (name, *cells) in zip(table.lines, grid, strict=True):
        body.append(" & ".join([name, *map(_minus, cells)]) + r" \\")
        if _ends_block(table, row):
            body.append(r"\midrule")
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        "",
        *(rf"\par\footnotesize {_escape_latex(line)}" for line in _lines(table)),
    ]
    return "\n".join(lines) + "\n"


def _minus(text: str) -> str:
    return f"$-${text[1:]}" if text.startswith("-") and text != _DASH else text


def _csv(table: ResultTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in table.columns for name in (column.name, f"{column.name} stderr")]
    own = ["mean_rank", "delta_m", "delta_m stderr", "relative_time", "relative_time stderr"]
    own += ["seconds_per_epoch", "tuning_trials"]
    writer.writerow(["problem", "method", "seeds", *names, *own])
    for row in table.lines:
        numbers = [number for estimate in row.estimates for number in _pair(estimate)]
        numbers += [row.mean_rank, *_pair(row.delta_m), *_pair(row.relative_time)]
        numbers.append(row.seconds_per_epoch)
        texts = ("" if number is None else repr(float(number)) for number in numbers)
        trials = 0 if row.tuning is None else row.tuning.trials
        writer.writerow([table.problem, row.method, len(row.seeds), *texts, trials])
    return _encodable(out.getvalue())


def _pair(estimate: SeedMean | None) -> tuple[float | None, float | None]:
    return (None, None) if estimate is None else (estimate.mean, estimate.stderr)


def _json(table: ResultTable) -> str:
    text = json.dumps(finite(table.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)
    return _encodable(text) + "\n"


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, which JSON's escapes allow but no encoding does."""
    return text.encode("utf-8", "replace").decode("utf-8")


def rich_table(table: ResultTable) -> rich.table.Table:
    """Return the table for a terminal: best in bold, standard errors under the means.

    Rich cuts a table that is wider than the terminal; :func:`print_table` breaks it instead.

    Args:
        table: The table.

    Returns:
        A Rich table with what was run in its caption.

    Raises:
        MissingExtraError: Rich is not installed.
    """
    _need_rich()
    return _rich_block(table, range(len(table.columns) + 3), title=True, caption=True)


def print_table(table: ResultTable, console: rich.console.Console | None = None) -> None:
    """Print the table to a terminal, in blocks of as many columns as fit side by side.

    Args:
        table: The table.
        console: Where to print, standard output if None.

    Raises:
        MissingExtraError: Rich is not installed.
    """
    _need_rich()
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    # Rich measures at most the width of the terminal, unless it is given more.
    unbounded = console.options.update(max_width=100_000)
    heads, _ = layout(table)
    start = 0
    while start < len(heads):
        stop = start + 1
        # A column's width depends on its cells, so blocks grow for as long as they fit.
        while stop < len(heads):
            block = _rich_block(table, range(start, stop + 1))
            if Measurement.get(console, unbounded, block).maximum > console.width:
                break
            stop += 1
        console.print(_rich_block(table, range(start, stop), title=start == 0))
        start = stop
    console.print(_caption(table))


def _need_rich() -> None:
    with imports_for("a table for terminals"):
        import rich.table  # noqa: F401


def _rich_block(
    table: ResultTable, columns: Sequence[int], *, title: bool = False, caption: bool = False
) -> rich.table.Table:
    import rich.box
    import rich.table
    from rich.text import Text

    heads, rows = layout(table)
    spread = any(cell.stderr for cells in rows for cell in cells)
    shown = rich.table.Table(
        title=Text(printable(table.problem), style="bold") if title else None,
        caption=_caption(table) if caption else None,
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        caption_style="not italic",
    )
    shown.add_column("method", no_wrap=True)
    for index in columns:
        head = Text(printable(heads[index].text("\n"), keep="\n"), justify="right")
        shown.add_column(head, justify="right", no_wrap=True)
    for row, cells in zip(table.lines, rows, strict=True):
        texts = []
        for cell in (cells[index] for index in columns):
            text = Text()
            text.append(cell.text, style="bold" if cell.best else "")
            if spread:
                text.append(f"\n{'±' if cell.stderr else ''}{cell.stderr}", style="dim")
            texts.append(text)
        shown.add_row(Text(printable(row.label)), *texts, end_section=_ends_block(table, row))
    return shown


def _ends_block(table: ResultTable, row: MethodRow) -> bool:
    """Return whether there is a line below a row: rows that are not ranked are set apart."""
    if row.reference:
        return False
    return row.is_baseline or (row is table.rows[-1] and bool(table.references))


def _caption(table: ResultTable) -> Text:
    from rich.text import Text

    caption = Text(justify="left")
    for warning in table.warnings:
        caption.append(f"Warning: {printable(warning, 2000)}\n", style="yellow")
    caption.append("\n".join(printable(note, 2000) for note in table.notes), style="dim")
    return caption
