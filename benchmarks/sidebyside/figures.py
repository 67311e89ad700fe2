"""The paper's Figures 1 and 4, as measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ntkmtl.files import atomic_write

__all__ = ["draw"]

_INK, _MUTED, _GRID = "#1c2128", "#5b6570", "#e8ebef"
_COLORS = {
    "plain": "#5b6570",
    "ntkmtl": "#0072b2",
    "torchjd": "#e69f00",
    "published": "#d55e00",
    "libmtl": "#009e73",
}
_NAMES = {
    "plain": "plain training (LS)",
    "ntkmtl": "ntkmtl",
    "torchjd": "TorchJD",
    "published": "published code, or its calls",
    "libmtl": "LibMTL",
}
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
}

Case = Mapping[str, Any]


def _largest(cases: Sequence[Case], network: str) -> Case | None:
    """Return the case of a network with the most tasks."""
    own = [case for case in cases if case["network"] == network]
    return max(own, key=lambda case: int(case["tasks"])) if own else None


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw what the report holds data for.

    Args:
        report: What ``peers.py`` wrote as JSON.
        folder: Where the PNG files go.

    Returns:
        Captions by name of file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    captions: dict[str, str] = {}
    with mpl.rc_context(_STYLE):
        case = _largest(report["cases"], "celeba")
        if case is not None:
            _step_times(case, folder / "step-time.png")
            captions["step-time.png"] = (
                f"Time of one training step of the {case['title']} with {case['tasks']} tasks (the "
                "paper's Figure 1). Bars are medians, lines 95 % intervals of the ratio to plain "
                "training; the axis is logarithmic."
            )
        case = _largest(report["cases"], "qm9")
        if case is not None:
            _minibatches(case, folder / "minibatches.png")
            captions["minibatches.png"] = (
                f"NTKMTL-SR by number of mini-batches n, {case['title']} with {case['tasks']} "
                "tasks, relative to plain training (the paper's Figure 4), beside one "
                "autograd.grad call per task and mini-batch, as the published code has it. Bars "
                "are medians, lines 95 % intervals."
            )
    return captions


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    import matplotlib.pyplot as plt

    plt.close(figure)


def _amount(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.2g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _short(label: str) -> str:
    return (
        label.replace("plain sum(losses).backward()", "plain training (LS)")
        .replace(", k n autograd.grad calls, as the published code", ", k n calls as published")
        .replace(", its unused buffer left out", "")
    )


def _step_times(case: Case, path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = [row for row in case["rows"] if not row["error"] and row["label"] != "ls"]
    rows.sort(key=lambda row: float(row["ratio"]["median"]), reverse=True)
    base = next(row for row in rows if row["group"] == "plain")["seconds"]["median"]
    figure, axes = plt.subplots(figsize=(8.2, 0.6 + 0.27 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        ratio = row["ratio"]
        # Ratios are what was measured in pairs; seconds follow from them.
        width = base * ratio["median"]
        axes.barh(place, width, color=_COLORS[row["group"]], height=0.66)
        axes.plot(
            [base * ratio["lower"], base * ratio["upper"]], [place] * 2, color=_INK, linewidth=1.1
        )
        shown = f"{ratio['median']:.2f}" if ratio["median"] < 10 else f"{ratio['median']:.0f}"
        axes.text(
            max(width, base * ratio["upper"]) * 1.04,
            place,
            f"{_amount(width)}, {shown} ×",
            va="center",
            fontsize=8.5,
        )
    axes.axvline(base, color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [_short(str(row["label"])) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    widest = base * max(float(row["ratio"]["median"]) for row in rows)
    axes.set_xscale("log")
    axes.set_xlim(base * 0.5, widest * (3.2 if widest > 4 * base else 1.6))
    axes.xaxis.set_major_formatter(lambda value, _: _amount(value))
    if widest < 8 * base:
        axes.xaxis.set_minor_formatter(lambda value, _: _amount(value))
    axes.set_xlabel("time per step")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    groups = [group for group in _NAMES if any(row["group"] == group for row in rows)]
    axes.legend(
        handles=[Patch(color=_COLORS[group], label=_NAMES[group]) for group in groups],
        loc="upper right",
        frameon=False,
        fontsize=8.5,
    )
    _save(figure, path)


def _minibatches(case: Case, path: Path) -> None:
    import matplotlib.pyplot as plt

    series: dict[str, list[Mapping[str, Any]]] = {"ntkmtl": [], "published": []}
    for row in case["rows"]:
        label = str(row["label"])
        if row["error"] or not label.startswith("ntkmtl-sr"):
            continue
        if row["group"] == "published" or "," not in label:
            series[row["group"]].append(row)
    counts = sorted({int(row["minibatches"]) for rows in series.values() for row in rows})
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    axes.axhline(1.0, color=_MUTED, linewidth=1.0, linestyle=":")
    axes.bar([-1], [1.0], width=0.4, color=_COLORS["plain"], label="plain training (LS)")
    names = {"ntkmtl": "ntkmtl-sr", "published": "k n autograd.grad calls, as published"}
    present = [group for group, rows in series.items() if rows]
    width = 0.4
    for g, group in enumerate(present):
        offset = (g - (len(present) - 1) / 2) * width
        places = [counts.index(int(row["minibatches"])) + offset for row in series[group]]
        medians = [float(row["ratio"]["median"]) for row in series[group]]
        axes.bar(places, medians, width=width * 0.94, color=_COLORS[group], label=names[group])
        for place, median, row in zip(places, medians, series[group], strict=True):
            lower, upper = float(row["ratio"]["lower"]), float(row["ratio"]["upper"])
            axes.plot([place, place], [lower, upper], color=_INK, linewidth=1.1)
            axes.text(
                place, max(upper, median), f"{median:.2f}", ha="center", va="bottom", fontsize=8.5
            )
    axes.set_xticks([-1, *range(len(counts))], ["LS", *(f"n = {n}" for n in counts)])
    axes.set_ylabel("time per step, × plain training")
    axes.grid(axis="y")
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.12)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    _save(figure, path)
