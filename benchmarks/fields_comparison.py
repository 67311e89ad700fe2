r"""The weightings of the field and ours on energies, forces and equations, as a table.

    for p in xtb pinn-burgers pinn-helmholtz pinn-allen-cahn pinn-wave pinn-navier-stokes; do
      ntkmtl compare $p --methods ls,softadapt,relobralo,lra,pinn-ntk,ntkmtl-auto --seeds 3 \
        --jobs 1 --threads 1 --out runs-fields
    done
    python benchmarks/fields_comparison.py runs-fields --json docs/fields/comparison.json
    python benchmarks/fields_comparison.py --page docs/forces-and-equations.md

Runs of `fixed` and of `ntkmtl-auto` with priorities, in folders of their own, are given as
`--ratio 100=FOLDER`: the ratio of the other conditions to the residual. What is known from the JSON
file before stays in it, so that a later sitting adds seeds and problems.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidebyside.tables import fill_page

from ntkmtl.bench.runs import load_runs
from ntkmtl.files import write_json, write_text

ROWS = (
    "ls",
    "fixed, ratio 10",
    "fixed, ratio 100",
    "softadapt",
    "relobralo",
    "lra",
    "pinn-ntk",
    "ntkmtl-auto",
    "ntkmtl-auto, ratio 10",
    "ntkmtl-auto, ratio 100",
)
PINNS = ("burgers", "helmholtz", "allen-cahn", "wave", "navier-stokes")
KNOWN = Path("docs/fields/comparison.json")


def read(folder: Path, ratio: str = "") -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield problem, row, seed and numbers of each complete run below a folder."""
    for run in load_runs(folder)[0]:
        share = 1.0 if run.result.cpu_share is None else run.result.cpu_share
        label = f"{run.config.method}, ratio {ratio}" if ratio else run.config.method
        yield (
            run.config.problem,
            label,
            str(run.config.seed),
            {
                "test": dict(
                    zip((m.name for m in run.config.metrics), run.result.test, strict=True)
                ),
                "step_ms": 1e3 * share * run.result.train_seconds / run.result.steps,
            },
        )


def mean(values: list[float]) -> str:
    """Return mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.1f} ± {error:.1f}"


def step_ratio(rows: Mapping[str, Any], row: str) -> float:
    """Return the median time of a step over that of the plain sum."""

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
            rows = known.get(f"pinn-{name}", {})
            if row not in rows:
                cells.append("")
                continue
            cells.append(mean([run["test"]["l2"] for run in rows[row].values()]))
            ratios.append(step_ratio(rows, row))
        if ratios:
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append([row, *cells, spread])
    rows = known["xtb"]
    metrics = {"energy": "E (meV/atom)", "forces": "F (meV/Å)", "dipole": "μ (mD)"}
    metrics["charges"] = "q (me)"
    second = [["`xtb`", *metrics.values(), "step (× `ls`)"], ["---", *["---:"] * 5]]
    for row in ("ls", *(r for r in ROWS if r != "ls")):
        if row in rows:
            values = [mean([run["test"][m] for run in rows[row].values()]) for m in metrics]
            second.append([row, *values, f"{step_ratio(rows, row):.2f}"])
    by_count: dict[int, set[str]] = {}
    for problem, rows in known.items():
        for runs in rows.values():
            by_count.setdefault(len(runs), set()).add(f"`{problem}`")
    count = "; ".join(
        f"{number} ({', '.join(sorted(names))})" if len(by_count) > 1 else str(number)
        for number, names in sorted(by_count.items())
    )

    def text(lines: list[list[str]]) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    return f"{text(lines)}\n\n{text(second)}\n\nMean and standard error; seeds of a row: {count}."


def main() -> None:
    """Read runs, keep their numbers, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--ratio", action="append", default=[], metavar="R=FOLDER")
    parser.add_argument("--json", type=Path, default=KNOWN)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    known: dict[str, Any] = {}
    if args.json.exists():
        known = json.loads(args.json.read_text("utf-8"))
    folders = [("", args.folder)] if args.folder else []
    folders += [(ratio, Path(path)) for ratio, path in (r.split("=", 1) for r in args.ratio)]
    for ratio, folder in folders:
        for problem, row, seed, numbers in read(folder, ratio):
            if row in ROWS:
                known.setdefault(problem, {}).setdefault(row, {})[seed] = numbers
    if folders:
        write_json(args.json, known)
    if args.page:
        write_text(args.page, fill_page(args.page.read_text("utf-8"), table(known)))


if __name__ == "__main__":
    main()
