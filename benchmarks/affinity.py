"""Does the affinity between tasks foretell which of them help each other?

    python benchmarks/affinity.py --out runs/affinity --figure docs/images/lab-affinity.png

The truth by brute force: every pair of tasks is trained together and each task alone, with equal
weights (LS), several seeds and the problem's own recipe unless ``--epochs`` says less. A task's
gain from a partner is how much lower its test error is than alone, in per cent. The prediction
comes from one training of all tasks: the cosine between their gradients, averaged over training.
Called again with the same ``--out``, it trains nothing twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntkmtl.analysis import Recorder
from ntkmtl.bench.problems import create
from ntkmtl.bench.problems.base import MultiTaskModel, Problem, Split
from ntkmtl.bench.runs import RECORD
from ntkmtl.bench.training import train
from ntkmtl.files import write_json

TASKS = ("mu", "alpha", "homo", "r2", "zpve", "u0", "h", "cv")
SOURCES = ("exact", "representation")


class Subset(Problem):
    """Some tasks of another problem, which is otherwise as it is."""

    def __init__(self, whole: Problem, tasks: Sequence[str]) -> None:
        self.whole = whole
        self.tasks = tuple(task for task in whole.tasks if task in tasks)
        self.metrics = tuple(metric for metric in whole.metrics if metric.task in tasks)
        self.recipe = whole.recipe

    name = "subset"
    summary = "Some tasks of another problem"

    @property
    def options(self) -> dict[str, Any]:
        """The whole problem's, and the tasks."""
        return {"of": self.whole.name, "tasks": list(self.tasks), **self.whole.options}

    def size(self, split: Split) -> int:
        """Return the number of samples."""
        return self.whole.size(split)

    def batch(self, split: Split, indices: Tensor) -> Any:
        """Return some samples."""
        return self.whole.batch(split, indices)

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a network with heads for these tasks."""
        return self.whole.model(tasks or self.tasks)

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return these tasks' losses."""
        return self.whole.losses(outputs, batch, tasks or self.tasks)

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return these tasks' metrics."""
        return self.whole.evaluate(model, split, tasks or self.tasks)


def gains(alone: Tensor, together: Tensor) -> Tensor:
    """Return how much lower errors are together than alone, in per cent.

    Args:
        alone: Errors of single-task networks, shape (seeds, k).
        together: ``[s, i, j]`` is the error of task i trained with task j; the diagonal counts not.

    Returns:
        ``[s, i, j]``, positive where task j helps task i; NaN on the diagonal.
    """
    found = 100 * (alone[:, :, None] - together) / alone[:, :, None]
    k = alone.shape[1]
    found[:, torch.arange(k), torch.arange(k)] = math.nan
    return found


def correlations(affinity: Tensor, gain: Tensor) -> dict[str, Any]:
    """Return Spearman's rank correlations between affinity and gain.

    Args:
        affinity: Shape (k, k).
        gain: What :func:`gains` returned.

    Returns:
        ``pairs`` compares affinity with the mean gain of both tasks of a pair, ``directed`` with
        each task's own. The p-values take entries for independent, which they are not: a task is in
        many pairs.
    """
    from scipy import stats

    mean = gain.nanmean(dim=0)
    k = len(affinity)
    upper = torch.triu_indices(k, k, offset=1)
    off = ~torch.eye(k, dtype=torch.bool)
    pairs = stats.spearmanr(affinity[upper[0], upper[1]], ((mean + mean.T) / 2)[upper[0], upper[1]])
    directed = stats.spearmanr(affinity[off], mean[off])
    return {
        "pairs": {"rho": float(pairs.statistic), "p": float(pairs.pvalue), "n": upper.shape[1]},
        "directed": {
            "rho": float(directed.statistic),
            "p": float(directed.pvalue),
            "n": int(off.sum()),
        },
    }


def agreement(gain: Tensor) -> float | None:
    """Return the mean rank correlation of the pairs' gains between two seeds, None for one seed.

    No prediction can be expected to agree better with one seed than another seed does.
    """
    from scipy import stats

    k = gain.shape[1]
    upper = torch.triu_indices(k, k, offset=1)
    by_seed = [((g + g.T) / 2)[upper[0], upper[1]] for g in gain]
    found = [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(by_seed, 2)]
    return float(sum(found) / len(found)) if found else None


def measure(
    whole: Problem, tasks: Sequence[str], seeds: Sequence[int], out: Path, epochs: int | None
) -> dict[str, Any]:
    """Train what is missing and return affinities, gains and their correlations."""
    from rich.progress import Progress

    recipe = whole.recipe
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, reduced=recipe.reduced or epochs < recipe.epochs)
    tasks = Subset(whole, tasks).tasks
    k = len(tasks)
    pairs = list(itertools.combinations(range(k), 2))
    alone = torch.zeros(len(seeds), k, dtype=torch.float64)
    together = torch.full((len(seeds), k, k), math.nan, dtype=torch.float64)
    affinities: dict[str, list[Tensor]] = {source: [] for source in SOURCES}
    seconds = 0.0
    with Progress() as progress:
        bar = progress.add_task("trainings", total=len(seeds) * (len(pairs) + k + len(SOURCES)))

        def trained(chosen: Sequence[str], seed: int, folder: str, **more: Any) -> Any:
            run = train(
                Subset(whole, chosen),
                "ls",
                seed,
                out / f"seed-{seed}" / folder,
                recipe=recipe,
                threads=1,
                **more,
            )
            progress.advance(bar)
            return run

        for s, seed in enumerate(seeds):
            for i, task in enumerate(tasks):
                run = trained([task], seed, task)
                alone[s, i] = run.result.test[0]
                seconds += run.result.wall_seconds
            for i, j in pairs:
                run = trained([tasks[i], tasks[j]], seed, f"{tasks[i]}+{tasks[j]}")
                together[s, i, j], together[s, j, i] = run.result.test
                seconds += run.result.wall_seconds
            for source in SOURCES:
                run = trained(tasks, seed, f"all-{source}", record={"every": 10, "source": source})
                affinities[source].append(Recorder.load(run.path / RECORD).mean_affinity())
                seconds += run.result.wall_seconds
    gain = gains(alone, together)
    predicted = {source: torch.stack(found).mean(dim=0) for source, found in affinities.items()}
    return {
        "problem": whole.name,
        "tasks": list(tasks),
        "seeds": list(seeds),
        "epochs": recipe.epochs,
        "reduced": recipe.reduced,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "seconds": seconds,
        "alone": alone.tolist(),
        "gain_percent": [
            [None if i == j else float(gain[:, i, j].mean()) for j in range(k)] for i in range(k)
        ],
        "gain_agreement_between_seeds": agreement(gain),
        "affinity": {source: value.tolist() for source, value in predicted.items()},
        "spearman": {source: correlations(value, gain) for source, value in predicted.items()},
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw affinity against gain, one point per pair."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ntkmtl.files import atomic_write

    tasks = found["tasks"]
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(SOURCES), sharey=True)
    for axes, source in zip(panels, SOURCES, strict=True):
        affinity, gain = found["affinity"][source], found["gain_percent"]
        crowd = 0.2 * max(affinity[i][j] for i, j in itertools.combinations(range(len(tasks)), 2))
        for i, j in itertools.combinations(range(len(tasks)), 2):
            x, y = affinity[i][j], (gain[i][j] + gain[j][i]) / 2
            axes.plot(x, y, "o", color="#0072b2", markersize=4)
            if abs(y) < 10 and x < crowd:
                continue  # a crowd, which names would hide
            axes.annotate(
                f"{tasks[i]}, {tasks[j]}",
                (x, y),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=5.5,
                color="#5b6570",
            )
        axes.axhline(0, color="#5b6570", linewidth=0.8)
        axes.axvline(0, color="#5b6570", linewidth=0.8)
        rho = found["spearman"][source]["pairs"]["rho"]
        axes.set_title(f"{source}: Spearman {rho:.2f}", loc="left", fontsize=9.5)
        axes.set_xlabel("Affinity (mean cosine over training)")
        axes.grid(color="#e8ebef")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    panels[0].set_ylabel("Gain of training together (%)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Affinity against the measured gain of pairs.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas between them")
    parser.add_argument("--seeds", type=int, default=2, help="use seeds 0 to N - 1")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--figure", type=Path, help="where to draw the figure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    whole = create("qm9-mini")
    tasks = arguments.tasks.split(",")
    unknown = sorted(set(tasks) - set(whole.tasks))
    if unknown or len(set(tasks)) < 3:
        parser.error(f"--tasks takes three or more of {', '.join(whole.tasks)}; found {tasks}")
    found = measure(whole, tasks, range(arguments.seeds), arguments.out, arguments.epochs)
    write_json(arguments.out / "affinity.json", found)
    if arguments.figure is not None:
        draw(found, arguments.figure)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    reduced = ", reduced recipe" if found["reduced"] else ""
    print(
        f"{found['problem']}, {len(found['tasks'])} tasks, {len(found['seeds'])} seeds, "
        f"{found['epochs']} epochs{reduced}: {found['seconds']:.0f} s of training"
    )
    print(f"{'gain (%) of, from':>18}" + "".join(f"{task:>8}" for task in found["tasks"]))
    for task, row in zip(found["tasks"], found["gain_percent"], strict=True):
        cells = ("" if value is None else f"{value:.1f}" for value in row)
        print(f"{task:>18}" + "".join(f"{cell:>8}" for cell in cells))
    for source, values in found["spearman"].items():
        for kind in ("pairs", "directed"):
            value = values[kind]
            print(
                f"Spearman, {source} affinity, {kind}: {value['rho']:.3f} "
                f"(p = {value['p']:.2g}, n = {value['n']})"
            )
    if found["gain_agreement_between_seeds"] is not None:
        print(f"Spearman, gains between two seeds: {found['gain_agreement_between_seeds']:.3f}")


if __name__ == "__main__":
    main()
