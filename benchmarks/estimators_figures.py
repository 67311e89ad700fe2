"""Table and figures of the estimator study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntkmtl.files import atomic_write

__all__ = ["draw", "table"]

_COLORS = {
    "plain": "#5b6570",
    "free": "#0072b2",
    "probe": "#e69f00",
    "exact": "#d55e00",
    "averaged": "#8c510a",
    "exact factor": "#cc79a7",
    "corrected": "#009e73",
}
_NAMES = {
    "plain": "equal weights",
    "free": "free",
    "probe": "fresh probes",
    "exact": "exact, held",
    "averaged": "exact, rare and averaged",
    "exact factor": "free times a factor from exact",
    "corrected": "free, corrected by probes",
}


def table(report: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    facts = report["facts"]
    parts = [
        f"Measured on {facts['date']}, {facts['machine']}, {facts['threads']} thread, torch "
        f"{facts['torch']}; times are processor time, other jobs were on the machine."
    ]
    for name, case in report["cases"].items():
        seconds = case["seconds"]
        best = min(row["smoothed"] for row in case["rows"])
        parts.append(
            f"### {case['title']}\n\n{case['total']} steps"
            f"{', a reduced recipe' if case['reduced'] else ''}, "
            f"{len(case['steps'])} of them compared; a step of plain training takes "
            f"{seconds['plain'] * 1e3:.3g} ms, one direction {seconds['probe'] * 1e3:.3g} ms "
            f"(mode `{case['mode']}`), exact blocks {seconds['exact'] * 1e3:.3g} ms; "
            f"{case['wall_seconds']:.0f} s in all.\n\n"
            f"![Error against price](images/estimators-{name}.png)\n"
        )
        lines = [
            "| estimator | price (x LS) | against each step's exact | against smoothed exact |",
            "| --- | ---: | ---: | ---: |",
        ]
        for row in case["rows"]:
            calm = f"{row['smoothed']:.3f}"
            shown = f"**{calm}**" if row["smoothed"] == best else calm
            lines.append(f"| {row['label']} | {row['price']:.2f} | {row['error']:.3f} | {shown} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """Draw error against price, one figure per workload."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for name, case in report["cases"].items():
        style: dict[Any, Any] = {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9.5,
        }
        with mpl.rc_context(style):
            figure, axes = plt.subplots(figsize=(9.2, 4.8), layout="constrained")
            front = _front(case["rows"])
            for group, color in _COLORS.items():
                rows = [row for row in case["rows"] if row["group"] == group]
                axes.scatter(
                    [row["price"] for row in rows],
                    [row["smoothed"] for row in rows],
                    s=[46 if row in front else 20 for row in rows],
                    color=color,
                    label=_NAMES[group],
                    zorder=3,
                )
            axes.plot(
                [row["price"] for row in front],
                [row["smoothed"] for row in front],
                color="#b8c0c8",
                linewidth=1.0,
                drawstyle="steps-post",
                zorder=1,
            )
            for i, row in enumerate(front):
                axes.annotate(
                    str(i + 1),
                    (row["price"], row["smoothed"]),
                    xytext=(-4, -12),
                    textcoords="offset points",
                    fontsize=8.5,
                    ha="right",
                )
            names = "\n".join(f"{i + 1}  {row['label']}" for i, row in enumerate(front))
            axes.text(1.02, 0.0, names, transform=axes.transAxes, fontsize=8.5, linespacing=1.6)
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = [1, 1.5, 2, 3, 5, 10]
            axes.set_xticks(
                [x for x in ticks if x <= 1.3 * max(row["price"] for row in case["rows"])]
            )
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.xaxis.set_minor_formatter(lambda x, _: "")
            low = min(row["smoothed"] for row in case["rows"])
            high = max(row["smoothed"] for row in case["rows"])
            axes.set_yticks(
                [y for y in (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2) if 0.7 * low < y < 1.5 * high]
            )
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axes.yaxis.set_minor_formatter(lambda y, _: "")
            axes.grid(color="#e8ebef")
            axes.set_axisbelow(True)
            axes.set_xlabel("time of a step, x plain training")
            axes.set_ylabel("rms error of log weights, against smoothed exact")
            axes.set_title(case["title"], fontsize=9.5)
            axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.02))
            with atomic_write(folder / f"estimators-{name}.png") as file:
                figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
            plt.close(figure)


def _front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that nothing cheaper comes within 3 % of."""
    best = float("inf")
    front = []
    for row in sorted(rows, key=lambda row: (round(row["price"], 2), row["smoothed"])):
        if row["smoothed"] < 0.97 * best:
            best = row["smoothed"]
            front.append(row)
    return front
