"""How methods, lengths of the combined gradient and learning rates go together, on qm9-mini.

    python benchmarks/length.py --seeds 2
    python benchmarks/length.py --seeds 2 --known --json measured.json
    python benchmarks/length.py --render docs/length/measured.json --page docs/length.md

Each run is kept in a folder, none is trained twice, and ``--known`` trains nothing and takes what
is there. Delta-m is against single-task networks of the recipe's own learning rate and seed 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from sidebyside.tables import fill_page

from ntkmtl.bench import problems
from ntkmtl.bench.runs import RESULT
from ntkmtl.bench.training.trainer import train
from ntkmtl.files import write_json, write_text
from ntkmtl.metrics import delta_m

RATES = (0.0025, 0.005, 0.01)
LENGTHS = ("method", "plain", "unit")
METHODS = ("ls", "si", "ntkmtl-sr", "ntkmtl-auto", "fairgrad", "ntkmtl")
"""In the order of their runs: the exact kernel last, as it takes longest."""

LOSSES_ONLY = ("ls", "si")
"""Read no kernel, so that only their own length exists."""

NO_LOGARITHMS = ("si", "fairgrad")
"""Take logarithms already, or were not measured with them."""


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Attributes:
        method: Its name.
        log_losses: Whether logarithms of the losses are balanced.
        length: How long the combined gradient is.
        rate: Peak learning rate.
    """

    method: str
    log_losses: bool
    length: str
    rate: float

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.method}, log losses" if self.log_losses else self.method

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.label.replace(', ', '-').replace(' ', '-')}-{self.length}-{self.rate:g}"


def variants(methods: Sequence[str], rates: Sequence[float]) -> Iterator[Variant]:
    """Yield all that is to be trained."""
    for method in methods:
        for log in (False,) if method in NO_LOGARITHMS else (False, True):
            for length in ("method",) if method in LOSSES_ONLY else LENGTHS:
                for rate in rates:
                    yield Variant(method, log, length, rate)


@dataclass(frozen=True)
class Runs:
    """Where runs are kept, and how they are made.

    Attributes:
        out: The folder.
        epochs: Instead of the recipe's.
        known: Train nothing.
    """

    out: Path
    epochs: int | None = None
    known: bool = False

    def numbers(
        self, method: str, seed: int, folder: Path, rate: float | None = None, **more: Any
    ) -> list[float] | None:
        """Train one network, unless it was trained before; return its numbers on the test split.

        None where nothing is to be trained and no complete run is there.
        """
        if self.known and not (folder / RESULT).exists():
            return None
        problem: Any = problems.create("qm9-mini")
        recipe = problem.recipe
        recipe = replace(
            recipe,
            learning_rate=rate or recipe.learning_rate,
            epochs=self.epochs or recipe.epochs,
        )
        return list(
            train(problem, method, seed, folder, recipe=recipe, threads=1, **more).result.test
        )

    def of(self, variant: Variant, seed: int) -> list[float] | None:
        """Return the numbers of a variant."""
        options: dict[str, Any] = {}
        if variant.log_losses:
            options["log_losses"] = True
        if variant.length != "method":
            options["length"] = variant.length
        folder = self.out / variant.folder / str(seed)
        return self.numbers(variant.method, seed, folder, variant.rate, method_options=options)

    def baselines(self, seed: int = 0) -> list[float]:
        """Return the numbers of networks that were trained for one task each."""
        found: list[float] = []
        for task in problems.create("qm9-mini").tasks:
            folder = self.out / "stl" / f"{task}-{seed}"
            numbers = self.numbers("stl", seed, folder, single_task=task)
            if numbers is None:
                raise FileNotFoundError(f"{folder} holds no complete run; leave --known out once")
            found += numbers
        return found


def measure(chosen: Sequence[Variant], seeds: int, runs: Runs) -> dict[str, dict[str, Any]]:
    """Train what is missing, seed by seed, and return Delta-m by variant."""
    metrics = problems.create("qm9-mini").metrics
    higher = [metric.higher_is_better for metric in metrics]
    stl = torch.tensor(runs.baselines(), dtype=torch.float64)
    found: dict[str, dict[str, Any]] = {
        v.folder: {"label": v.label, "length": v.length, "rate": v.rate, "delta_m": []}
        for v in chosen
    }
    for seed in range(seeds):
        for variant in chosen:
            if (numbers := runs.of(variant, seed)) is not None:
                ours = torch.tensor(numbers, dtype=torch.float64)
                found[variant.folder]["delta_m"].append(float(delta_m(ours, stl, higher)))
    return found


def table(report: Mapping[str, Any]) -> str:
    """Return the table in Markdown."""
    facts, rows = report["facts"], report["rows"].values()
    rates = sorted({row["rate"] for row in rows})
    lines = [
        f"Measured on {facts['date']}, torch {facts['torch']}, one thread: qm9-mini, "
        f"{facts['epochs']} epochs, Delta-m in percent (lower is better) against single-task "
        f"networks at learning rate {facts['baseline_rate']:g}; mean over up to "
        f"{facts['seeds']} seeds, and half their range where there are several.",
        "",
        f"| method | length | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"| --- | --- |{' ---: |' * len(rates)}",
    ]
    by_kind: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        by_kind.setdefault((row["label"], row["length"]), {})[row["rate"]] = row["delta_m"]
    for (label, length), values in by_kind.items():
        cells = [_cell(values.get(rate, [])) for rate in rates]
        lines.append(f"| {label} | {length} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Delta-m by method, length and learning rate.")
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--rates", nargs="+", type=float, default=list(RATES))
    add("--seeds", type=int, default=1)
    add("--epochs", type=int, help="instead of the recipe's")
    add("--out", type=Path, default=Path("runs/length"), help="where runs are kept")
    add("--known", action="store_true", help="train nothing: take the runs that are there")
    add("--json", type=Path, help="where the numbers go")
    add("--page", type=Path, help="the page whose marked part is filled")
    add("--render", type=Path, help="numbers of an earlier run: train nothing")
    arguments = parser.parse_args(argv)
    if arguments.render is not None:
        report = json.loads(arguments.render.read_text("utf-8"))
    else:
        recipe = problems.create("qm9-mini").recipe
        chosen = list(variants(arguments.methods, arguments.rates))
        report = {
            "facts": {
                "date": datetime.now(timezone.utc).date().isoformat(),
                "torch": torch.__version__,
                "epochs": arguments.epochs or recipe.epochs,
                "baseline_rate": recipe.learning_rate,
                "seeds": arguments.seeds,
            },
            "rows": measure(
                chosen,
                arguments.seeds,
                Runs(arguments.out, arguments.epochs, known=arguments.known),
            ),
        }
    if arguments.json is not None:
        write_json(arguments.json, report)
    text = table(report)
    if arguments.page is None:
        print(text)
    else:
        write_text(arguments.page, fill_page(arguments.page.read_text("utf-8"), text))


if __name__ == "__main__":
    main()
