"""One self-contained page: the table, charts, and what was run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl._version import __version__
from ntkmtl.bench import problems
from ntkmtl.bench.report._build import table_of
from ntkmtl.bench.report._render import finite, layout, printable
from ntkmtl.bench.report._runs import load
from ntkmtl.bench.report._series import eigenvalues, learning_curves, points_for, weights
from ntkmtl.bench.report._table import task_labels
from ntkmtl.bench.report._words import plain_label, plain_method
from ntkmtl.bench.runs.durations import duration
from ntkmtl.errors import missing_extra
from ntkmtl.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._series import Curve, Series
    from ntkmtl.bench.report._table import MethodRow, ResultTable

__all__ = ["embed", "page_text", "write_html"]

_WIDE = 14
"""Metrics above which a table is wider than a screen."""

_TEMPLATES = Path(__file__).parent / "templates"


def write_html(
    runs_dir: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of a comparison as one HTML file that opens with no network.

    The page holds the table, sortable by each column; Delta-m and time per epoch as bars; learning
    curves per metric; weights and eigenvalues of the tasks over training; and the configuration.
    It loads nothing: its content security policy names the two scripts in it by their hashes and
    forbids everything else. What a folder cannot tell is said in a sentence.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``. If it holds several problems, the
            page shows one at a time.
        output: Where to write, ``report.html`` in ``runs_dir`` if None.

    Returns:
        Where the page stands.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No run in it is complete, a file cannot be read, or the runs of a problem do not
            report the same metrics.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    pages, data = [], []
    for runs in load(runs_dir).values():
        table = table_of(runs)
        pages.append({**_page(runs, table), "success": _section(runs, runs_dir)})
        data.append(_data(runs, table))
    text = page_text(
        "report",
        data,
        pages=pages,
        title=" · ".join(page["name"] for page in pages),
    )
    path = Path(output) if output is not None else Path(runs_dir) / "report.html"
    write_text(path, text)
    return path


def page_text(name: str, data: Any, **context: Any) -> str:
    """Return one self-contained page of charts.

    Args:
        name: ``NAME.html.jinja`` is the page and ``NAME.js`` the script that draws its charts, with
            what ``charts.js`` gives it.
        data: JSON values for that script.
        **context: What the page shows. Every text is escaped.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing_extra("the HTML report", "bench", error) from error

    drawing = _read(_TEMPLATES / "charts.js") + _read(_TEMPLATES / f"{name}.js")
    # HTML parsers turn CR LF into LF before the hash of a script is compared.
    scripts = [
        script.replace("\r\n", "\n").replace("\r", "\n") for script in (get_plotlyjs(), drawing)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.jinja").render(
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        css=_read(_TEMPLATES / "report.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=embed(data),
        **context,
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def embed(value: Any) -> str:
    r"""Return JSON that may stand in a ``<script>`` element, whatever the strings in it.

    Args:
        value: JSON values; numbers that are not finite become null.

    Example:
        >>> embed(["</script>", float("nan")])
        '["\\u003c/script\\u003e",null]'
    """
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ------------------------------------------------------------------------------------------------
# What the template shows


def _page(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    heads, rows = layout(table)
    if len(table.columns) > _WIDE:
        # Else MR, Delta-m and time would lie far out of sight.
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
            ("Methods", facts["methods"]),
            ("Seeds", ", ".join(map(str, facts["seeds"][:10])) + "…" * (len(facts["seeds"]) > 10)),
            ("Epochs", f"{recipe['epochs']:,}"),
            ("Batch size", f"{recipe['batch_size']:,}"),
            _sizes(runs.problem, facts["sizes"]),
            ("Parameters", f"{facts['parameters']:,}"),
            ("Wall time of all runs", duration(facts["wall_seconds"])),
        ],
        "heads": [
            {
                "label": printable(head.label),
                "unit": printable(head.unit),
                "arrow": head.arrow,
                "descending": bool(head.higher_is_better),
                "title": "higher is better"
                if head.higher_is_better
                else "lower is better"
                if head.higher_is_better is False
                else f"seconds of training per epoch relative to {plain}",
            }
            for head in heads
        ],
        "rows": [
            {
                "method": printable(row.label),
                "baseline": row.is_baseline,
                "cells": [
                    {
                        "text": cell.text if cell.value is None else _minus(cell.text),
                        "stderr": cell.stderr,
                        "value": cell.value if cell.value is not None else "",
                        "best": cell.best,
                        "tint": _tint(table, row) if head.key == "delta_m" else None,
                    }
                    for head, cell in zip(heads, cells, strict=True)
                ],
            }
            for row, cells in zip(table.rows, rows, strict=True)
        ],
        "metrics": [
            printable(f"{column.label} ({column.unit})" if column.unit else column.label)
            for column in table.columns
        ],
        "watched": "validation" if facts["sizes"]["val"] else "training",
        "notes": [printable(note, 2000) for note in table.notes],
        "warnings": [printable(warning, 2000) for warning in table.warnings],
        "settings": _settings(runs, table),
        "options": [
            (
                printable(row.label),
                ", ".join(map(str, row.seeds[:20])) + "…" * (len(row.seeds) > 20),
                printable(_values(row.options), 400) or "defaults",
            )
            for row in table.rows
        ],
    }


def _sizes(problem: str, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Return what sizes count and how many there are."""
    entry = problems.spec(problem)
    if entry is None or not entry.units:
        return "Samples", " / ".join(f"{size:,}" for size in sizes.values())
    return "Sizes", ", ".join(f"{sizes[split]:,} {unit}" for split, unit in entry.units.items())


def _section(runs: ProblemRuns, runs_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the section that the registry names for the problem, None for none."""
    entry = problems.spec(runs.problem)
    if entry is None or not entry.section:
        return None
    module, _, function = entry.section.partition(":")
    found: dict[str, Any] = getattr(import_module(module), function)(runs_dir)
    found["pictures"] = [
        (base64.b64encode(path.read_bytes()).decode("ascii"), caption)
        for path, caption in found["pictures"]
    ]
    return found


def _lead(table: ResultTable) -> list[tuple[str, str, str]]:
    """Return who leads in Delta-m and in MR: what, the method, its number."""
    ranked = [row for row in table.rows if not row.is_baseline]
    found = []
    known = [row for row in ranked if row.delta_m is not None and math.isfinite(row.delta_m.mean)]
    if len(ranked) < 2:
        return []
    if known:
        best = min(known, key=lambda row: row.delta_m.mean if row.delta_m else math.inf)
        assert best.delta_m is not None
        spread = "" if best.delta_m.stderr is None else f" ± {best.delta_m.stderr:.2f}"
        found.append(("Lowest Δm", best.label, _minus(f"{best.delta_m.mean:.2f}{spread} %")))
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found.append(("Lowest mean rank", best.label, f"{best.mean_rank or 0:.2f}"))
    return [(what, printable(method), number) for what, method, number in found]


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _tint(table: ResultTable, row: MethodRow) -> dict[str, Any] | None:
    """Return how strongly to colour a Delta-m: its share of the largest, by square root."""
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


# ------------------------------------------------------------------------------------------------
# What the charts draw


def _data(runs: ProblemRuns, table: ResultTable) -> dict[str, Any]:
    rows = list(table.rows)
    number = {row.method: index for index, row in enumerate(rows)}
    multi = [row.method for row in rows if not row.is_baseline]
    # A mean and its error are two numbers per point.
    curves = learning_curves(runs, table, points_for(2 * len(rows) * len(table.columns)))
    tasks = table.facts["tasks"]
    points = points_for(len(multi) * len(tasks))
    return {
        "methods": [
            {
                "name": printable(row.label),
                "baseline": row.is_baseline,
                "reference": row.method == plain_method(table.problem),
                "delta": None if row.delta_m is None else _short(row.delta_m.mean),
                "error": None
                if row.delta_m is None or row.delta_m.stderr is None
                else _short(row.delta_m.stderr),
                "rank": _short(row.mean_rank),
                "time": _short(None if row.relative_time is None else row.relative_time.mean),
                "seconds": _short(row.seconds_per_epoch),
                "seeds": len(row.seeds),
            }
            for row in rows
        ],
        "metrics": [
            {
                "label": printable(column.label),
                "unit": printable(column.unit),
                "higher": column.higher_is_better,
            }
            for column in table.columns
        ],
        "plain": plain_label(table.problem),
        "tasks": [printable(label) for label in task_labels(table)],
        "curves": {number[method]: _curve(curve) for method, curve in curves.items()},
        "weights": {
            number[method]: _series(series)
            for method, series in weights(runs, multi, points).items()
        },
        "eigenvalues": {
            number[method]: _series(series)
            for method, series in eigenvalues(runs, multi, points).items()
        },
    }


def _short(value: float | None) -> float | None:
    """Return a number with as many digits as a chart can show."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _columns(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[_short(value) for value in column] for column in values.T.tolist()]


def _curve(curve: Curve) -> dict[str, Any]:
    known = bool(np.isfinite(curve.stderr).any())
    return {
        "epoch": (curve.epoch + 1).tolist(),
        "mean": _columns(curve.mean),
        "stderr": _columns(curve.stderr) if known else None,
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "step": series.step.round().astype(np.int64).tolist(),
        "values": _columns(series.values),
        "window": _short(max(series.window, 1.0)),
    }
