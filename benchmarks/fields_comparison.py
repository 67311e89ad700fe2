r"""The weightings of the field and ours on energies, forces and equations, as a table.

    python benchmarks/fields_comparison.py FOLDER ...                  # keeps the runs' numbers
    python benchmarks/fields_comparison.py --page docs/forces-and-equations.md

The folders hold runs of `ntkmtl compare`; the page names the commands. Rows of `fixed` and of
`ntkmtl-auto` with priorities are named by their ratio, read from each run's configuration: the
weight of all conditions but the residuals, or of all tasks but the forces; those have 1. Runs with
seed 1000 are trials: by their validation metrics one of the ratios is chosen, which is then a row
of its own.

What the JSON file held before stays in it, so that a later run adds seeds and problems.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidebyside.tables import fill_page

from ntkmtl.bench.runs import load_runs
from ntkmtl.files import write_json, write_text

TUNED = "fixed, tuned ratio"
ROWS = (
    "ls",
    "fixed, 1:100:1:1",
    "fixed, ratio 100",
    TUNED,
    "stage-swap",
    "softadapt",
    "relobralo",
    "lra",
    "pinn-ntk",
    "ntkmtl-auto",
    "ntkmtl-auto, ratio 100",
    "ntkmtl-auto, 1:10:1:1",
)
TIMED = ("ls", "softadapt", "relobralo", "lra", "pinn-ntk", "ntkmtl-auto")
"""Rows that took turns on one machine. Times of the others, run at other hours, do not compare."""
PINNS = ("burgers", "helmholtz", "allen-cahn", "wave", "navier-stokes")
KNOWN = Path("docs/fields/comparison.json")
TRIAL_SEED = 1000


def label(method: str, ratio: Sequence[float] | None) -> str:
    """Return a row's name.

    Args:
        method: The method.
        ratio: Weights or priorities of the tasks, None where none were given.
    """
    if ratio is None:
        return method
    if ratio[-1] == 1:  # the last task is not one of those whose weight is the ratio
        return f"{method}, {':'.join(f'{value:g}' for value in ratio)}"
    return f"{method}, ratio {max(ratio):.0f}"


def read(folder: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Yield problem, row, seed and numbers of each complete run below a folder."""
    for run in load_runs(folder)[0]:
        share = 1.0 if run.result.cpu_share is None else run.result.cpu_share
        options = run.config.method_options
        ratio = options.get("weights" if run.config.method == "fixed" else "priorities")
        split = run.result.val if run.config.seed == TRIAL_SEED else run.result.test
        yield (
            run.config.problem,
            label(run.config.method, ratio),
            run.config.seed,
            {
                "metrics": dict(zip((m.name for m in run.config.metrics), split, strict=True)),
                "step_ms": 1e3 * share * run.result.train_seconds / run.result.steps,
            },
        )


def chosen_ratio(trials: Mapping[str, Mapping[str, float]]) -> str:
    """Return the row with the best validation metrics of one problem's trials.

    Of an equation the relative L2 error decides; of the potential the mean over metrics of the
    logarithm, which is a geometric mean and so needs no units.
    """

    def score(row: str) -> float:
        numbers = trials[row]
        values = [numbers["l2"]] if "l2" in numbers else list(numbers.values())
        return statistics.fmean(math.log(value) for value in values)

    return min(trials, key=score)


def rows_of(known: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """Return the rows of a problem, that of the chosen ratio included."""
    rows = dict(known["runs"].get(problem, {}))
    trials = known["trials"].get(problem)
    if trials and chosen_ratio(trials) in rows:
        rows[TUNED] = rows[chosen_ratio(trials)]
    return rows


def mean(values: list[float]) -> str:
    """Return mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.1f} ± {error:.1f}"


def step_ratio(rows: Mapping[str, Any], row: str) -> float | None:
    """Return the median time of a step over that of the plain sum; None where it was not timed."""
    if row not in TIMED:
        return None

    def median(label: str) -> float:
        return float(statistics.median(run["step_ms"] for run in rows[label].values()))

    return float(median(row) / median("ls"))


def table(known: Mapping[str, Any]) -> str:
    """Return the tables: relative L2 errors of the equations, errors of the potential."""
    head = ["relative L2 error (%)", *(f"`pinn-{name}`" for name in PINNS), "step (× `ls`)"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in ROWS:
        cells, ratios = [], []
        for name in PINNS:
            rows = rows_of(known, f"pinn-{name}")
            if row not in rows:
                cells.append("")
                continue
            cells.append(mean([run["metrics"]["l2"] for run in rows[row].values()]))
            ratios.append(step_ratio(rows, row))
        if ratios:
            timed = [ratio for ratio in ratios if ratio is not None]
            spread = f"{min(timed):.2f} to {max(timed):.2f}" if timed else ""
            lines.append([row, *cells, spread])
    rows = rows_of(known, "xtb")
    metrics = {"energy": "E (meV/atom)", "forces": "F (meV/Å)", "dipole": "μ (mD)"}
    metrics["charges"] = "q (me)"
    second = [["`xtb`", *metrics.values(), "step (× `ls`)"], ["---", *["---:"] * 5]]
    for row in ROWS:
        if row in rows:
            values = [mean([run["metrics"][m] for run in rows[row].values()]) for m in metrics]
            ratio = step_ratio(rows, row)
            second.append([row, *values, "" if ratio is None else f"{ratio:.2f}"])
    count = _seeds(known["runs"])

    def text(lines: list[list[str]]) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    note = f"Mean and standard error; seeds of a row: {count}.{_chosen(known)}"
    return f"{text(lines)}\n\n{text(second)}\n\n{note}"


def _seeds(runs: Mapping[str, Any]) -> str:
    by_count: dict[int, set[str]] = {}
    for problem, rows in runs.items():
        for row, seeds in rows.items():
            if row in ROWS:
                by_count.setdefault(len(seeds), set()).add(f"`{problem}`")
    return "; ".join(
        f"{number} ({', '.join(sorted(names))})" if len(by_count) > 1 else str(number)
        for number, names in sorted(by_count.items())
    )


def _chosen(known: Mapping[str, Any]) -> str:
    """Return a sentence with the ratio chosen for each problem."""
    found = [
        f"{chosen_ratio(trials).rpartition(' ')[2].replace('ls', '1')} (`{problem}`)"
        for problem, trials in known["trials"].items()
    ]
    return f" Tuned ratios: {', '.join(found)}." if found else ""


def main() -> None:
    """Read runs, keep their numbers, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--json", type=Path, default=KNOWN)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    known: dict[str, Any] = {"runs": {}, "trials": {}}
    if args.json.exists():
        known = json.loads(args.json.read_text("utf-8"))
    for folder in args.folders:
        for problem, row, seed, numbers in read(folder):
            if seed == TRIAL_SEED:
                known["trials"].setdefault(problem, {})[row] = numbers["metrics"]
            else:
                known["runs"].setdefault(problem, {}).setdefault(row, {})[str(seed)] = numbers
    if args.folders:
        write_json(args.json, known)
    if args.page:
        write_text(args.page, fill_page(args.page.read_text("utf-8"), table(known)))


if __name__ == "__main__":
    main()
