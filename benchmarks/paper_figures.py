r"""Figures 2, 3 and 4 of the NTKMTL paper at reduced size: numbers of finished runs on qm9-mini.

    for n in 1 2 4 8 16; do
      ntkmtl compare qm9-mini --methods ls,ntkmtl-sr --set ntkmtl-sr.minibatches=$n --epochs 10 \
        --seeds 3 --no-stl --no-model --jobs 1 --threads 1 --out runs/figures/n$n
    done
    ntkmtl analyze qm9-mini --methods ls,ntkmtl,ntkmtl-sr --epochs 5 --seeds 3 --every 5 \
      --source exact --jobs 1 --out runs/figures/recorded
    python benchmarks/paper_figures.py runs/figures docs/study/large \
      --json docs/paper-claims/figures.json

Trains nothing itself. `ls` is needed once, beside n = 4. Delta-m is against the single-task
networks of the study, which trained for 25 epochs at rates of their own, so it is high here: what
counts are differences.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import FAILS, HOLDS, UNKNOWN, difference
from scipy.stats import f, spearmanr

from ntkmtl.analysis import Recorder, imbalance
from ntkmtl.bench.runs import RECORD, SINGLE_TASK, RunConfig, canonical_json, load_runs
from ntkmtl.bench.study.results import MethodResult, read_results
from ntkmtl.files import parse_json, read_bytes, write_json
from ntkmtl.metrics import delta_m

PROBLEM, PLAIN, VARIED = "qm9-mini", "ls", "ntkmtl-sr"
COUNTS = (1, 2, 4, 8, 16)
"""Numbers of mini-batches n."""

PAPER_RATIO = 1.7
"""Time of an epoch over the plain sum's at n = 6, by the paper."""

THROUGHOUT = 0.95
"""Share of the records that counts as all of training."""

Numbers = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------
# From the runs to numbers


def gather(folder: Path, study: Path) -> dict[str, Any]:
    """Return everything that the rows are made of.

    Args:
        folder: The runs that the module's docstring names.
        study: The study that the single-task networks are taken from.

    Raises:
        ValueError: A run has another recipe, but for its epochs, or other data than the study.
    """
    results = {r.method: r for r in read_results(study) if r.problem == PROBLEM}
    single, plain = results[SINGLE_TASK], results[PLAIN]
    assert single.tuned is not None
    assert plain.published is not None
    baseline = np.mean([run.test for run in single.tuned.runs], axis=0)
    higher = [metric.higher_is_better for metric in single.metrics]
    means = np.mean([run.test for run in plain.published.runs], axis=0)
    tasks = [
        float(delta_m([value], [base], [up]))
        for value, base, up in zip(means, baseline, higher, strict=True)
    ]
    return {
        "problem": PROBLEM,
        "epochs": _epochs(folder / "n4"),
        "epochs_recorded": _epochs(folder / "recorded"),
        "recipe": dict(plain.request["recipe"]),
        "sizes": dict(plain.request["sizes"]),
        "single_task": study.as_posix(),
        "plain_sum": dict(zip(plain.request["tasks"], tasks, strict=True)),
        "minibatches": [
            _of_count(folder / f"n{n}", n, results[VARIED], baseline, higher) for n in COUNTS
        ],
        "plain_step_ms": _step_ms(folder / "n4", PLAIN, plain),
        "eigenvalues": _eigenvalues(folder / "recorded", plain),
    }


def _of_count(
    folder: Path, n: int, known: MethodResult, baseline: Any, higher: Sequence[bool]
) -> dict[str, Any]:
    """Return Delta-m by seed and the time of a step for one number of mini-batches."""
    found = {run.config.seed: run.result.test for run in _runs(folder, VARIED, known)}
    seeds = sorted(found)
    return {
        "n": n,
        "seeds": seeds,
        "delta_m": [float(delta_m(found[seed], baseline, higher)) for seed in seeds],
        "step_ms": _step_ms(folder, VARIED, known),
    }


def _step_ms(folder: Path, method: str, known: MethodResult) -> float:
    """Return the processor time of a step in milliseconds, mean over the runs in a folder."""
    seconds = [
        (run.result.cpu_share or math.nan) * run.result.train_seconds / run.result.steps
        for run in _runs(folder, method, known)
    ]
    return 1e3 * statistics.fmean(seconds)


def _runs(folder: Path, method: str, known: MethodResult) -> list[Any]:
    runs = [run for run in load_runs(folder)[0] if run.config.method == method]
    for run in runs:
        _check(run.config, known.request, run.path)
    return runs


def _check(config: RunConfig, request: Mapping[str, Any], path: Path) -> None:
    # The description says how many epochs there are.
    reduced = {key: request["recipe"][key] for key in ("epochs", "description")}
    for what, ours in (
        ("problem_options", config.problem_options),
        ("recipe", {**config.recipe, **reduced}),
        ("sizes", config.sizes),
    ):
        if canonical_json(ours) != canonical_json(request[what]):
            raise ValueError(
                f"{path} has another {what} than the study: {ours}, not {request[what]}; train it "
                "with the commands in this file's first lines"
            )


def _epochs(folder: Path) -> int:
    """Return the number of epochs of the runs in a folder.

    Raises:
        ValueError: There are no runs, or they have different numbers.
    """
    found = {int(run.config.recipe["epochs"]) for run in load_runs(folder)[0]}
    if len(found) != 1:
        raise ValueError(f"the runs in {folder} must have one number of epochs, found {found}")
    return found.pop()


def _eigenvalues(folder: Path, known: MethodResult) -> list[dict[str, Any]]:
    """Return, by method and seed, how far apart the tasks' eigenvalues are over training."""
    found = []
    for run in load_runs(folder)[0]:
        _check(run.config, known.request, run.path)
        record = Recorder.load(run.path / RECORD)
        own = record["max_eigenvalues"]
        weighted = record["weights"].square() * own
        smallest = own.argmin(dim=1)
        found.append(
            {
                "method": run.config.method,
                "seed": run.config.seed,
                "source": record.source,
                "every": record.every,
                "spread": _spread(own),
                "weighted_spread": _spread(weighted),
                "median": dict(zip(record.tasks, own.median(dim=0).values.tolist(), strict=True)),
                "smallest": {
                    task: float((smallest == i).double().mean())
                    for i, task in enumerate(record.tasks)
                },
            }
        )
        if run.config.seed == 0:  # the curves of one seed are enough to draw
            found[-1] |= {
                "step": record.steps.tolist(),
                "max_eigenvalues": _rounded(own),
                "weights": _rounded(record["weights"]),
            }
    return sorted(found, key=lambda one: (one["seed"], one["method"]))


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[float(f"{value:.3g}") for value in row] for row in values.tolist()]


def _spread(eigenvalues: torch.Tensor) -> float:
    """Return the geometric mean over records of the largest over the smallest eigenvalue."""
    return statistics.geometric_mean(imbalance(row) for row in eigenvalues)


def read_numbers(path: Path) -> dict[str, Any]:
    """Read what :func:`gather` returned."""
    numbers: dict[str, Any] = parse_json(read_bytes(path))
    return numbers


# ------------------------------------------------------------------------------------------------
# From the numbers to claims


def figure_rows(numbers: Numbers) -> Iterator[list[str]]:
    """Yield claim, numbers and verdict of each claim on Figures 2, 3 and 4.

    Args:
        numbers: What :func:`gather` returned.
    """
    yield from eigenvalue_rows(numbers)
    by_n = {row["n"]: row["delta_m"] for row in numbers["minibatches"]}
    pairs = {n: difference(values, by_n[1]) for n, values in by_n.items() if n > 1}
    verdicts = [UNKNOWN if pair is None else pair.verdict for pair in pairs.values()]
    yield [
        "Figure 3: NTKMTL-SR improves from n = 1 to 2 or more",
        "less n = 1: " + "; ".join(f"n = {n} {pair}" for n, pair in pairs.items()),
        FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNKNOWN,
    ]
    yield _varies_less(by_n)
    pair = difference(by_n[8], by_n[4])
    yield [
        "Figure 3: n = 4 and more are alike",
        f"n = 8 less n = 4: {pair}",
        # Seeds can show that two differ, not that they do not.
        FAILS if pair is not None and pair.verdict != UNKNOWN else UNKNOWN,
    ]
    plain = numbers["plain_step_ms"]
    ratio = {row["n"]: row["step_ms"] / plain for row in numbers["minibatches"]}
    yield [
        "Figure 4: at n = 6 NTKMTL-SR takes nearly 1.7 times as long as the plain sum",
        "step over plain: " + ", ".join(f"n = {n} {value:.2f}" for n, value in ratio.items()),
        HOLDS if ratio[8] >= PAPER_RATIO / 1.1 else FAILS,
    ]


def _varies_less(by_n: Mapping[int, Sequence[float]]) -> list[str]:
    """Return the row on the variance over seeds: that of n = 1 against all others together."""
    one = statistics.variance(by_n[1])
    others = [values for n, values in by_n.items() if n > 1]
    pooled = statistics.fmean(statistics.variance(values) for values in others)
    freedom = sum(len(values) - 1 for values in others), len(by_n[1]) - 1
    ratio = pooled / one
    low, high = (ratio / float(f.ppf(q, *freedom)) for q in (0.975, 0.025))
    deviations = ", ".join(f"n = {n} {statistics.stdev(v):.1f}" for n, v in by_n.items())
    return [
        "Figure 3: it varies less between seeds from n = 2",
        f"standard deviations: {deviations}; variance over that of n = 1 {ratio:.2f} "
        f"({low:.2f} to {high:.1f})",
        HOLDS if high < 1 else FAILS if low > 1 else UNKNOWN,
    ]


def eigenvalue_rows(numbers: Numbers) -> Iterator[list[str]]:
    """Yield the rows on Figure 2."""
    records = numbers["eigenvalues"]
    plain = [one for one in records if one["method"] == PLAIN]
    harm = numbers["plain_sum"]
    starved = max(harm, key=lambda task: harm[task])
    shares = [one["smallest"][starved] for one in plain]
    order = [spearmanr(list(harm.values()), [one["median"][t] for t in harm])[0] for one in plain]
    yield [
        "Figure 2: the task that the plain sum starves has the smallest eigenvalue throughout",
        f"{starved}, {harm[starved]:+.0f} % against its single-task network: smallest in "
        f"{_range([100 * s for s in shares], '.0f')} % of the records; rank correlation of all "
        f"tasks' losses with their eigenvalues {_range(order, '+.2f')}",
        HOLDS if min(shares) >= THROUGHOUT else FAILS,
    ]
    for method in ("ntkmtl", VARIED):
        for key, what in (
            ("weighted_spread", "under its weights"),
            ("spread", "without its weights"),
        ):
            yield _spread_row(records, method, key, what)


def _spread_row(records: Sequence[Numbers], method: str, key: str, what: str) -> list[str]:
    plain = {one["seed"]: one["spread"] for one in records if one["method"] == PLAIN}
    ours = {one["seed"]: one[key] for one in records if one["method"] == method}
    seeds = sorted(plain.keys() & ours.keys())
    pair = difference(
        [math.log(ours[seed]) for seed in seeds], [math.log(plain[seed]) for seed in seeds]
    )
    numbers = (
        f"largest over smallest eigenvalue {_range([ours[s] for s in seeds], '.3g')}, plain sum "
        f"{_range([plain[s] for s in seeds], '.3g')}"
    )
    if pair is not None:
        ratio, low, high = (math.exp(x) for x in (pair.mean, pair.low, pair.high))
        numbers += f"; ratio {ratio:.2g} ({low:.2g} to {high:.2g})"
    claim = f"Eigenvalues spread less with {method.upper()} than with the plain sum, {what}"
    return [claim, numbers, UNKNOWN if pair is None else pair.verdict]


def _range(values: Sequence[float], form: str) -> str:
    """Return one number, or the least and the largest."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Figures 2, 3 and 4 at reduced size.")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--json", type=Path, required=True, help="file for the numbers")
    arguments = parser.parse_args(argv)
    write_json(arguments.json, gather(arguments.runs, arguments.study))


if __name__ == "__main__":
    main()
