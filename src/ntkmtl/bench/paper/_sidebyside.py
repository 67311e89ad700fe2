"""Published and measured numbers side by side, with everything that differs in the training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.paper._checks import recomputed_in
from ntkmtl.bench.paper._settings import PaperDifference, differences, listing
from ntkmtl.bench.paper._tables import Cell, PaperColumn, PaperTable, table
from ntkmtl.bench.report._render import aligned
from ntkmtl.bench.report._table import MethodRow, SeedMean
from ntkmtl.bench.report._words import count, printable
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.files import finite
from ntkmtl.metrics import mean_rank

if TYPE_CHECKING:
    from ntkmtl.bench.paper._results import PaperResult
    from ntkmtl.bench.paper._runs import Measured

FORMATS = ("text", "markdown", "json")

MEASURED = "measured"
_DASH = "-"
_WORKED_OUT = "*"


@dataclass(frozen=True)
class Number:
    """One number of a row.

    Attributes:
        value: The number.
        stderr: Its standard error, None where there is none.
        text: The number as shown.
        stderr_text: Its standard error as shown.
        worked_out: Whether the paper does not print it: it follows from metrics that it prints.
    """

    value: float
    stderr: float | None
    text: str
    stderr_text: str = ""
    worked_out: bool = False

    @classmethod
    def printed(cls, cell: Cell) -> Number:
        """Return a number as the paper prints it."""
        return cls(cell.value, cell.stderr, cell.text, cell.stderr_text)

    def __str__(self) -> str:
        mark = _WORKED_OUT if self.worked_out else ""
        return f"{self.text}{mark}{f' ±{self.stderr_text}' if self.stderr_text else ''}"


@dataclass(frozen=True)
class Entry:
    """One line: what is published of a method, or what was measured.

    Attributes:
        method: Name of the method.
        printed: Its name as shown.
        source: ``"published"``, in Table 6 ``"original"`` or ``"reproduced"``; or ``"measured"``.
        numbers: By name of the column; what is not known is absent.
    """

    method: str
    printed: str
    source: str
    numbers: Mapping[str, Number]


@dataclass(frozen=True)
class SideBySide:
    """A table of the paper and what was measured for it.

    Attributes:
        result: The table.
        columns: Its columns.
        entries: Lines, those of a method together.
        differences: Settings that are not the published ones.
        notes: What to know besides, as sentences.
        orders: For each Δm% or MR column the methods from best to worst, ``published`` and
            ``measured``, and how many pairs of them ``agree`` of how many ``pairs``.
        runs: What was run: problem, recipe, folder of the comparison, sizes, times and hardware.
    """

    result: PaperResult
    columns: tuple[PaperColumn, ...]
    entries: tuple[Entry, ...]
    differences: tuple[PaperDifference, ...]
    notes: tuple[str, ...]
    orders: tuple[dict[str, Any], ...]
    runs: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        found = {
            "name": self.result.name,
            "title": self.result.title,
            "columns": [
                {"name": c.name, "label": c.label, "unit": c.unit, "better": _better(c)}
                for c in self.columns
            ],
            "rows": [
                {
                    "method": entry.method,
                    "source": entry.source,
                    "numbers": {
                        name: {
                            "value": number.value,
                            "stderr": number.stderr,
                            "worked_out": number.worked_out,
                        }
                        for name, number in entry.numbers.items()
                    },
                }
                for entry in self.entries
            ],
            "differences": [
                {
                    "problem": one.problem,
                    "setting": one.setting,
                    "here": one.here,
                    "published": one.published,
                    "said_in_the_paper": one.said,
                }
                for one in self.differences
            ],
            "notes": list(self.notes),
            "orders": list(self.orders),
            "runs": list(self.runs),
        }
        plain: dict[str, Any] = finite(found)
        return plain


def _better(column: PaperColumn) -> str:
    return "higher" if column.higher_is_better else "lower"


def side_by_side(result: PaperResult, found: Sequence[Measured]) -> SideBySide:
    """Put a table of the paper beside what was measured for it, one entry per problem."""
    source = table(result.number)
    columns = _columns(source, found)
    measured = _measured_entries(source, columns, found)
    methods = dict.fromkeys(entry.method for entry in measured)
    entries: list[Entry] = []
    for method in [SINGLE_TASK, *(name for name in methods if name != SINGLE_TASK)]:
        entries += _published_entries(source, columns, method)
        entries += [entry for entry in measured if entry.method == method]
    changed = [
        one
        for each in found
        for one in differences(each.table.facts, each.prepared.problem.name, each.part.problem)
    ]
    return SideBySide(
        result=result,
        columns=tuple(columns),
        entries=tuple(entries),
        differences=tuple(changed),
        notes=tuple(_notes(result, source, entries, found)),
        orders=tuple(
            orders(
                [column for column in columns if column.kind != "metric"],
                [entry for entry in entries if entry.method != SINGLE_TASK],
            )
        ),
        runs=tuple(_run_facts(each) for each in found),
    )


def _columns(source: PaperTable, found: Sequence[Measured]) -> list[PaperColumn]:
    """Return the columns of the problems that were run."""
    if any(each.part.metrics == source.number for each in found):
        kept = {column.name for column in source.metrics}
    else:
        kept = set()
    for each in found:
        kept |= {each.part.mr, each.part.delta_m}
    return [column for column in source.columns if column.name in kept]


def _published_entries(
    source: PaperTable, columns: Sequence[PaperColumn], method: str
) -> Iterator[Entry]:
    again = recomputed_in(source.number)
    for row in source.rows:
        if row.method != method:
            continue
        numbers: dict[str, Number] = {}
        for column in columns:
            cell = row.cells.get(column.name)
            if cell is not None:
                numbers[column.name] = Number.printed(cell)
            elif (method, row.variant, column.name) in again:
                value = again[method, row.variant, column.name].recomputed
                numbers[column.name] = Number(value, None, f"{value:.2f}", worked_out=True)
        yield Entry(method, row.printed, row.variant or "published", numbers)


def _measured_entries(
    source: PaperTable, columns: Sequence[PaperColumn], found: Sequence[Measured]
) -> list[Entry]:
    decimals = {column.name: _decimals(source, column) for column in columns}
    numbers: dict[str, dict[str, Number]] = {}
    for each in found:
        shown = {row.method: row for row in each.rows()}
        shown |= {row.method: row for row in each.table.rows if row.is_baseline}
        for method, row in shown.items():
            known = _estimates(each, row)
            mine = numbers.setdefault(method, {})
            for column in columns:
                if column.name in known:
                    mine[column.name] = _number(known[column.name], decimals[column.name])
    printed = {row.method: row.printed for row in source.rows}
    return [
        Entry(method, printed.get(method, method), MEASURED, mine)
        for method, mine in numbers.items()
        if mine
    ]


def _estimates(each: Measured, row: MethodRow) -> dict[str, SeedMean]:
    """Return the numbers of a row by the names of the paper's columns."""
    known: dict[str, SeedMean] = {}
    if each.part.metrics:
        for column, estimate in zip(each.table.columns, row.estimates, strict=True):
            if estimate is not None:
                known[column.name] = estimate
    if row.mean_rank is not None and each.part.mr:
        known[each.part.mr] = SeedMean(row.mean_rank, None, 1)
    if row.delta_m is not None and each.part.delta_m:
        known[each.part.delta_m] = row.delta_m
    return known


def _decimals(source: PaperTable, column: PaperColumn) -> int:
    """Return as many decimals as the paper prints in a column at most."""
    cells: list[Cell] = [row.cells[column.name] for row in source.rows if column.name in row.cells]
    return max((len(cell.text.partition(".")[2]) for cell in cells), default=2)


def _number(estimate: SeedMean, decimals: int) -> Number:
    return Number(
        estimate.mean,
        estimate.stderr,
        _text_of(estimate.mean, decimals),
        "" if estimate.stderr is None else _text_of(estimate.stderr, decimals),
    )


def _text_of(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.3g}"


def orders(columns: Sequence[PaperColumn], entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Yield how published and measured numbers of a column order the methods that have both."""
    for column in columns:
        published: dict[str, float] = {}
        measured: dict[str, float] = {}
        for entry in entries:
            if column.name in entry.numbers:
                # Of Table 6 the rows that the paper's authors trained, which are last.
                kind = measured if entry.source == MEASURED else published
                kind[entry.method] = entry.numbers[column.name].value
        both = [method for method in measured if method in published]
        pairs = list(itertools.combinations(both, 2))
        if pairs:
            better = column.higher_is_better
            yield {
                "column": column.name,
                "label": column.label,
                "published": sorted(both, key=published.__getitem__, reverse=better),
                "measured": sorted(both, key=measured.__getitem__, reverse=better),
                "agree": sum(
                    (published[a] - published[b]) * (measured[a] - measured[b]) > 0
                    for a, b in pairs
                ),
                "pairs": len(pairs),
            }


def _notes(
    result: PaperResult, source: PaperTable, entries: Sequence[Entry], found: Sequence[Measured]
) -> Iterator[str]:
    for each in found:
        name = each.prepared.problem.name
        notice = each.prepared.problem.notice()
        if notice:
            yield f"{name}: {notice}"
        asked = each.prepared.request.stl
        stl_seeds = {seed for row in each.table.rows if row.is_baseline for seed in row.seeds}
        if asked == "published":
            yield (
                f"{name}: Δm% is against the paper's STL row (--stl published), which was not "
                "trained here."
            )
        elif asked == "none":
            yield f"{name}: no STL baselines were asked for (--stl none), so Δm% is not known."
        else:
            yield f"{name}: STL was trained here, {count(len(stl_seeds), 'seed')}."
        yield from _rank_notes(each, source)
        seeds = each.table.facts["seeds"]
        if result.seeds is not None and len(seeds) != result.seeds:
            yield f"{name}: {count(len(seeds), 'seed')} here, {result.seeds} published."
        left = [m for m in result.all_methods if m not in {row.method for row in each.rows()}]
        if left:
            yield (
                f"{name}: {len(left)} of {len(result.all_methods)} published methods were not "
                f"run: {', '.join(left)}."
            )
        for warning in each.table.warnings:
            yield f"{name}: warning: {warning}"
    if any(number.worked_out for entry in entries for number in entry.numbers.values()):
        yield (
            f"{_WORKED_OUT} The paper does not print this number; it follows from the metrics "
            "that it prints."
        )


def _rank_notes(each: Measured, source: PaperTable) -> Iterator[str]:
    """Note that MR depends on which methods are ranked, and what it is by published metrics."""
    if not each.part.mr:
        return
    name = each.prepared.problem.name
    rows = each.rows()
    among = sum(each.part.mr in row.cells for row in source.rows if row.method != SINGLE_TASK)
    if len(rows) == among:
        return
    text = f"{name}: MR is among {len(rows)} methods here and among {among} in the paper."
    if each.part.metrics:
        metrics = table(each.part.metrics)
        variant = "reproduced" if each.part.metrics == 6 else ""
        both = [row.method for row in rows if row.method in metrics.methods]
        if len(both) > 1:
            values = [metrics.values(metrics.row(method, variant)) for method in both]
            higher = [column.higher_is_better for column in metrics.metrics]
            ranks = mean_rank(values, higher, ties="published").tolist()
            said = ", ".join(f"{m} {rank:.2f}" for m, rank in zip(both, ranks, strict=True))
            text += f" The published metrics of these methods alone give: {said}."
    yield text


def _run_facts(each: Measured) -> dict[str, Any]:
    return {
        "problem": each.prepared.problem.name,
        "published_problem": each.part.problem,
        "recipe_name": each.prepared.request.recipe,
        "folder": str(each.prepared.folder),
        "stl": each.prepared.request.stl,
        "facts": each.table.facts,
        "notes": list(each.table.notes),
    }


# ------------------------------------------------------------------------------------------------
# Printing


def render(found: SideBySide, format: str = "text") -> str:
    """Render published and measured numbers side by side.

    Args:
        found: What :func:`side_by_side` returned.
        format: ``text``, ``markdown`` or ``json``.

    Returns:
        The text, ending in a newline. All formats say what differs from the published training.

    Raises:
        ValueError: Unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    if format == "json":
        return json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _markdown(found) if format == "markdown" else _text(found)


def grid(found: SideBySide) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of text cells, a method's name in its first line only."""
    heads = ["Method", "", *(column.head for column in found.columns)]
    rows, last = [], None
    for entry in found.entries:
        name = "" if entry.printed == last else entry.printed
        last = entry.printed
        cells = [str(entry.numbers.get(column.name, _DASH)) for column in found.columns]
        rows.append([name, entry.source, *cells])
    return heads, rows


def lines(found: SideBySide) -> dict[str, list[str]]:
    """Return the lines below the numbers, by heading."""
    sections: dict[str, list[str]] = {}
    for problem in dict.fromkeys(run["problem"] for run in found.runs):
        mine = listing([one for one in found.differences if one.problem == problem])
        sections[f"Differs from the published training, {problem}"] = mine or [
            "nothing in the settings that are known"
        ]
    orders = [
        f"{order['label']}: published {' < '.join(order['published'])}; measured "
        f"{' < '.join(order['measured'])}; {order['agree']} of {order['pairs']} pairs agree"
        for order in found.orders
    ]
    if orders:
        sections["Order of the methods, best first"] = orders
    sections["Notes"] = list(found.notes)
    for run in found.runs:
        sections[f"What was run, {run['problem']}"] = [
            *run["notes"],
            f"Runs: {run['folder']} (`ntkmtl table` and `ntkmtl report` read it)",
        ]
    return {
        head: [printable(line, 2000) for line in body] for head, body in sections.items() if body
    }


def _text(found: SideBySide) -> str:
    heads, rows = grid(found)
    shown = aligned([heads, *rows], left=2)
    rule = "-" * max(map(len, shown))
    out = [f"{found.result.label}: {found.result.title}", "", shown[0], rule, *shown[1:]]
    for head, body in lines(found).items():
        out += ["", f"{head}:", *(f"  {line}" for line in body)]
    return "\n".join(out) + "\n"


def _markdown(found: SideBySide) -> str:
    heads, rows = grid(found)
    out = [f"## {found.result.label}: {found.result.title}", ""]
    out += [_row(heads), _row(["---", "---", *("---:" for _ in heads[2:])]), *map(_row, rows)]
    for head, body in lines(found).items():
        out += ["", f"**{head}**", "", *(f"- {_escaped(line)}" for line in body)]
    return "\n".join(out) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    for char in "\\|*_[]<>":
        text = text.replace(char, f"\\{char}")
    return text
