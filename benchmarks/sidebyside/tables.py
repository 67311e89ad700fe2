"""What was measured, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sidebyside.summary import median_interval

__all__ = ["BEGIN", "END", "fill_page", "markdown"]

BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 2 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{_times(ratio['median'])} ({_times(ratio['lower'])} to {_times(ratio['upper'])})"


def plain_row(case: Report) -> Mapping[str, Any]:
    """Return the row of plain training."""
    row: Mapping[str, Any] = next(r for r in case["rows"] if r["group"] == "plain")
    return row


def pooled(rows: Rows) -> dict[str, float] | None:
    """Return median and 95 % interval of the ratios of several rows taken together.

    The number of mini-batches n changes the shape of a small matrix only, so the turns of all n
    are turns of one contender.
    """
    paired = [ratio for row in rows for ratio in row["paired"]]
    if not paired:
        return None
    lower, upper = median_interval(paired)
    return {"median": statistics.median(paired), "lower": lower, "upper": upper}


def verdict(case: Report, ratio: Mapping[str, float], extra: float) -> str:
    """Say whether the time target is kept by what was measured, and whether noise may decide it.

    Args:
        case: What was measured on.
        ratio: Median and interval of the time over plain training's.
        extra: Seconds on top.
    """
    if plain_row(case)["seconds"]["median"] < 0.02:
        return "kept" if extra <= 30e-6 * case["tasks"] else "missed"
    if ratio["median"] <= 1.03:
        return "kept" if ratio["upper"] <= 1.03 else "kept, within noise"
    return "missed" if ratio["lower"] > 1.03 else "missed, within noise"


def is_sr(row: Mapping[str, Any]) -> bool:
    """Whether a row is ntkmtl-sr by the representation, heads walked once."""
    label = str(row["label"])
    ours = row["group"] == "ntkmtl" and label.startswith("ntkmtl-sr")
    return ours and "hooked" not in label and "probe" not in label


def _overview(cases: Sequence[Report]) -> list[str]:
    lines = [
        "| network | tasks | plain, ms per step | ntkmtl-sr over plain, by n | all n together "
        "(95 % interval) | ls over plain | peak memory | time target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        rows = [r for r in case["rows"] if is_sr(r) and not r["error"] and "," not in r["label"]]
        together = pooled(rows)
        if together is None:
            continue
        by_n = ", ".join(f"{r['minibatches']}: {_times(r['ratio']['median'])}" for r in rows)
        extra = statistics.median(r["extra"] for r in rows)
        memory = [r["memory_ratio"] for r in rows]
        same = [r for r in case["rows"] if r["label"] == "ls" and not r["error"]]
        lines.append(
            f"| {case['title']} | {case['tasks']} | {_ms(plain_row(case)['seconds']['median'])} | "
            f"{by_n} | {_interval(together)} | "
            f"{_interval(same[0]['ratio']) if same else ''} | {min(memory):.2f} to "
            f"{max(memory):.2f} | {verdict(case, together, extra)} |"
        )
    return lines


def _case(case: Report) -> list[str]:
    lines = [
        f"### {case['title']}, {case['tasks']} tasks",
        "",
        f"{case['size'].capitalize()}; batches of {case['batch']}. Load average at the start: "
        f"{case['load']:.1f}.",
        "",
        "| what | ms per step (quartiles) | time over plain (95 % interval) | us on top, per task "
        "| peak MiB | memory over plain | training's own | turns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in case["rows"]:
        if row["error"]:
            continue
        seconds = row["seconds"]
        lines.append(
            f"| {row['label']} | {_ms(seconds['median'])} ({_ms(seconds['lower'])} to "
            f"{_ms(seconds['upper'])}) | {_interval(row['ratio'])} | "
            f"{row['extra'] * 1e6 / case['tasks']:.0f} | {row['peak_bytes'] / 2**20:.0f} | "
            f"{row['memory_ratio']:.2f} | {row['growth_ratio']:.2f} | {row['turns']} |"
        )
    absent = [row for row in case["rows"] if row["error"]]
    if absent:
        lines += ["", "Not possible here:", ""]
        lines += [f"- {row['label']}: {row['error']}" for row in absent]
    return lines


def markdown(report: Report, pictures: Mapping[str, str]) -> str:
    """Return the measured part of the page.

    Args:
        report: What ``peers.py`` wrote as JSON.
        pictures: Captions of pictures, by their place relative to the page.
    """
    facts = report["facts"]
    lines = [
        "Measured by",
        "",
        "```sh",
        report["command"],
        "```",
        "",
        "on " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".",
        "",
    ]
    for place, caption in pictures.items():
        lines += [f"![{caption}]({place})", "", caption, ""]
    lines += ["## In short", "", *_overview(report["cases"]), "", "## All of it", ""]
    for case in report["cases"]:
        lines += [*_case(case), ""]
    return "\n".join(lines).rstrip() + "\n"


def fill_page(page: str, measured: str) -> str:
    r"""Return a page with its marked part replaced.

    Raises:
        ValueError: The page does not hold both marks, in order, once.

    Example:
        >>> print(fill_page(f"a\n{BEGIN}\nold\n{END}\nb\n", "new\n"))
        a
        <!-- measured: begin -->
        <BLANKLINE>
        new
        <BLANKLINE>
        <!-- measured: end -->
        b
        <BLANKLINE>
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must hold {BEGIN} and then {END}, each once")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{measured.strip()}\n\n{END}{after}"
