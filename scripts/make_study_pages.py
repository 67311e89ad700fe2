"""Write what the docs say of the study: tables, words and diagrams, from its results.

    python scripts/make_study_pages.py

Reads `docs/study/large`, fills the marked parts of `docs/study.md`, `docs/index.md` and
`README.md`, and draws `docs/images/study-*.svg`. The tests fail where the text is not up to date.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.study import judge
from ntkmtl.bench.study.judgement import MethodOnProblem, Overall, StudyJudgement
from ntkmtl.bench.study.page import cost_figure, rank_figure, rate_figure
from ntkmtl.bench.study.plan import stored_plan
from ntkmtl.bench.study.results import MethodResult, read_results
from ntkmtl.files import write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "study" / "large"
IMAGES = ROOT / "docs" / "images"


def markers(name: str) -> tuple[str, str]:
    """Return the lines around a part that this script writes."""
    return f"<!-- study {name}: begin -->\n", f"<!-- study {name}: end -->"


def filled(path: Path, name: str, text: str) -> str:
    """Return a page with the text between its markers."""
    page = path.read_text("utf-8")
    begin, end = markers(name)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path.name} needs one {begin.strip()} and one {end}")
    head, rest = page.split(begin)
    return head + begin + text.rstrip("\n") + "\n" + end + rest.split(end)[1]


def spread(values: list[float | None]) -> str:
    """Return mean and standard error over seeds."""
    known = [value for value in values if value is not None]
    if not values:
        return ""
    if len(known) < len(values):
        return f"{len(values) - len(known)} of {len(values)} diverged"
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return f"{statistics.fmean(known):.1f} ± {error:.1f}"


def difference(entry: Overall) -> str:
    """Return the difference to the plain sum with its interval."""
    found = entry.difference
    if entry.method == "ls":
        return "0"
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})" if found else ""


def ratio(value: float | None) -> str:
    """Return a ratio of times."""
    return "" if value is None else f"{value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, its first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def problem_table(found: StudyJudgement, column: str) -> str:
    """Return Delta-m of every method on every problem, best first.

    Args:
        found: The judgement.
        column: ``tuned`` or ``published``.
    """
    head = ["method", *(p.problem for p in found.problems)]
    rows = []
    for entry in found.overall:
        own = [p.of(entry.method) for p in found.problems]
        rows.append([entry.method, *(spread(getattr(r, column)) if r else "" for r in own)])
    if column == "tuned":
        head += ["minus `ls`, 95 % interval", "step (× `ls`)", "search (× `ls`)"]
        for row, entry in zip(rows, found.overall, strict=True):
            row += [difference(entry), ratio(entry.step_ratio), ratio(entry.tuning_ratio)]
    return table(head, rows)


def settings(results: list[MethodResult], problem: str) -> str:
    """Return the settings found for each method on one problem."""
    rows = []
    for result in sorted(results, key=lambda r: r.method):
        if result.problem != problem or result.tuned is None or result.method == SINGLE_TASK:
            continue
        options = {k: v for k, v in result.tuned.method_options.items() if k != "weights"}
        rate = result.tuned.recipe.get("learning_rate", result.request["recipe"]["learning_rate"])
        more = ", ".join(f"`{k}={json.dumps(v)}`" for k, v in sorted(options.items()))
        rows.append([result.method, f"{rate:g}", more or "as published"])
    return table(["method", "learning rate", "settings"], rows)


def one_problem(found: StudyJudgement, problem: str) -> str:
    """Return published and tuned Delta-m of each method on one problem, best first."""
    judged = next(p for p in found.problems if p.problem == problem)

    def order(row: MethodOnProblem) -> float:
        return math.inf if row.mean is None else row.mean

    rows = [
        [
            row.method,
            spread(row.published),
            spread(row.tuned),
            "recipe's" if row.learning_rate is None else f"{row.learning_rate:g}",
            "" if row.p_value is None else f"{row.p_value:.2g}",
            ratio(row.step_ratio),
        ]
        for row in sorted(judged.methods, key=order)
    ]
    head = ["method", "Δm as published (%) ↓", "Δm tuned (%) ↓", "rate found", "p", "step (× `ls`)"]
    return table(head, rows)


def study_text(results: list[MethodResult], found: StudyJudgement) -> str:
    """Return the part of docs/study.md."""
    parts = [
        "\n".join(f"- {sentence}" for sentence in found.words),
        "![Mean ranks of the methods named in advance; a bar joins methods that cannot be "
        "distinguished](images/study-ranks.svg)"
        if found.ranking
        else "",
        "![Difference to the plain sum against the time of a step, of methods trained on all "
        "problems](images/study-costs.svg)",
        "Tuned, Δm in percent, mean and standard error over seeds:",
        problem_table(found, "tuned"),
        "With the settings as published, at the recipe's learning rate:",
        problem_table(found, "published"),
        *(
            f"Settings found on {p.problem}:\n\n{settings(results, p.problem)}"
            for p in found.problems
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def pages() -> dict[Path, str]:
    """Return the pages that this script writes, with their new text."""
    results = read_results(FOLDER)
    found = judge(results, stored_plan(FOLDER).diagram)
    sizes = sorted({len(r.tuned.runs) for r in results if r.tuned})
    seeds = " to ".join(str(n) for n in sorted({sizes[0], sizes[-1]}))
    trials = sorted({int(r.request["trials"]) for r in results if r.request["trials"]})
    budget = " to ".join(str(n) for n in sorted({trials[0], trials[-1]}))
    count = len(found.problems)
    what = f"{count} problems, {budget} trials for every method, {seeds} fresh seeds"
    readme = (
        f"{what}. First the problem `qm9-mini`: *rate found* is the tuned learning rate, *p* that "
        "of a\npaired t-test of the tuned runs against `ls` (Holm's correction), *step* the time "
        "of a training step.\n\n"
        f"{one_problem(found, 'qm9-mini')}\n\n"
        f"All {count} problems, tuned; the last columns are means over the problems that a row "
        "has,\nand *search* is the time of the whole search.\n\n"
        f"{problem_table(found, 'tuned')}"
    )
    image = (
        "![Difference of each method to the plain sum, after the same search for both, against "
        "the time of a step](images/study-costs.svg)"
    )
    methods = "methods that were trained on all problems, 95 % intervals"
    landing = f"{image}\n\n{what[0].upper()}{what[1:]}; {methods}: [the study](study.md)."
    study = ROOT / "docs" / "study.md"
    index = ROOT / "docs" / "index.md"
    return {
        study: filled(study, "results", study_text(results, found)),
        index: filled(index, "picture", landing),
        ROOT / "README.md": filled(ROOT / "README.md", "table", readme),
    }


def draw() -> None:
    """Draw the diagrams of the study."""
    found = judge(read_results(FOLDER), stored_plan(FOLDER).diagram)
    # Points of a method that was trained on some problems only stand beside no other.
    everywhere = [entry for entry in found.overall if entry.problems == len(found.problems)]
    figures: dict[str, Figure] = {"costs": cost_figure(everywhere)}
    if found.ranking:
        figures["ranks"] = rank_figure(found.ranking)
    for problem in found.problems:
        figures[f"rates-{problem.problem}"] = rate_figure(problem)
    no_metadata = dict.fromkeys(("Creator", "Date"))
    # Equal figures get equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "ntkmtl"}):
        for name, figure in figures.items():
            figure.savefig(IMAGES / f"study-{name}.svg", metadata=no_metadata)


def main() -> None:
    """Write all pages and figures."""
    draw()
    for path, text in pages().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
