"""Write the cost on the landing page, and draw the plan of the packages.

    python scripts/make_site_pages.py

The numbers come from `docs/performance/measured.json`, the plan from the imports themselves. The
tests fail where either is not up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import grimp

from ntkmtl.files import write_text

ROOT = Path(__file__).parents[1]
LANDING = ROOT / "docs" / "index.md"
MEASURED = ROOT / "docs" / "performance" / "measured.json"
PLAN = ROOT / "docs" / "internals" / "plan.svg"
MARKS = ("<!-- cost -->\n", "<!-- end of cost -->")

LAYERS = (
    ("bench", ("ntkmtl.bench.cli",)),
    ("bench", ("ntkmtl.bench.paper", "ntkmtl.bench.study")),
    ("bench", ("ntkmtl.bench.report",)),
    ("bench", ("ntkmtl.bench.search", "ntkmtl.bench.reinforce")),
    ("bench", ("ntkmtl.bench.training",)),
    ("bench", ("ntkmtl.bench.trained", "ntkmtl.bench.estimator")),
    ("bench", ("ntkmtl.bench.jobs", "ntkmtl.bench.compute", "ntkmtl.bench.runs")),
    ("bench", ("ntkmtl.bench.problems",)),
    ("library", ("ntkmtl.integrations", "ntkmtl.watch", "ntkmtl.analysis")),
    ("library", ("ntkmtl.balance",)),
    ("library", ("ntkmtl.weighting",)),
    ("library", ("ntkmtl.kernel",)),
    ("library", ("ntkmtl.graph",)),
)
"""Packages from top to bottom, each row in one wing. `pyproject.toml` has the order."""

WIDTH, ROW, BOX, HEIGHT = 640, 58, 132, 30


def landing() -> str:
    """Return the landing page with the cost of today's measurements."""
    measured = json.loads(MEASURED.read_text("utf-8"))
    ratios = [
        row["ratio"]["median"]
        for case in measured["cases"]
        for row in case["rows"]
        if row["label"] == "ntkmtl-sr n=4"
    ]
    networks = sorted({case["title"] for case in measured["cases"]})
    shortest = 1e3 * min(case["rows"][0]["seconds"]["median"] for case in measured["cases"])
    facts = measured["facts"]
    text = (
        f"**{min(ratios):.2f} to {max(ratios):.2f} times the time of plain training** for a step "
        f"with NTKMTL-SR in 4\nmini-batches, where a plain step takes {shortest:.0f} ms or more: "
        f"{len(ratios)} combinations of a network ({', '.join(networks)})\n"
        f"and a number of tasks (2 to 40), each the median of its turns "
        f"on one core of an {facts['device']}, torch "
        f"{facts['torch'].partition('+')[0]},\n{facts['date']}: "
        "[what a step costs](performance.md), and [all numbers](performance/measured.json).\n"
    )
    before, rest = LANDING.read_text("utf-8").split(MARKS[0])
    return before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]


def edges() -> list[tuple[str, str]]:
    """Return the pairs of packages of which the first imports the second."""
    packages = [name for _, row in LAYERS for name in row]
    graph = grimp.build_graph("ntkmtl")

    def package(module: str) -> str:
        return next((p for p in packages if module == p or module.startswith(f"{p}.")), "")

    found = {
        (package(module), package(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return sorted((a, b) for a, b in found if a and b and a != b)


def plan() -> str:
    """Return the drawing."""
    places = dict(_places())
    height = 24 + ROW * len(LAYERS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for a, b in edges():
        (x, y), (u, v) = places[a], places[b]
        bend = (x + u) / 2 + (60 if v - y > ROW else 0) * (1 if x >= WIDTH / 2 else -1)
        color = "#7a8fb8" if b.startswith("ntkmtl.bench") else "#c08a4a"
        parts.append(
            f'<path d="M{x:.0f} {y + HEIGHT / 2:.0f} Q{bend:.0f} {(y + v) / 2:.0f} {u:.0f} '
            f'{v - HEIGHT / 2:.0f}" fill="none" stroke="{color}" opacity="0.55">'
            f"<title>{_short(a)} imports {_short(b)}</title></path>"
        )
    for name, (x, y) in places.items():
        fill = "#e3eaf7" if name.startswith("ntkmtl.bench") else "#f7ead9"
        parts.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" '
            f'height="{HEIGHT}" rx="5" fill="{fill}" stroke="#555555"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{_short(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _places() -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the middle of each package's box."""
    for i, (_, row) in enumerate(LAYERS):
        for j, name in enumerate(row):
            yield name, (WIDTH * (j + 1) / (len(row) + 1), 30 + ROW * i)


def _short(name: str) -> str:
    return re.sub(r"^ntkmtl\.", "", name)


if __name__ == "__main__":
    write_text(LANDING, landing())
    write_text(PLAN, plan())
