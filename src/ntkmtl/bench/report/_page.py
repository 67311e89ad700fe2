"""The page of a comparison: what its template shows, and what its scripts draw."""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ntkmtl.bench.jobs.reporters import duration
from ntkmtl.bench.report._build import table_of
from ntkmtl.bench.report._curves import learning_curves, short, task_lines
from ntkmtl.bench.report._html import page_text
from ntkmtl.bench.report._render import Head, TableCell, layout, render
from ntkmtl.bench.report._runs import ProblemRuns, load
from ntkmtl.bench.report._table import (
    MethodRow,
    ResultTable,
    SeedMean,
    entry_of,
    plain_label,
    units_text,
)
from ntkmtl.bench.report._words import listing, printable, seeds_text
from ntkmtl.bench.runs import Run, RunConfig, folder_name
from ntkmtl.bench.runs.run import best_run, use_command
from ntkmtl.files import write_text

_PINNED = ("mean_rank", "delta_m")
"""Columns that stay in sight while the others are scrolled."""


def write_html(
    runs_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    gallery: bool = False,
) -> Path:
    """Write the report of a comparison as one HTML file that opens with no network.

    The page holds the table, sortable by each column and to be saved as CSV and LaTeX; Delta-m and
    time per epoch as bars; learning curves of all metrics and training losses side by side, over
    seeds or one by one; weights and eigenvalues of the tasks over training; the configuration, and
    the settings in which runs differ. Charts can be saved as SVG.
    It loads nothing: its content security policy names the two scripts in it by their hashes and
    forbids everything else. A sentence says what a folder has no data for.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``. If it holds several problems, the
            page shows one at a time.
        output: Where to write, ``report.html`` in ``runs_dir`` if None.
        gallery: Whether to show predictions of the best network on single samples. Its problem is
            created as ``config.json`` says, and its data are read.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No run in it is complete, a file cannot be read, or the runs of a problem do not
            report the same metrics; with ``gallery``, no run kept its network, or the problem
            cannot be created.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    pages, data = [], []
    for runs in load(runs_dir).values():
        table = table_of(runs)
        data.append(_data(runs, table))
        pages.append(_page(runs, table))
        pages[-1]["success"] = _section(runs.problem, runs_dir)
        pages[-1]["gallery"] = None
        if gallery:
            # It needs torch, which pages without a gallery do not.
            from ntkmtl.bench.report._gallery import gallery_of

            pages[-1]["gallery"] = gallery_of(runs)
    text = page_text("report", data, pages=pages, title=" · ".join(p["name"] for p in pages))
    path = Path(output) if output is not None else Path(runs_dir) / "report.html"
    write_text(path, text)
    return path


def _section(problem: str, runs_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the section that the registry names for the problem, None for none."""
    name = entry_of(problem).section
    if not name:
        return None
    found: dict[str, Any] = resolve_name(name)(runs_dir)
    found["pictures"] = [
        (base64.b64encode(path.read_bytes()).decode("ascii"), caption)
        for path, caption in found["pictures"]
    ]
    return found


# ------------------------------------------------------------------------------------------------
# What the template shows


def _page(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    """Return what the template shows of one problem."""
    facts, problem = table.facts, table.problem
    plain, recipe, sizes = plain_label(problem), facts["recipe"], facts["sizes"]
    split = "validation" if sizes["val"] else "training"
    watched = f"metrics on the {split} split"
    notes = list(table.notes)
    if (best := best_run(runs.done)) is not None:
        notes.append(f"To use the network that is best on the {split} split: {use_command(best)}")
    units, each = units_text(problem, sizes), " / ".join(f"{size:,}" for size in sizes.values())
    counted = "Sizes" if units else "Samples"
    settings = {
        "Recipe": recipe,
        "Problem": {"name": problem, **facts["problem_options"]},
        counted: sizes,
        "Hardware": facts["hardware"],
        "Versions": facts["versions"],
    }
    return {
        "name": printable(problem),
        "plain": "linear scalarization (LS)" if plain == "LS" else plain,
        "reduced": facts["reduced"],
        "facts": [
            *([("Data file", printable(file))] if (file := facts.get("data_file")) else []),
            ("Methods", facts["methods"]),
            ("Seeds", seeds_text(facts["seeds"])),
            ("Epochs", f"{recipe['epochs']:,}"),
            ("Batch size", f"{recipe['batch_size']:,}"),
            (counted, units or each),
            ("Parameters", f"{facts['parameters']:,}"),
            ("Wall time of all runs", duration(facts["wall_seconds"])),
        ],
        "finished": _date(facts["finished"]),
        "lead": _lead(table),
        **_results(table),
        "watched": watched if entry_of(problem).supervised else "success in evaluations",
        "notes": [printable(note, 2000) for note in notes],
        "warnings": [printable(warning, 2000) for warning in table.warnings],
        "settings": [
            (name, [(printable(str(k)), printable(_value(v), 300)) for k, v in values.items()])
            for name, values in settings.items()
            if values
        ],
        "differences": [
            (
                printable(name),
                [(_shown(value), printable(listing(who), 400)) for value, who in found],
            )
            for name, found in differing_settings(runs).items()
        ],
        "options": [
            (printable(row.label), seeds_text(row.seeds, 20), _options(row)) for row in table.rows
        ],
    }


def _results(table: ResultTable) -> dict[str, Any]:
    """Return heads and rows of the table."""
    heads, rows = layout(table)
    # Metrics come last, as there may be many: MR, Delta-m and time would be far out of sight.
    heads = heads[-3:] + heads[:-3]
    rows = [cells[-3:] + cells[:-3] for cells in rows]
    return {
        "heads": [_head(head, plain_label(table.problem)) for head in heads],
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
    }


def _head(head: Head, plain: str) -> dict[str, Any]:
    titles = {
        True: "higher is better",
        False: "lower is better",
        None: f"seconds of training per epoch relative to {plain}",
    }
    return {
        "label": printable(head.label),
        "unit": printable(head.unit),
        "arrow": head.arrow,
        "descending": bool(head.higher_is_better),
        "pinned": head.key in _PINNED,
        "title": titles[head.higher_is_better],
    }


def _cell(cell: TableCell, tint: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "text": cell.text if cell.value is None else cell.text.replace("-", "−"),
        "stderr": cell.stderr,
        "value": cell.value if cell.value is not None else "",
        "best": cell.best,
        "tint": tint,
    }


def _tint(table: ResultTable, row: MethodRow) -> dict[str, Any] | None:
    """Return how strongly to color a Delta-m: its share of the largest, by square root."""
    if row.delta_m is None or not math.isfinite(row.delta_m.mean):
        return None
    sizes = [abs(r.delta_m.mean) for r in table.rows if r.delta_m is not None]
    most = max((size for size in sizes if math.isfinite(size)), default=0.0)
    strength = math.sqrt(abs(row.delta_m.mean) / most) if most > 0 else 0.0
    return {"good": row.delta_m.mean < 0, "percent": round(5 + 25 * strength)}


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
        found.append(("Lowest Δm", label, f"{delta.mean:.2f}{spread} %".replace("-", "−")))
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found.append(("Lowest mean rank", best.label, f"{best.mean_rank or 0:.2f}"))
    return [(what, printable(method), number) for what, method, number in found]


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return printable(text)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    return "–" if value is None else printable(_value(value), 300)


def _options(row: MethodRow) -> str:
    values = ", ".join(f"{name} = {_value(value)}" for name, value in row.options.items())
    return printable(values, 400) or "defaults"


def differing_settings(runs: ProblemRuns) -> dict[str, list[tuple[Any, list[str]]]]:
    """Return the settings that are not the same in all runs.

    What tells runs apart by design is left out: method, seed, and the task of a single-task
    network. The options of a method are compared between its own runs only.

    Returns:
        By what is set, as ``recipe: epochs``: its values, the most common first, each with the
        runs that have it; None where a run does not have the setting.
    """
    entries = [(run, dict(_settings(run.config))) for run in runs.done]
    totals = Counter(run.config.method for run, _ in entries)
    found = {}
    for owner, name in dict.fromkeys(key for _, settings in entries for key in settings):
        groups: dict[str, tuple[Any, list[Run]]] = {}
        for run, settings in entries:
            if owner in ("", run.config.method):
                value = settings.get((owner, name))
                groups.setdefault(json.dumps(value, sort_keys=True), (value, []))[1].append(run)
        if len(groups) > 1:
            ordered = sorted(groups.values(), key=lambda group: -len(group[1]))
            found[name] = [(value, _named(group, totals)) for value, group in ordered]
    return found


def _settings(config: RunConfig) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the settings of a run by their owner, a method or none, and name."""
    sections = {
        "recipe": config.recipe,
        "problem": config.problem_options,
        "samples": config.sizes,
        "hardware": config.hardware,
        "version": config.versions,
    }
    for section, values in sections.items():
        for key, value in values.items():
            if (section, key) != ("recipe", "description"):
                yield ("", f"{section}: {key}"), value
    for key, value in config.method_options.items():
        yield (config.method, f"option of {config.method}: {key}"), value


def _named(group: Sequence[Run], totals: Mapping[str, int]) -> list[str]:
    """Return names of runs: of a method whose runs are all there, of runs one by one else."""
    by_method: dict[str, list[str]] = defaultdict(list)
    for run in group:
        config = run.config
        task = "" if config.single_task is None else f" {config.single_task}"
        by_method[config.method].append(f"{config.method}{task} seed {config.seed}")
    return [
        name
        for method, names in by_method.items()
        for name in ([method] if len(names) == totals[method] else names)
    ]


# ------------------------------------------------------------------------------------------------
# What the scripts draw


def _data(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    """Return what the charts of one problem draw, and the table as files to save.

    Raises:
        RunFileError: A history or the steps of a run cannot be read.
    """
    return {
        "name": folder_name(table.problem),
        "files": {"csv": render(table, "csv"), "tex": render(table, "latex")},
        "methods": [_method(table, row) for row in table.rows],
        "metrics": [
            {
                "label": printable(column.label),
                "unit": printable(column.unit),
                "higher": column.higher_is_better,
            }
            for column in table.columns
        ],
        "plain": plain_label(table.problem),
        "busy": table.facts["busy_runs"],
        "tasks": [printable(task) for task in table.facts["tasks"]],
        **learning_curves(runs, table),
        **task_lines(runs, table),
    }


def _method(table: ResultTable, row: MethodRow) -> dict[str, Any]:
    return {
        "name": printable(row.label),
        "baseline": row.is_baseline,
        "plain": row.method == entry_of(table.problem).plain,
        "delta": _pair(row.delta_m),
        "rank": short(row.mean_rank),
        "time": _pair(row.relative_time),
        "seconds": short(row.seconds_per_epoch),
        "seeds": len(row.seeds),
    }


def _pair(known: SeedMean | None) -> list[float | None] | None:
    """Return a mean and its standard error, None where the mean is not known or not finite."""
    if known is None or not math.isfinite(known.mean):
        return None
    return [short(known.mean), short(known.stderr)]
