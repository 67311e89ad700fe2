"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def meets_target(case: Report, row: Mapping[str, Any]) -> bool:
    """Whether a row of ntkmtl-sr keeps the time target.

    At most 1.03 times plain training where a step takes 20 ms or more, else at most 30 microseconds
    per task on top.
    """
    base = plain_row(case)["seconds"]["median"]
    if base >= 0.02:
        return bool(row["ratio"]["median"] <= 1.03)
    return bool(row["extra"] <= 30e-6 * case["tasks"])


def is_sr(row: Mapping[str, Any]) -> bool:
    """Whether a row is ntkmtl-sr by the representation, heads walked once."""
    label = str(row["label"])
    ours = row["group"] == "ntkmtl" and label.startswith("ntkmtl-sr")
    return ours and "hooked" not in label and "probe" not in label


def _overview(cases: Sequence[Report]) -> list[str]:
    lines = [
        "| network | tasks | plain, ms per step | ntkmtl-sr over plain, by n | on top, per task | "
        "peak memory | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        rows = [r for r in case["rows"] if is_sr(r) and not r["error"]]
        if not rows:
            continue
        alike = [r for r in rows if "," not in r["label"]]
        by_n = ", ".join(f"{r['minibatches']}: {_times(r['ratio']['median'])}" for r in alike)
        extra = [r["extra"] * 1e6 / case["tasks"] for r in rows]
        memory = [r["memory_ratio"] for r in rows]
        kept = sum(meets_target(case, r) for r in rows)
        lines.append(
            f"| {case['title']} | {case['tasks']} | {_ms(plain_row(case)['seconds']['median'])} | "
            f"{by_n} | {min(extra):.0f} to {max(extra):.0f} us | {min(memory):.2f} to "
            f"{max(memory):.2f} | kept by {kept} of {len(rows)} |"
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
