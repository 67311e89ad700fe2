"""Constants from the first percent of a run, against adaptive weights, the sum and tuned weights.

    python benchmarks/weigh.py --tables multi-target --seeds 2 --json docs/weigh/measured.json
    python benchmarks/weigh.py --tables multi-target --known --json docs/weigh/measured.json
    python benchmarks/weigh.py --render docs/weigh/measured.json --page docs/weigh.md

Each run is kept in a folder and none is trained twice, so a later call with more problems, seeds or
candidates adds to what is there. Delta-m is against the plain sum of the same problem, mean over
seeds: below 0 is better than the sum.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from sidebyside.tables import fill_page

from ntkmtl.bench.problems import create
from ntkmtl.bench.problems.base import Problem, Recipe
from ntkmtl.bench.runs import Run
from ntkmtl.bench.training import RunSpec, train_spec
from ntkmtl.bench.training.trainer import weigh_problem
from ntkmtl.files import write_json, write_text
from ntkmtl.metrics import delta_m

PERCENTS = (1.0, 2.0, 5.0)
TRAINED = ("balanced", "sum")
"""What trains the network while it is watched."""

TARGETS = {
    "enb": "Y1,Y2",
    "sf2": "c-class,m-class,x-class",
    "wq": "25400,29600,30400,33400,17300,19400,34500,38100,49700,50390,55800,57500,59300,37880",
    "rf1": "CHSI2_48H__0,NASI2_48H__0,EADM7_48H__0,SCLM7_48H__0,CLKM7_48H__0,VALI2_48H__0,"
    "NAPM7_48H__0,DLDI4_48H__0",
    "star98": "NABOVE,NBELOW",
    "anes96": "selfLR,PID,vote",
}
"""Tables, and the columns that are predicted."""

TYPES = {
    "star98": "NABOVE=regression,NBELOW=regression",
    "anes96": "selfLR=regression,PID=regression",
}
"""Types of columns whose values leave it open."""

EPOCHS = {"qm9-mini": 10, "rf1": 10, "pinn-burgers": 20, "xtb": 5}
"""Epochs instead of the recipe's: those are reduced runs."""


@dataclass(frozen=True)
class Outcome:
    """What one way of weighting came to on one problem.

    Attributes:
        test: Test metrics, mean over seeds.
        seconds: Processor seconds of one run, with all that came before it: watching, candidates.
        steps: Steps that were watched, 0 for none.
        warned: Number of seeds whose watch warned of two phases.
    """

    test: tuple[float, ...]
    seconds: float
    steps: int = 0
    warned: int = 0


class Bench:
    """Trains one problem in every way.

    Args:
        name: Name in tables.
        problem: The problem.
        recipe: How long it is trained.
        seeds: Seeds 0 to N - 1.
        out: Folder for the runs.
        candidates: Number of candidates for tuned weights.
        known: Train nothing.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        recipe: Recipe,
        seeds: int,
        out: Path,
        candidates: int,
        known: bool,
    ) -> None:
        self.name, self.problem, self.recipe = name, problem, recipe
        self.seeds, self.out, self.candidates, self.known = seeds, out / name, candidates, known
        self.seconds: dict[tuple[str, int], float] = {}

    def run(self, label: str, seed: int, method: str, **options: Any) -> Run:
        """Train, and note the processor seconds that it took."""
        spec = RunSpec(
            method=method, seed=seed, recipe=self.recipe, method_options=options, threads=1
        )
        folder = self.out / label / str(seed)
        cost = folder.parent / f"{label}-{seed}.cpu.json"
        if self.known and not cost.exists():
            raise FileNotFoundError(cost)
        started = time.process_time()
        run = train_spec(self.problem, spec, folder)
        if not cost.exists():
            write_json(cost, time.process_time() - started)
        self.seconds[label, seed] = json.loads(cost.read_text(encoding="utf-8"))
        return run

    def constants(self, percent: float, trained: str, seed: int) -> dict[str, Any]:
        """Return what a watch found, from a file if it was made before."""
        path = self.out / f"watch-{trained}-{percent:g}-{seed}.json"
        if not path.exists():
            if self.known:
                raise FileNotFoundError(path)
            started = time.process_time()
            found = weigh_problem(
                self.problem,
                percent=percent,
                seed=seed,
                recipe=self.recipe,
                train=trained,
                threads=1,
            )
            seconds = time.process_time() - started
            write_json(path, {**found.to_json(), "seconds": seconds})
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def plain(self, method: str) -> Outcome:
        """Return what a method came to."""
        return self.outcome(method, method)

    def watched(self, percent: float, trained: str) -> Outcome:
        """Return what constants came to, each seed's from its own watch."""
        watches = [self.constants(percent, trained, seed) for seed in range(self.seeds)]
        steps = watches[0]["steps"]
        one = self.outcome(
            f"constants-{trained}-{steps}", "ls", *({"priorities": w["weights"]} for w in watches)
        )
        return replace(
            one,
            seconds=one.seconds + sum(watch["seconds"] for watch in watches) / len(watches),
            steps=steps,
            warned=sum(watch["switch"] is not None for watch in watches),
        )

    def outcome(self, label: str, method: str, *options: Mapping[str, Any]) -> Outcome:
        """Train each seed, with its own options if there are some, and return the means."""
        given = options or ({},) * self.seeds
        runs = [self.run(label, seed, method, **given[seed]) for seed in range(self.seeds)]
        tests = torch.tensor([run.result.test for run in runs], dtype=torch.float64)
        seconds = sum(self.seconds[label, seed] for seed in range(self.seeds)) / self.seeds
        return Outcome(tuple(tests.mean(dim=0).tolist()), seconds)

    def tuned(self) -> Outcome:
        """Return the best of random weights by the validation split, one seed for the choice."""
        generator = torch.Generator().manual_seed(0)
        best: tuple[float, dict[str, float]] | None = None
        seconds = 0.0
        baseline = self.run("ls", 0, "ls")
        for number in range(self.candidates):
            logs = torch.empty(len(self.problem.tasks)).uniform_(-2, 2, generator=generator)
            weights = dict(zip(self.problem.tasks, logs.exp().tolist(), strict=True))
            run = self.run(f"candidate-{number}", 0, "ls", priorities=weights)
            seconds += self.seconds[f"candidate-{number}", 0]
            score = float(self.delta(run.result.val, baseline.result.val))
            if best is None or score < best[0]:
                best = score, weights
        assert best is not None
        one = self.outcome("tuned", "ls", *({"priorities": best[1]},) * self.seeds)
        return replace(one, seconds=one.seconds + seconds)

    def delta(self, values: Sequence[float], baseline: Sequence[float]) -> float:
        """Return Delta-m in percent."""
        better = [metric.higher_is_better for metric in self.problem.metrics]
        return float(delta_m(values, baseline, better))

    def ways(self) -> Iterator[tuple[str, Outcome]]:
        """Yield each way of weighting."""
        yield "sum", self.plain("ls")
        yield "adaptive", self.plain("ntkmtl-auto")
        for trained in TRAINED:
            for percent in PERCENTS:
                yield f"{trained} {percent:g} %", self.watched(percent, trained)
        yield "tuned", self.tuned()

    def measure(self) -> dict[str, Any]:
        """Return the numbers of all ways."""
        found: dict[str, Outcome] = {}
        for label, one in self.ways():
            found[label] = one
            print(f"{self.name:10s} {label:14s} {one.seconds:7.1f} s", flush=True)
        base = found["sum"]
        return {
            "tasks": len(self.problem.tasks),
            "epochs": self.recipe.epochs,
            "reduced": self.name in EPOCHS,
            "total_steps": self.recipe.epochs
            * (self.problem.size("train") // self.recipe.batch_size),
            "seeds": self.seeds,
            "candidates": self.candidates,
            "ways": {
                label: {
                    "delta_m": self.delta(one.test, base.test),
                    "seconds": one.seconds,
                    "steps": one.steps,
                    "warned": one.warned,
                    "test": list(one.test),
                }
                for label, one in found.items()
            },
        }


def made(name: str, tables: Path | None) -> Problem:
    """Return a problem by its name in tables."""
    if name not in TARGETS:
        return create(name)
    if tables is None:
        raise SystemExit(f"{name} needs --tables, the folder of its file")
    file = tables / f"{name}.{'csv' if name in TYPES else 'arff'}"
    return create("table", csv=str(file), targets=TARGETS[name], types=TYPES.get(name, ""))


def rows(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    ways = [f"{trained} {percent:g} %" for trained in TRAINED for percent in PERCENTS]
    heads = ["problem", "tasks", "steps", "adaptive", *ways, "tuned"]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- " * len(heads) + "|"
    for name, one in measured["problems"].items():
        cells = [f"{name}{' (reduced)' if one['reduced'] else ''}", str(one["tasks"])]
        cells.append(str(one["total_steps"]))
        for label in ["adaptive", *ways, "tuned"]:
            way = one["ways"][label]
            phases = f", {way['warned']} of {one['seeds']} with two phases" if way["warned"] else ""
            steps = f", {way['steps']} steps" if way["steps"] else ""
            ratio = way["seconds"] / one["ways"]["sum"]["seconds"]
            cells.append(f"{way['delta_m']:+.1f} (x {ratio:.2f}{steps}{phases})")
        yield "| " + " | ".join(cells) + " |"


def render(measured: Mapping[str, Any], page: Path) -> None:
    """Put the table into the page."""
    text = page.read_text(encoding="utf-8")
    write_text(page, fill_page(text, "\n".join(rows(measured))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*TARGETS, "qm9-mini", "pinn-burgers", "xtb"]
    parser.add_argument("--problems", default=",".join(names))
    parser.add_argument("--tables", type=Path, help="folder of the tables' .arff and .csv files")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/weigh"))
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    parser.add_argument("--known", action="store_true", help="train nothing")
    parser.add_argument("--render", type=Path, metavar="JSON")
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args()
    if chosen.render is not None:
        render(json.loads(chosen.render.read_text(encoding="utf-8")), chosen.page)
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if chosen.json is not None and chosen.json.exists():
        found = json.loads(chosen.json.read_text(encoding="utf-8"))["problems"]
    for name in chosen.problems.split(","):
        problem = made(name, chosen.tables)
        epochs = EPOCHS.get(name, problem.recipe.epochs)
        recipe = replace(problem.recipe, epochs=epochs, reduced=name in EPOCHS)
        bench = Bench(
            name, problem, recipe, chosen.seeds, chosen.out, chosen.candidates, chosen.known
        )
        found[name] = bench.measure()
        if chosen.json is not None:
            measured = datetime.now(timezone.utc).date().isoformat()
            write_json(chosen.json, {"measured": measured, "problems": found})
    assert all(math.isfinite(w["delta_m"]) for one in found.values() for w in one["ways"].values())


if __name__ == "__main__":
    main()
