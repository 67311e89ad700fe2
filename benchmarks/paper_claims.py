r"""Which claims of the NTKMTL paper's Section 4 and of its figures hold at reduced size.

    python benchmarks/paper_claims.py docs/study/large \
        --figures docs/paper-claims/figures.json --page docs/paper-claims.md

Trains nothing: reads the final runs of a study on qm9-mini and enb, and what
`benchmarks/paper_figures.py` wrote of Figures 2 to 4. A claim that one method has a
lower Delta-m than another is judged by the difference, paired by seed, with a 95 % t interval.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paired import FAILS, HOLDS, UNKNOWN, difference
from paper_figures import figure_rows, read_numbers
from sidebyside.tables import fill_page

from ntkmtl.bench.study import judge
from ntkmtl.bench.study.judgement import MethodOnProblem, ProblemJudgement
from ntkmtl.bench.study.results import read_results
from ntkmtl.files import write_text

PROBLEMS = ("qm9-mini", "enb")

OURS = ("ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "ntkmtl-auto", "ntkmtl-log")

MARGIN = 1.1
"""A step may take so many times that of the slowest method of a kind and still count as it."""

BEYOND_THE_PAPER = ("fixed", "ntkmtl-tk", "ntkmtl-auto", "ntkmtl-log")
"""Methods of the study that the paper does not compare."""


def lower(
    claim: str, problem: ProblemJudgement, method: str, others: Sequence[str], setting: str
) -> list[str]:
    """Return the row of a claim that a method's Delta-m is lower than each of some others'.

    It holds if it does against all, and does not if it does not against one of them.
    """
    values = {m.method: getattr(m, setting) for m in problem.methods}
    found = {
        other: pair
        for other in others
        if other in values and (pair := difference(values[method], values[other])) is not None
    }
    verdicts = [pair.verdict for pair in found.values()]
    if not verdicts:
        verdict = UNKNOWN
    elif FAILS in verdicts:
        verdict = FAILS
    else:
        verdict = HOLDS if set(verdicts) == {HOLDS} else UNKNOWN
    # The method that comes nearest to refuting the claim.
    worst = max(found, key=lambda other: found[other].mean, default=None)
    against = "no runs" if worst is None else f"less {worst}: {found[worst]}"
    return [claim, f"{problem.problem}, {setting}", against, verdict]


def beats_single_task(problem: ProblemJudgement) -> list[str]:
    """Return the row on which methods are better than single-task networks in every task."""
    counts = {m.method: sum(value < 0 for value in m.tasks) for m in problem.methods}
    tasks = len(problem.metrics)
    every = sorted(name for name, count in counts.items() if count == tasks)
    ours = f"ntkmtl {counts['ntkmtl']} of {tasks}; all {tasks}: {', '.join(every) or 'no method'}"
    others = [name for name in every if name not in OURS]
    verdict = FAILS if counts["ntkmtl"] < tasks or others else HOLDS
    claim = "NTKMTL alone (beside GO4Align, not run) beats single-task networks in every task"
    return [claim, f"{problem.problem}, tuned", f"mean metrics: {ours}", verdict]


def cost(problem: ProblemJudgement) -> Iterator[list[str]]:
    """Yield the rows on the time of a step, which is given and not judged by an interval."""
    ratio = {m.method: m.step_ratio for m in problem.methods}

    def named(names: Sequence[str]) -> str:
        return ", ".join(f"{n} {ratio[n]:.2f}" for n in names if ratio.get(n) is not None)

    slowest = max(ratio[n] or 0.0 for n in ("si", "uw", "famo", "dwa", "rlw") if n in ratio)
    gradient = [ratio[n] or 0.0 for n in ("nash-mtl", "fairgrad", "imtl-g") if n in ratio]
    sr, exact = ratio["ntkmtl-sr"] or math.nan, ratio["ntkmtl"] or math.nan
    yield [
        "NTKMTL-SR is as fast as methods that read losses",
        problem.problem,
        f"step over plain: {named(['ntkmtl-sr', 'uw', 'famo', 'si'])}",
        HOLDS if sr <= MARGIN * slowest else FAILS,
    ]
    yield [
        "NTKMTL costs what other methods of gradients do",
        problem.problem,
        f"step over plain: {named(['ntkmtl', 'nash-mtl', 'fairgrad', 'imtl-g'])}",
        HOLDS if exact <= MARGIN * max(gradient) else FAILS,
    ]


def rows(problems: Sequence[ProblemJudgement]) -> Iterator[list[str]]:
    """Yield all rows."""
    by_name = {problem.problem: problem for problem in problems}
    for name in PROBLEMS:
        problem = by_name[name]
        peers = [m.method for m in problem.methods if m.method not in BEYOND_THE_PAPER]
        for setting in ("published", "tuned"):
            for method in ("ntkmtl", "ntkmtl-sr"):
                label = method.upper()
                yield lower(f"{label} beats the plain sum", problem, method, ["ls"], setting)
                others = [peer for peer in peers if peer not in OURS]
                claim = f"{label} has the lowest Δm of all methods that the paper compares"
                yield lower(claim, problem, method, others, setting)
            claim = "NTKMTL-SR is better than NTKMTL (said of QM9)"
            yield lower(claim, problem, "ntkmtl-sr", ["ntkmtl"], setting)
        yield beats_single_task(problem)
        yield from cost(problem)


def plain_tasks(problem: ProblemJudgement) -> str:
    """Return how unevenly the plain sum treats the tasks, against the other methods."""

    def span(row: MethodOnProblem) -> str:
        return f"{row.method} {min(row.tasks):+.0f} to {max(row.tasks):+.0f}"

    wanted = ("ls", "ntkmtl", "ntkmtl-sr")
    spans = [span(row) for row in problem.methods if row.method in wanted and row.tasks]
    return f"{problem.problem}: {'; '.join(spans)}."


def text(folder: Path, figures: Path) -> str:
    """Return what stands on the page."""
    problems = judge(read_results(folder)).problems
    known = [problem for problem in problems if problem.problem in PROBLEMS]
    if missing := set(PROBLEMS) - {problem.problem for problem in known}:
        raise ValueError(f"{folder} has no results on {', '.join(sorted(missing))}; run the study")
    seeds = max(len(row.tuned) for problem in known for row in problem.methods)
    lines = [f"Up to {seeds} seeds; Δm in percent, less is better.", ""]
    lines += ["| claim | on | numbers | |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(known)]
    lines += ["", *figure_part(read_numbers(figures))]
    lines += ["", "Metrics against single-task networks, percent, best to worst task (tuned):", ""]
    lines += [f"- {plain_tasks(problem)}" for problem in known]
    return "\n".join(lines)


def figure_part(numbers: Mapping[str, Any]) -> list[str]:
    """Return the lines on the paper's figures."""
    seeds = len(numbers["minibatches"][0]["seeds"])
    return [
        f"The figures, reduced: qm9-mini, published settings, {seeds} seeds, {numbers['epochs']} "
        f"epochs for Figures 3 and 4 and {numbers['epochs_recorded']} for Figure 2:",
        "",
        "| claim | numbers | |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in figure_rows(numbers)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Claims of the paper's Section 4.")
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument(
        "--figures", type=Path, required=True, help="what benchmarks/paper_figures.py wrote"
    )
    parser.add_argument("--page", type=Path, help="the page whose marked part is filled")
    arguments = parser.parse_args(argv)
    if arguments.page is None:
        print(text(arguments.study, arguments.figures))
    else:
        page = arguments.page.read_text("utf-8")
        write_text(arguments.page, fill_page(page, text(arguments.study, arguments.figures)))


if __name__ == "__main__":
    main()
