"""What the template of the report shows, as plain values."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ntkmtl.bench import problems
from ntkmtl.bench.jobs.reporters import duration
from ntkmtl.bench.report._differences import differing_settings
from ntkmtl.bench.report._render import Head, TableCell, layout, printable
from ntkmtl.bench.report._words import listing, plain_label, seeds_text
from ntkmtl.bench.runs.run import best_run, use_command

if TYPE_CHECKING:
    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._table import MethodRow, ResultTable

_PINNED = ("mean_rank", "delta_m")
"""Columns that stay in sight while the others are scrolled."""


def page_of(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    """Return what the template shows of one problem."""
    heads, rows = layout(table)
    # Metrics come last, as there may be many: MR, Delta-m and time would be far out of sight.
    heads = heads[-3:] + heads[:-3]
    rows = [cells[-3:] + cells[:-3] for cells in rows]
    facts = table.facts
    recipe = facts["recipe"]
    plain = plain_label(table.problem)
    return {
        "name": printable(table.problem),
        "plain": "linear scalarization (LS)" if plain == "LS" else plain,
        "lead": _lead(table),
        "reduced": facts["reduced"],
        "finished": _date(facts["finished"]),
        "facts": [
            *([("Data file", printable(file))] if (file := facts.get("data_file")) else []),
            ("Methods", facts["methods"]),
            ("Seeds", seeds_text(facts["seeds"])),
            ("Epochs", f"{recipe['epochs']:,}"),
            ("Batch size", f"{recipe['batch_size']:,}"),
            _sizes(runs.problem, facts["sizes"]),
            ("Parameters", f"{facts['parameters']:,}"),
            ("Wall time of all runs", duration(facts["wall_seconds"])),
        ],
        "heads": [_head(head, plain) for head in heads],
        "rows": [
            {
                "method": printable(row.label),
                "kind": "reference" if row.reference else "baseline" if row.is_baseline else "",
                "cells": [
                    _cell(cell, _tint(table, row) if head.key == "delta_m" else None)
                    for head, cell in zip(heads, cells, strict=True)
                ],
            }
            for row, cells in zip(table.lines, rows, strict=True)
        ],
        "watched": _watched(runs.problem, facts["sizes"]),
        "notes": [printable(note, 2000) for note in (*table.notes, *_use(runs))],
        "warnings": [printable(warning, 2000) for warning in table.warnings],
        "settings": _settings(runs, table),
        "differences": _differences(runs),
        "options": [
            (
                printable(row.label),
                seeds_text(row.seeds, 20),
                printable(_values(row.options), 400) or "defaults",
            )
            for row in table.rows
        ],
    }


def _use(runs: ProblemRuns) -> list[str]:
    """Return a sentence on how to use the best network, none if no run kept one."""
    best = best_run(runs.done)
    if best is None:
        return []
    judged = "validation" if best.config.sizes["val"] else "training"
    return [f"To use the network that is best on the {judged} split: {use_command(best)}"]


def _head(head: Head, plain: str) -> dict[str, Any]:
    directions = {True: "higher is better", False: "lower is better"}
    return {
        "label": printable(head.label),
        "unit": printable(head.unit),
        "arrow": head.arrow,
        "descending": bool(head.higher_is_better),
        "pinned": head.key in _PINNED,
        "title": f"seconds of training per epoch relative to {plain}"
        if head.higher_is_better is None
        else directions[head.higher_is_better],
    }


def _cell(cell: TableCell, tint: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "text": cell.text if cell.value is None else _minus(cell.text),
        "stderr": cell.stderr,
        "value": cell.value if cell.value is not None else "",
        "best": cell.best,
        "tint": tint,
    }


def _differences(runs: ProblemRuns) -> list[tuple[str, list[tuple[str, str]]]]:
    def row(value: Any, who: Sequence[str]) -> tuple[str, str]:
        shown = "–" if value is None else printable(_value(value), 300)
        return shown, printable(listing(who), 400)

    return [
        (printable(difference.name), [row(*pair) for pair in difference.values])
        for difference in differing_settings(runs)
    ]


def _watched(problem: str, sizes: Mapping[str, int]) -> str:
    """Return what the metrics over epochs are of."""
    entry = problems.spec(problem)
    if entry is not None and not entry.supervised:
        return "success in evaluations"
    return f"metrics on the {'validation' if sizes['val'] else 'training'} split"


def _sizes(problem: str, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Return what sizes count and how many there are."""
    entry = problems.spec(problem)
    if entry is None or not entry.units:
        return "Samples", " / ".join(f"{size:,}" for size in sizes.values())
    return "Sizes", ", ".join(f"{sizes[split]:,} {unit}" for split, unit in entry.units.items())


def section_of(runs: ProblemRuns, runs_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the section that the registry names for the problem, None for none."""
    entry = problems.spec(runs.problem)
    if entry is None or not entry.section:
        return None
    found: dict[str, Any] = resolve_name(entry.section)(runs_dir)
    found["pictures"] = [
        (base64.b64encode(path.read_bytes()).decode("ascii"), caption)
        for path, caption in found["pictures"]
    ]
    return found


def _lead(table: ResultTable) -> list[tuple[str, str, str]]:
    """Return who leads in Delta-m and in MR: what, the method, its number."""
    ranked = [row for row in table.rows if not row.is_baseline]
    if len(ranked) < 2:
        return []
    found = []
    known = [(row.delta_m, row.label) for row in ranked if row.delta_m is not None]
    known = [(delta, label) for delta, label in known if math.isfinite(delta.mean)]
    if known:
        delta, label = min(known, key=lambda pair: pair[0].mean)
        spread = "" if delta.stderr is None else f" ± {delta.stderr:.2f}"
        found.append(("Lowest Δm", label, _minus(f"{delta.mean:.2f}{spread} %")))
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found.append(("Lowest mean rank", best.label, f"{best.mean_rank or 0:.2f}"))
    return [(what, printable(method), number) for what, method, number in found]


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _tint(table: ResultTable, row: MethodRow) -> dict[str, Any] | None:
    """Return how strongly to color a Delta-m: its share of the largest, by square root."""
    if row.delta_m is None or not math.isfinite(row.delta_m.mean):
        return None
    sizes = [abs(r.delta_m.mean) for r in table.rows if r.delta_m is not None]
    most = max((size for size in sizes if math.isfinite(size)), default=0.0)
    strength = math.sqrt(abs(row.delta_m.mean) / most) if most > 0 else 0.0
    return {"good": row.delta_m.mean < 0, "percent": round(5 + 25 * strength)}


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return printable(text)


def _settings(runs: ProblemRuns, table: ResultTable) -> list[tuple[str, list[tuple[str, str]]]]:
    facts = table.facts
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Recipe", facts["recipe"]),
        ("Problem", {"name": table.problem, **facts["problem_options"]}),
        (_sizes(runs.problem, facts["sizes"])[0], facts["sizes"]),
        ("Hardware", facts["hardware"]),
        ("Versions", facts["versions"]),
    ]
    return [
        (name, [(printable(str(k)), printable(_value(v), 300)) for k, v in values.items()])
        for name, values in groups
        if values
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())
