"""Do the published MR and Δm% follow from the published metrics? And tables as text cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ntkmtl.bench.paper._results import ResultPart, find_result
from ntkmtl.bench.paper._tables import PaperColumn, PaperTable, Row, table, tables

if TYPE_CHECKING:
    from ntkmtl.metrics import Ties

Verdict = Literal["exact", "within rounding", "differs", "not printed"]

# A little less than half a unit, so that 27.60 and 27.61 never meet at 27.605.
_ALMOST = 1 - 1e-6


@dataclass(frozen=True)
class Check:
    """One published number beside what the published metrics give.

    Attributes:
        table: The table's number.
        row: The row.
        column: The column, an MR or a Δm%.
        published: The number as printed, None where the table has none.
        half_unit: Half a unit of its last digit.
        recomputed: What the printed metrics give.
        low: Smallest value that metrics which round to the printed ones can give.
        high: Largest such value.
    """

    table: int
    row: Row
    column: PaperColumn
    published: float | None
    half_unit: float
    recomputed: float
    low: float
    high: float

    @property
    def difference(self) -> float | None:
        """Published less recomputed, None where nothing is published."""
        return None if self.published is None else self.published - self.recomputed

    @property
    def verdict(self) -> Verdict:
        """How the published number agrees.

        ``"exact"``: what the printed metrics give rounds to it. ``"within rounding"``: some
        metrics that round to the printed ones give it. ``"differs"``: none do.
        ``"not printed"``: there is no published number.
        """
        if self.published is None or self.difference is None:
            return "not printed"
        slack = self.half_unit + 1e-9
        if abs(self.difference) <= slack:
            return "exact"
        if self.low - slack <= self.published <= self.high + slack:
            return "within rounding"
        return "differs"


def checks(number: int | None = None, *, ties: Ties = "published") -> tuple[Check, ...]:
    """Work out every published MR and Δm% again from the published metrics.

    A printed metric stands for all numbers that round to it. ``low`` and ``high`` say how far
    these can move the result; for a mean rank that covers the order of methods whose printed
    values are equal.

    Args:
        number: A table's number; None for all tables. Nothing follows from the metrics in
            Table 4, nor in Table 2 for CelebA.
        ties: How equal printed values are ranked, as in :func:`ntkmtl.metrics.mean_rank`.

    Returns:
        One check per row and column, in the order of the tables.

    Raises:
        KeyError: If there is no such table.

    Example:
        >>> check = next(check for check in checks(3) if check.row.method == "ntkmtl-sr")
        >>> check.column.name, check.published, round(check.recomputed, 2), check.verdict
        ('mr', 4.0, 4.0, 'exact')
    """
    wanted = tables() if number is None else (table(number),)
    return tuple(
        check
        for one in wanted
        for part, variant in _origins(one.number)
        for check in _check(one, part, variant, ties)
    )


def discrepancies(number: int | None = None) -> tuple[Check, ...]:
    """Return the published numbers that no rounding of the published metrics explains.

    Args:
        number: A table's number; None for all tables.

    Example:
        >>> for check in discrepancies():
        ...     print(check.table, check.row.method, check.published, round(check.recomputed, 2))
        1 si 16.11 16.22
        1 dwa 16.33 16.22
    """
    return tuple(check for check in checks(number) if check.verdict == "differs")


def recomputed_in(number: int) -> dict[tuple[str, str, str], Check]:
    """Return the checks of a table by method, variant of the row and name of the column."""
    return {
        (check.row.method, check.row.variant, check.column.name): check for check in checks(number)
    }


def render(number: int, *, recomputed: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return a table's column heads and rows as text.

    Numbers are as printed, with standard errors where there are any; empty cells are ``""``.

    Args:
        number: The table's number in the paper.
        recomputed: Add a column beside each MR and Δm% with what the printed metrics give. This
            imports torch.

    Returns:
        The heads, with arrows in the better direction, and a list of cells per row.

    Raises:
        KeyError: If there is no such table.

    Example:
        >>> heads, rows = render(4)
        >>> heads
        ['Method', 'Success rate ↑']
        >>> rows[0]
        ['STL', '0.90 ± 0.03']
    """
    source = table(number)
    again = recomputed_in(number) if recomputed else {}
    added = {name for _, _, name in again}
    variants = any(row.variant for row in source.rows)
    heads = ["Method", "Rows"] if variants else ["Method"]
    for column in source.columns:
        heads.append(column.head)
        if column.name in added:
            heads.append(f"{column.label} recomputed")
    lines = []
    for row in source.rows:
        line = [row.printed, row.variant] if variants else [row.printed]
        for column in source.columns:
            line.append(str(row.cells.get(column.name, "")))
            if column.name in added:
                value = again.get((row.method, row.variant, column.name))
                line.append("" if value is None else f"{value.recomputed:.2f}")
        lines.append(line)
    return heads, lines


def report(number: int | None = None) -> str:
    """Return all checks as Markdown; ``python -m ntkmtl.bench.paper`` prints it.

    Args:
        number: A table's number; None for all tables.

    Example:
        >>> report().splitlines()[0]
        '### How many follow'
    """
    every = checks(number)
    averaged = checks(number, ties="average")
    changed = [
        after
        for before, after in zip(every, averaged, strict=True)
        if before.recomputed != after.recomputed
    ]
    sections = {
        "How many follow": _summary(every),
        "Not explained by rounding": _listing(_of(every, "differs")),
        "Explained by the rounding of the metrics only": _listing(_of(every, "within rounding")),
        "Mean ranks that change if ties are averaged": _listing(changed),
        "Δm% that Table 1 lacks": _listing(_of(every, "not printed")),
    }
    return "\n\n".join(f"### {head}\n\n" + "\n".join(body) for head, body in sections.items())


def _of(found: Sequence[Check], verdict: Verdict) -> list[Check]:
    return [check for check in found if check.verdict == verdict]


def _origins(number: int) -> Iterator[tuple[ResultPart, str]]:
    """Yield the parts of a table whose metrics are printed, each with the variant of its rows."""
    for part in find_result(f"table{number}").parts:
        if not part.metrics:
            continue
        if number == 6:
            # Only reproduced rows are ranked.
            yield replace(part, mr=""), "original"
        yield part, "reproduced" if number == 6 else ""


def _check(of: PaperTable, part: ResultPart, variant: str, ties: Ties) -> Iterator[Check]:
    source = table(part.metrics)
    reference = table(part.baseline)
    rows = [row for row in of.rows if row.variant == variant and row.method != "stl"]
    # The same methods, where the metrics are in another table.
    measured = [source.row(row.method, row.variant) for row in rows]
    if part.mr:
        yield from _compare(of, rows, part.mr, _mean_ranks(source, measured, ties))
    results = _delta_ms(source, measured, reference.row("stl", variant))
    yield from _compare(of, rows, part.delta_m, results)


def _compare(
    of: PaperTable, rows: Sequence[Row], name: str, results: Sequence[tuple[float, float, float]]
) -> Iterator[Check]:
    for row, (recomputed, low, high) in zip(rows, results, strict=True):
        cell = row.cells.get(name)
        yield Check(
            table=of.number,
            row=row,
            column=of.column(name),
            published=None if cell is None else cell.value,
            half_unit=0.0 if cell is None else cell.half_unit,
            recomputed=recomputed,
            low=low,
            high=high,
        )


def _mean_ranks(
    source: PaperTable, rows: Sequence[Row], ties: Ties
) -> list[tuple[float, float, float]]:
    from ntkmtl.metrics import mean_rank

    higher = [column.higher_is_better for column in source.metrics]
    best = [_shifted(source, row, worse=False) for row in rows]
    worst = [_shifted(source, row, worse=True) for row in rows]
    recomputed = mean_rank([source.values(row) for row in rows], higher, ties=ties).tolist()
    results = []
    for at, value in enumerate(recomputed):
        # Every other method at its worst against this one at its best, and the other way round.
        low = mean_rank([*worst[:at], best[at], *worst[at + 1 :]], higher)[at]
        high = mean_rank([*best[:at], worst[at], *best[at + 1 :]], higher)[at]
        results.append((value, float(low), float(high)))
    return results


def _delta_ms(
    source: PaperTable, rows: Sequence[Row], baseline: Row
) -> list[tuple[float, float, float]]:
    from ntkmtl.metrics import delta_m

    higher = [column.higher_is_better for column in source.metrics]
    # All metrics are positive, so Δm% falls as a method gets better or the baseline gets worse.
    at = delta_m([source.values(row) for row in rows], source.values(baseline), higher)
    low, high = (
        delta_m(
            [_shifted(source, row, worse=worse) for row in rows],
            _shifted(source, baseline, worse=not worse),
            higher,
        )
        for worse in (False, True)
    )
    return list(zip(at.tolist(), low.tolist(), high.tolist(), strict=True))


def _shifted(source: PaperTable, row: Row, *, worse: bool) -> list[float]:
    """Return a row's metrics, each moved as far as its rounding allows."""
    return [
        row.cells[column.name].value
        + (1 if worse != column.higher_is_better else -1)
        * row.cells[column.name].half_unit
        * _ALMOST
        for column in source.metrics
    ]


def _summary(found: Sequence[Check]) -> list[str]:
    verdicts: tuple[Verdict, ...] = ("exact", "within rounding", "differs", "not printed")
    groups: dict[tuple[int, str, str], list[Check]] = {}
    for check in found:
        key = (check.table, check.row.variant, check.column.name)
        groups.setdefault(key, []).append(check)
    rows = []
    for (number, variant, _), group in groups.items():
        counts = [len(_of(group, verdict)) for verdict in verdicts]
        rows.append([number, variant or "all", group[0].column.label, *counts])
    return _markdown(["table", "rows", "column", *verdicts], rows)


def _listing(found: Sequence[Check]) -> list[str]:
    heads = ["table", "row", "column", "published", "recomputed", "difference"]
    rows = []
    for check in found:
        row, cell = check.row, check.row.cells.get(check.column.name)
        rows.append(
            [
                check.table,
                f"{row.printed} ({row.variant})" if row.variant else row.printed,
                check.column.label,
                "" if cell is None else cell.text,
                f"{check.recomputed:.3f}",
                "" if check.difference is None else f"{check.difference:+.3f}",
                f"{check.low:.3f} to {check.high:.3f}",
            ]
        )
    return _markdown([*heads, "reachable by rounding"], rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows)]
