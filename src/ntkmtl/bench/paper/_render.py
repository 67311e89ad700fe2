"""A table as plain text cells."""

from __future__ import annotations

from ntkmtl.bench.paper._checks import checks
from ntkmtl.bench.paper._tables import table


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
    again = {}
    if recomputed:
        again = {
            (check.row.method, check.row.variant, check.column.name): check.recomputed
            for check in checks(number)
        }
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
                line.append("" if value is None else f"{value:.2f}")
        lines.append(line)
    return heads, lines
