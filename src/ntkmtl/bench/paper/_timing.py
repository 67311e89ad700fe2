"""Seconds per training step by method and n, taken in turns in one process."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ntkmtl import weighting
from ntkmtl.bench.compute.environment import default_threads, hardware, reproducible, versions
from ntkmtl.bench.training import changed_recipe
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.spec import RunSpec, run_identity
from ntkmtl.files import parse_json, read_bytes

if TYPE_CHECKING:
    from ntkmtl.bench.paper._runs import PreparedRuns
    from ntkmtl.bench.problems.base import Problem, Recipe

REFERENCE = "ls"
"""The method that the others are compared with."""

WARM_UP = 2
"""Steps before the first that is timed: the first ones allocate."""


class TimingError(ValueError):
    """Times cannot be measured as asked for, or a file does not hold them."""


@dataclass(frozen=True)
class Timed:
    """Time of one method.

    Attributes:
        method: Its name.
        minibatches: The n of its kernel, None where it reads none.
        seconds: Per step, median over turns.
        lower: First quartile over turns.
        upper: Third quartile.
        ratio: Median over turns of the time over that of LS just before.
        ratio_lower: First quartile of that.
        ratio_upper: Third quartile.
        seconds_per_epoch: ``seconds`` times the steps of an epoch, None where that is not known.
    """

    method: str
    minibatches: int | None
    seconds: float
    lower: float
    upper: float
    ratio: float
    ratio_lower: float
    ratio_upper: float
    seconds_per_epoch: float | None = None

    @property
    def label(self) -> str:
        """The method, with n where it has one."""
        n = self.minibatches
        return self.method if n is None else f"{self.method}, n = {n}"


def contenders(
    methods: Sequence[str], ns: Sequence[int] | None, minibatches: int
) -> list[tuple[str, int | None]]:
    """Return what is timed: methods that read a kernel with each n, the others once.

    Args:
        methods: Names; LS is added, as the others are compared with it.
        ns: Values of n; if None, each method's own.
        minibatches: The recipe's n, for methods that have an n above 1 by their own definition.

    Example:
        >>> contenders(["ntkmtl-sr"], [1, 4], 4)
        [('ls', None), ('ntkmtl-sr', 1), ('ntkmtl-sr', 4)]
        >>> contenders(["ls", "ntkmtl", "ntkmtl-sr"], None, 4)
        [('ls', None), ('ntkmtl', 1), ('ntkmtl-sr', 4)]
    """
    found: list[tuple[str, int | None]] = []
    for name in dict.fromkeys([REFERENCE, *methods]):
        spec = weighting.spec(name)
        if spec.requires != "eigenvalues":
            found.append((name, None))
            continue
        own = minibatches if "minibatches" in spec.defaults else 1
        found += [(name, n) for n in (ns or [own])]
    return found


def measure(
    prepared: PreparedRuns,
    ns: Sequence[int] | None,
    *,
    steps: int = 5,
    turns: int = 7,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[list[Timed], dict[str, Any]]:
    """Time training steps of several methods, as :func:`ntkmtl.bench.training.train` does them.

    The methods take turns of a few steps, LS just before each: other load on the machine slows
    both, and the ratio compares the two.

    Args:
        prepared: The problem and the methods.
        ns: Values of n, each method's own if None.
        steps: Steps of a turn.
        turns: Turns of each method.
        threads: Threads that torch computes with; ``OMP_NUM_THREADS`` or all cores if None.
        progress: Called with progress messages.

    Returns:
        The times, LS first, and what they depend on: ``problem``, ``batch_size``,
        ``steps_per_epoch``, ``steps``, ``turns``, ``recipe``, ``load`` (average before),
        ``hardware`` and ``versions``.

    Raises:
        TimingError: A method does not fit the problem, as an n above the batch size.
    """
    problem, asked = prepared.problem, prepared.request
    if steps < 1 or turns < 1:
        raise TimingError(f"steps and turns must be at least 1. Found {steps} and {turns}.")
    # Enough epochs that the schedule of the learning rate does not end before the timing does.
    recipe = changed_recipe(
        problem.recipe, batch_size=asked.batch_size, learning_rate=asked.learning_rate
    )
    needed, every = WARM_UP + steps * turns, problem.size("train") // max(recipe.batch_size, 1)
    long = replace(recipe, epochs=max(recipe.epochs, -(-needed // max(every, 1))))
    threads = threads or default_threads(jobs=1)
    with reproducible(threads):
        loops = [
            _Loop(method, n, _warmed_up(problem, method, n, long, threads))
            for method, n in contenders(prepared.methods, ns, recipe.minibatches)
        ]
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        _take_turns(loops, steps, turns, progress)
    return [loop.timed() for loop in loops], {
        "problem": problem.name,
        "tasks": len(problem.tasks),
        "batch_size": recipe.batch_size,
        "steps_per_epoch": loops[0].training.learner.steps_per_epoch,
        "steps": steps,
        "turns": turns,
        "recipe": recipe.description,
        "reduced": recipe.reduced,
        "load": load,
        "hardware": hardware(threads),
        "versions": versions(),
    }


@dataclass
class _Loop:
    """The training loop of a method, and the times of its turns."""

    method: str
    minibatches: int | None
    training: TrainingLoop
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def timed(self) -> Timed:
        lower, median, upper = _quartiles(self.seconds)
        ratio_lower, ratio, ratio_upper = _quartiles(self.ratios)
        return Timed(
            method=self.method,
            minibatches=self.minibatches,
            seconds=median,
            lower=lower,
            upper=upper,
            ratio=ratio,
            ratio_lower=ratio_lower,
            ratio_upper=ratio_upper,
            seconds_per_epoch=median * self.training.learner.steps_per_epoch,
        )


def _warmed_up(
    problem: Problem, method: str, n: int | None, recipe: Recipe, threads: int
) -> TrainingLoop:
    """Return the training loop of a method after the warm-up steps."""
    options = {} if n is None else {"minibatches": n}
    try:
        identity = run_identity(problem, method, 0, recipe=recipe, method_options=options)
        learner = Learner(problem, RunSpec(method=method, seed=0), identity)
        training = TrainingLoop(learner, threads)
        _steps(training, WARM_UP)
    except (TypeError, ValueError) as error:
        name = method if n is None else f"{method}, n = {n}"
        raise TimingError(f"{name}: {error}") from error
    return training


def _take_turns(
    loops: Sequence[_Loop], steps: int, turns: int, progress: Callable[[str], None]
) -> None:
    """Time a few steps of each method in turn, LS just before each, so that load slows both."""
    reference = loops[0]
    for turn in range(turns):
        progress(f"turn {turn + 1} of {turns}")
        for loop in loops[1:] or loops:
            base = _seconds(reference.training, steps)
            reference.seconds.append(base)
            reference.ratios.append(1.0)
            if loop is not reference:
                own = _seconds(loop.training, steps)
                loop.seconds.append(own)
                loop.ratios.append(own / base)


def _seconds(training: TrainingLoop, count: int) -> float:
    started = time.perf_counter()
    _steps(training, count)
    return (time.perf_counter() - started) / count


def _steps(training: TrainingLoop, count: int) -> None:
    for indices in itertools.islice(training.batches(), count):
        training.train_step(indices)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def read_measured(path: str | os.PathLike[str], network: str) -> tuple[list[Timed], dict[str, Any]]:
    """Read the times that ``benchmarks/peers.py`` wrote.

    Args:
        path: Its ``measured.json``.
        network: Name of the network there; of several numbers of tasks the largest is taken.

    Returns:
        Plain training (called LS here) and our methods, and what they depend on.

    Raises:
        FileNotFoundError: There is no such file.
        TimingError: The file does not hold what is looked for.
    """
    path = Path(path)
    try:
        content = parse_json(read_bytes(path))
        cases = [case for case in content["cases"] if case["network"] == network]
        if not cases:
            there = ", ".join(dict.fromkeys(case["network"] for case in content["cases"]))
            raise TimingError(f"{path} has no times of {network}; it has {there or 'none'}")
        case = max(cases, key=lambda case: int(case["tasks"]))
        found = [_timed(row) for row in case["rows"] if not row["error"] and _wanted(row)]
        facts = {
            "problem": case["network"],
            "tasks": case["tasks"],
            "batch_size": case["batch"],
            "command": content["command"],
            "hardware": content["facts"],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TimingError(
            f"{path} is not what benchmarks/peers.py writes: {type(error).__name__}: {error}"
        ) from error
    return found, facts


def _wanted(row: dict[str, Any]) -> bool:
    """Return whether a row is of plain training, or of our methods as they are without options."""
    n, method = row["minibatches"], row["method"]
    plain = {"ntkmtl, exact", f"ntkmtl-sr n={n}"}
    return row["group"] == "plain" or (method in ("ntkmtl", "ntkmtl-sr") and row["label"] in plain)


def _timed(row: dict[str, Any]) -> Timed:
    plain = row["group"] == "plain"
    return Timed(
        method=REFERENCE if plain else str(row["method"]),
        # The exact kernel is timed with its own n, which is 1.
        minibatches=None if plain else int(row["minibatches"]) or 1,
        seconds=float(row["seconds"]["median"]),
        lower=float(row["seconds"]["lower"]),
        upper=float(row["seconds"]["upper"]),
        ratio=float(row["ratio"]["median"]),
        ratio_lower=float(row["ratio"]["lower"]),
        ratio_upper=float(row["ratio"]["upper"]),
    )
