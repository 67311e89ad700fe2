"""One self-contained page on the kernels recorded while training on a problem."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntkmtl.bench.report._html import page_text
from ntkmtl.bench.report._render import printable
from ntkmtl.bench.report._study import FRACTION, MethodRecord, Study
from ntkmtl.bench.report._words import seeds_text, short
from ntkmtl.files import write_text

_POINTS = 400
"""Points of a line; longer runs are averaged over windows of steps."""
_WINDOWS = 8
"""Parts of training for which the affinity is shown."""
_PER_TASK = {
    "eigenvalues": "max_eigenvalues",
    "weighted": "weighted_eigenvalues",
    "entropy": "effective_ranks",
    "participation": "participation_ratios",
    **{name: name for name in ("residual_traces", "residual_eigenvalues", "convergence")},
    **{name: name for name in ("weights", "losses")},
}
"""Lines of each task by their name in the page's script, from a record's attribute."""
_PAIRS = ("condition", "rank", "imbalance")
"""Lines before and after weighting."""
_SOURCES = {"exact": "shared parameters (exact)", "representation": "shared representation"}


def write_page(study: Study, path: str | os.PathLike[str], *, groups: int | None = None) -> Path:
    """Write the page.

    Args:
        study: The records.
        path: Where to write.
        groups: Number of groups of tasks, chosen by the rule of
            :func:`ntkmtl.analysis.group_tasks` if None.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``groups`` is not in 1..k.
        MissingExtraError: plotly, jinja2 or scipy is not installed.
    """
    path = Path(path)
    write_text(
        path,
        page_text(
            "analysis",
            [_data(study, groups)],
            page=_page(study, groups),
            title=printable(study.problem),
        ),
    )
    return path


def _page(study: Study, groups: int | None) -> dict[str, Any]:
    config = study.configs[0]
    recipe = config.recipe
    seeds = sorted({seed for record in study.methods for seed in record.seeds})
    last = max(int(record.step[-1]) for record in study.methods)
    return {
        "name": printable(study.problem),
        "reduced": bool(recipe["reduced"]),
        "facts": [
            ("Methods", str(len(study.methods))),
            ("Tasks", str(len(study.tasks))),
            ("Seeds", seeds_text(seeds)),
            ("Epochs", f"{recipe['epochs']:,}"),
            ("Batch size", f"{recipe['batch_size']:,}"),
            ("Learning rate", f"{float(recipe['learning_rate']):g}"),
            ("Last recorded step", f"{last:,}"),
            ("Parameters", f"{config.parameters:,}"),
        ],
        "description": printable(str(recipe["description"]), 500),
        "notes": [printable(note, 500) for note in study.notes],
        "methods": [printable(record.label) for record in study.methods],
        "rows": [_row(study, record, groups) for record in study.methods],
        "percent": f"{100 * FRACTION:g}",
        "residuals": any(bool(r.residual_traces.isfinite().any()) for r in study.methods),
    }


def _row(study: Study, record: MethodRecord, groups: int | None) -> dict[str, Any]:
    found = record.grouping(groups)
    every = f"every {record.every} steps" if len(record.step) > 1 else "once"
    return {
        "method": printable(record.label),
        "kernel": f"{_SOURCES.get(record.source, 'not said')}, {every}",
        **{name: [_median(side) for side in getattr(record, name).T] for name in _PAIRS},
        "groups": None
        if found is None
        else [
            {
                "tasks": ", ".join(printable(name) for name in names),
                "within": "alone" if math.isnan(within) else _text(within),
            }
            for names, within in zip(found.names(study.tasks), found.within, strict=True)
        ],
        "between": "" if found is None or math.isnan(found.between) else _text(found.between),
    }


def _median(values: Tensor) -> str:
    known = values[values.isfinite()]
    return _text(float(known.quantile(0.5))) if len(known) else "–"


def _text(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


# ------------------------------------------------------------------------------------------------
# What the charts draw


def _data(study: Study, groups: int | None) -> dict[str, Any]:
    return {
        "tasks": [printable(task) for task in study.tasks],
        "methods": [_charts(record, groups) for record in study.methods],
    }


def _charts(record: MethodRecord, groups: int | None) -> dict[str, Any]:
    windows = torch.arange(len(record.step)).chunk(_POINTS)
    step = torch.stack([record.step[window].double().mean() for window in windows])

    def lines(values: Tensor) -> list[list[float | None]]:
        means = torch.stack([values[window].nanmean(dim=0) for window in windows])
        return [[short(value) for value in column] for column in means.T.tolist()]

    grouping = record.grouping(groups)
    return {
        "name": printable(record.label),
        "step": [round(value) for value in step.tolist()],
        "tasks": {name: lines(getattr(record, own)) for name, own in _PER_TASK.items()},
        "pairs": {name: lines(getattr(record, name)) for name in _PAIRS},
        "affinity": _affinity(record),
        "order": list(range(record.affinity.shape[1]) if grouping is None else grouping.order),
    }


def _affinity(record: MethodRecord) -> list[dict[str, Any]]:
    """Return the matrix averaged over the whole training, then over parts of it."""
    parts = torch.arange(len(record.step)).chunk(_WINDOWS)
    windows = [torch.arange(len(record.step)), *(parts if len(parts) > 1 else ())]
    return [
        {
            "first": int(record.step[window[0]]),
            "last": int(record.step[window[-1]]),
            "values": [
                [short(value) for value in row]
                for row in record.affinity[window].nanmean(dim=0).tolist()
            ],
        }
        for window in windows
    ]
