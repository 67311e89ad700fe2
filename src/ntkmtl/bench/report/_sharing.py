"""Whether sharing a network helped each task, against its single-task network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ntkmtl.bench.report._words import listing

if TYPE_CHECKING:
    from ntkmtl.bench.report._table import MethodRow, MetricColumn, SeedMean


def sharing_note(columns: Sequence[MetricColumn], rows: Sequence[MethodRow]) -> str:
    """Return in which metrics the method of lowest mean rank beats the single-task networks.

    A difference counts where it is more than two standard errors of itself. Without rows of
    single-task networks the sentence is ``""``.
    """
    alone = next((row for row in rows if row.is_baseline), None)
    ranked = [row for row in rows if row.mean_rank is not None]
    if alone is None or not ranked:
        return ""
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found: dict[str, list[str]] = {"helped": [], "hurt": [], "made no clear difference in": []}
    for column, shared, single in zip(columns, best.estimates, alone.estimates, strict=True):
        if shared is None or single is None:
            continue
        said = f"{column.label} ({_shown(shared)}, alone {_shown(single)})"
        found[_verdict(shared, single, column.higher_is_better)].append(said)
    parts = [f"{what} {listing(names, 20)}" for what, names in found.items() if names]
    if not parts:
        return ""
    seeds = "" if len(best.seeds) > 1 else " One seed says little: differences are not judged."
    return f"Sharing with {best.label}, the lowest MR: {'; '.join(parts)}.{seeds}"


def _verdict(shared: SeedMean, single: SeedMean, higher_is_better: bool) -> str:
    if shared.stderr is None or single.stderr is None:
        return "made no clear difference in"
    gain = (shared.mean - single.mean) * (1 if higher_is_better else -1)
    error = math.hypot(shared.stderr, single.stderr)
    if abs(gain) <= 2 * error:
        return "made no clear difference in"
    return "helped" if gain > 0 else "hurt"


def _shown(value: SeedMean) -> str:
    return f"{value.mean:.3g}" + ("" if value.stderr is None else f" ± {value.stderr:.2g}")
