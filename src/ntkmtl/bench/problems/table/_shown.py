"""What a user sees of a table before training: each column, and what was made of it."""

from __future__ import annotations

from collections.abc import Sequence

from ntkmtl.bench.problems.table._columns import Column
from ntkmtl.bench.problems.table._raw import shorten

SHOWN = 30
"""Most columns that are shown one by one."""


def shown_columns(columns: Sequence[Column]) -> str:
    """Return the columns as a table of text: targets first, and what is left out last."""
    features = [column for column in columns if column.role == "feature"]
    first = [c for c in columns if c.role not in ("feature", "left out")]
    out = [c for c in columns if c.role == "left out"]
    room = max(0, SHOWN - len(first) - min(len(out), SHOWN))
    lines = [("column", "role", "type", "missing", "values", "note")]
    lines += [_line(column) for column in (*first, *features[:room])]
    if hidden := features[room:]:
        kinds = ", ".join(sorted({column.kind for column in hidden}))
        missing = sum(column.missing for column in hidden)
        lines.append((f"... {len(hidden)} more", "feature", kinds, f"{missing:,}", "", ""))
        # What was decided about a column is told even where the column is not shown.
        lines += [_line(column) for column in hidden if column.note][:SHOWN]
    lines += [_line(column) for column in out[:SHOWN]]
    if len(out) > SHOWN:
        lines.append((f"... {len(out) - SHOWN} more", "left out", "", "", "", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  ".join(
            cell.rjust(widths[i]) if i == 3 else cell.ljust(widths[i]) if i < 5 else cell
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def unused(columns: Sequence[Column]) -> str:
    """Return a sentence on the columns that the network does not see, ``""`` for none."""
    out = [column for column in columns if column.role in ("left out", "id")]
    if not out:
        return ""
    names = ", ".join(shorten(c.name, 30)[1:-1] for c in out[:8])
    plural = "column is" if len(out) == 1 else "columns are"
    return f"Warning: {len(out)} {plural} not used: {names}{', ...' if len(out) > 8 else ''}"


def _line(column: Column) -> tuple[str, str, str, str, str, str]:
    name = shorten(column.name, 32)[1:-1]
    missing = f"{column.missing:,}"
    content = column.content if len(column.content) <= 44 else column.content[:41] + "..."
    return name, column.role, column.kind, missing, content, column.note
