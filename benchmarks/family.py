"""Which form of NTKMTL does best: one factor at a time, from one start, at several learning rates.

    python benchmarks/family.py --problem enb --csv study-data/enb.arff --targets Y1,Y2
    python benchmarks/family.py --problem qm9-mini
    python benchmarks/family.py --report

The problems on which is searched, enb and qm9-mini, were named before anything was trained. All is
judged on the validation split, with seeds that no study uses for its final runs; the test split is
not looked at. Each finished run is written to ``--json`` at once, and none is trained twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from sidebyside.tables import fill_page

from ntkmtl.bench import problems
from ntkmtl.bench.training.trainer import train
from ntkmtl.errors import NonFiniteError
from ntkmtl.files import write_json, write_text
from ntkmtl.metrics import delta_m

SEARCHED = ("enb", "qm9-mini")
"""Problems of the search; others are for judging what it finds."""

FACTORS = (4.0, 1.0, 2.0)
"""Learning rates, times the recipe's, in the order of their runs."""

SEEDS = (1000, 1001)

START = {"log_losses": True, "ema": 0.9}
"""What `ntkmtl-sr` is given at the start: blockwise, four mini-batches, exponent 1/2."""


@dataclass(frozen=True)
class Variant:
    """One form of the method.

    Attributes:
        label: Its name in tables.
        factor: What it changes.
        method: The method's name.
        options: The method's and the Balancer's.
    """

    label: str
    factor: str
    method: str = "ntkmtl-sr"
    options: Mapping[str, Any] = field(default_factory=dict)


def _changed(label: str, factor: str, method: str = "ntkmtl-sr", **options: Any) -> Variant:
    """Return the start with something changed."""
    return Variant(label, factor, method, {**START, **options})


VARIANTS = (
    Variant("plain sum", "reference", "ls"),
    Variant("si", "reference", "si"),
    _changed("start", "start"),
    _changed("losses as they are", "logarithms", log_losses=False),
    _changed("pooled (Eq. 17)", "source", pooling="pooled"),
    _changed("exact", "source", "ntkmtl"),
    Variant("auto", "source", "ntkmtl-log", {"exponent": 0.5}),
    Variant("auto, losses as they are (ntkmtl-auto)", "source", "ntkmtl-auto"),
    _changed("no moving average", "moving average", ema=0.0),
    _changed("moving average 0.99", "moving average", ema=0.99),
    _changed("exponent 1/4", "exponent", exponent=0.25),
    _changed("exponent 2/3", "exponent", exponent=2 / 3),
    _changed("exponent 1", "exponent", exponent=1.0),
    Variant("auto, exponent 1/4 (ntkmtl-log)", "exponent", "ntkmtl-log", {"exponent": 0.25}),
    _changed("length unit", "length", length="unit"),
    _changed("length plain", "length", length="plain"),
    _changed("one mini-batch", "statistic", minibatches=1),
    _changed(
        "trace, no moving average",  # to be read beside the start without one: ntkmtl-x has none
        "statistic",
        "ntkmtl-x",
        ema=0.0,
        source="representation",
        pooling="blockwise",
        statistic="trace",
        alpha=1.0,
    ),
)


def key(problem: str, label: str, factor: float, seed: int) -> str:
    """Return the name of a run in the file of numbers."""
    return f"{problem}/{label}/x{factor:g}/{seed}"


@dataclass(frozen=True)
class Runs:
    """Where runs and their numbers are kept.

    Attributes:
        name: The problem's name in the file.
        problem: What is trained.
        out: Folder of the runs.
        json: The file of numbers.
    """

    name: str
    problem: Any
    out: Path
    json: Path

    def one(self, variant: Variant, factor: float, seed: int, task: str | None = None) -> None:
        """Train one network, unless its numbers are in the file.

        Raises:
            ValueError: The file holds numbers of other options under this name.
        """
        label = variant.label if task is None else f"{variant.label}: {task}"
        name = key(self.name, label, factor, seed)
        asked = {"method": variant.method, "options": dict(variant.options)}
        known = read(self.json)
        if name in known["runs"]:
            if known["runs"][name]["asked"] != asked:
                raise ValueError(
                    f"{name} in {self.json} was {known['runs'][name]['asked']}, asked is {asked}; "
                    "remove its entry and its folder"
                )
            return
        recipe = self.problem.recipe
        recipe = replace(recipe, learning_rate=factor * recipe.learning_rate)
        try:
            result = train(
                self.problem,
                variant.method,
                seed,
                self.out / name.replace(" ", "-").replace(":", ""),
                recipe=recipe,
                method_options=dict(variant.options),
                single_task=task,
                threads=1,
            ).result
        except NonFiniteError as error:
            row: dict[str, Any] = {"asked": asked, "error": str(error)}
        else:
            row = {
                "asked": asked,
                "val": list(result.val),
                "step_seconds": result.train_seconds * (result.cpu_share or 1.0) / result.steps,
            }
        known["runs"][name] = row
        known["facts"] = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "torch": torch.__version__,
        }
        known["problems"][self.name] = {
            "tasks": list(self.problem.tasks),
            "higher": [metric.higher_is_better for metric in self.problem.metrics],
            "learning_rate": self.problem.recipe.learning_rate,
        }
        write_json(self.json, known)

    def all(self, factors: Sequence[float], seeds: Sequence[int]) -> None:
        """Train what is missing, so that what is finished can be compared at any time."""
        for task in self.problem.tasks:
            self.one(Variant("stl", "reference", "stl"), 1.0, seeds[0], task)
        for seed in seeds:
            for factor in factors:
                for variant in VARIANTS:
                    self.one(variant, factor, seed)


def read(path: Path) -> dict[str, Any]:
    """Return the numbers so far."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    return {"facts": {}, "problems": {}, "runs": {}}


def scores(known: Mapping[str, Any], problem: str, label: str, factor: float) -> list[float]:
    """Return Delta-m on the validation split by seed; infinite where training diverged."""
    about = known["problems"][problem]
    baseline: list[float] = []
    for task in about["tasks"]:
        baseline += known["runs"][key(problem, f"stl: {task}", 1.0, SEEDS[0])]["val"]
    single = torch.tensor(baseline, dtype=torch.float64)
    found: list[float] = []
    for seed in SEEDS:
        row = known["runs"].get(key(problem, label, factor, seed))
        if row is None:
            continue
        if "error" in row:
            found.append(float("inf"))
            continue
        ours = torch.tensor(row["val"], dtype=torch.float64)
        found.append(float(delta_m(ours, single, about["higher"])))
    return found


def step_ratio(known: Mapping[str, Any], problem: str, label: str) -> float | None:
    """Return processor time of a step over that of the plain sum, median over pairs of runs."""
    ratios = []
    for factor in FACTORS:
        for seed in SEEDS:
            ours = known["runs"].get(key(problem, label, factor, seed), {})
            plain = known["runs"].get(key(problem, "plain sum", factor, seed), {})
            if "step_seconds" in ours and "step_seconds" in plain:
                ratios.append(ours["step_seconds"] / plain["step_seconds"])
    return statistics.median(ratios) if ratios else None


def tables(known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table for each problem, in Markdown."""
    facts = known["facts"]
    for problem, about in known["problems"].items():
        rates = [factor * about["learning_rate"] for factor in sorted(FACTORS)]
        yield (
            f"{problem}, measured on {facts['date']}, torch {facts['torch']}, one thread: Delta-m "
            "in percent on the validation split (lower is better), mean over the seeds and half "
            "their range where there are two; processor time of a step over the plain sum's."
        )
        yield ""
        yield f"| factor | variant | {' | '.join(f'{rate:g}' for rate in rates)} | step |"
        yield f"| --- | --- |{' ---: |' * (len(rates) + 1)}"
        for variant in VARIANTS:
            cells = [
                _cell(scores(known, problem, variant.label, factor)) for factor in sorted(FACTORS)
            ]
            ratio = step_ratio(known, problem, variant.label)
            cost = "" if ratio is None else f"{ratio:.2f}"
            yield f"| {variant.factor} | {variant.label} | {' | '.join(cells)} | {cost} |"
        yield ""


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    if float("inf") in values:
        return "diverged"
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One factor of NTKMTL at a time.")
    add = parser.add_argument
    add("--problem", choices=SEARCHED, help="what is trained")
    add("--csv", help="the file of enb")
    add("--targets", help="its targets, separated by commas")
    add("--factors", nargs="+", type=float, choices=FACTORS, default=list(FACTORS))
    add("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    add("--out", type=Path, default=Path("runs/family"), help="where runs are kept")
    add("--json", type=Path, default=Path("docs/study/family/measured.json"))
    add("--report", action="store_true", help="train nothing, print the tables")
    add("--page", type=Path, help="the page whose marked part is filled instead")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        if arguments.problem is None:
            parser.error("name a --problem, or ask for the --report")
        if arguments.problem == "qm9-mini":
            problem = problems.create("qm9-mini")
        elif arguments.csv is None or arguments.targets is None:
            parser.error("enb takes --csv and --targets")
        else:
            problem = problems.create("table", csv=arguments.csv, targets=arguments.targets)
        runs = Runs(arguments.problem, problem, arguments.out, arguments.json)
        runs.all(arguments.factors, arguments.seeds)
    text = "\n".join(tables(read(arguments.json))).strip()
    if arguments.page is None:
        print(text)
    else:
        write_text(arguments.page, fill_page(arguments.page.read_text("utf-8"), text))


if __name__ == "__main__":
    main()
