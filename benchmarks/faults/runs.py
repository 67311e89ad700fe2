"""The trainings that faults are tried on, in this process or in one of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import Outcome
from ntkmtl.bench.runs import (
    CHECKPOINT,
    CONFIG,
    PREVIOUS,
    RESULT,
    read_config,
    read_json,
)
from ntkmtl.bench.runs.folder import CheckpointError, read_checkpoint
from ntkmtl.bench.search import Search, tune
from ntkmtl.bench.training import (
    Comparison,
    RunFileError,
    find_problem,
    load_run,
    train,
)
from ntkmtl.bench.training.baselines import BaselineCache
from ntkmtl.bench.training.loop import TrainingLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess

__all__ = [
    "COMPARISON",
    "MOLECULES",
    "OWN",
    "Training",
    "begun",
    "differing",
    "numbers",
    "same",
    "start",
    "unreadable",
    "unsaid",
]

OWN_PROBLEM = Path(__file__).parents[2] / "examples" / "own_problem" / "my_problem.py"
VOLATILE = (
    "seconds_per_epoch",
    "train_seconds",
    "wall_seconds",
    "eval_seconds",
    "cpu_seconds",
    "cpu_share",
    "finished",
)
"""Keys that tell of the time, the one thing in which two runs may differ."""


@dataclass(frozen=True)
class Training:
    """Something that trains into a folder, and goes on where it was stopped.

    Attributes:
        name: What the table calls it.
        problem: As on the command line.
        method: Name of the method; ``""`` for a search over several methods, with its baselines
            and final runs.
        epochs: Of each run.
        batch_size: Of each run.
    """

    name: str
    problem: str
    method: str
    epochs: int
    batch_size: int

    def __call__(self, folder: Path) -> None:
        """Train into ``folder`` with a checkpoint after every step."""
        if not self.method:
            comparison = Comparison(
                problem=self.problem,
                methods=["ls", "fixed"],
                seeds=[0],
                out=folder / "runs",
                epochs=self.epochs,
                batch_size=self.batch_size,
                checkpoint_seconds=0.0,
            )
            tune(Search(comparison, trials=2), cache=BaselineCache(folder / "cache"))
            return
        problem = find_problem(self.problem, {})
        train(
            problem,
            self.method,
            0,
            folder,
            recipe=replace(problem.recipe, epochs=self.epochs, batch_size=self.batch_size),
            method_options={"minibatches": 2},
            threads=1,
            checkpoint_seconds=0.0,
        )


OWN = Training("a custom problem", f"{OWN_PROBLEM}:MyProblem", "ntkmtl-sr", 4, 32)
MOLECULES = Training("qm9-mini", "qm9-mini", "ntkmtl-sr", 2, 250)
COMPARISON = Training("a comparison", f"{OWN_PROBLEM}:MyProblem", "", 2, 64)


def _run(training: Callable[[Path], None], folder: Path) -> None:
    # A checkpoint that was killed within its write is said, and is no news here.
    warnings.simplefilter("ignore")
    os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  (for the life of the process)
    begin = TrainingLoop.run

    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        begun(folder).touch()
        return begin(self, *arguments, **named)

    TrainingLoop.run = run  # type: ignore[method-assign]
    training(folder)


def begun(folder: Path) -> Path:
    """Return the file that stands beside a folder once training has begun there."""
    return folder.with_name(f"{folder.name}.begun")


def start(training: Callable[[Path], None], folder: Path) -> BaseProcess:
    """Start a training in a process, and a process group, of its own."""
    context = multiprocessing.get_context("forkserver")
    # What the first training would import, so that a kill meets a training and not an import.
    context.set_forkserver_preload(
        ["ntkmtl.bench.training.sweep", "torch._dynamo", "ntkmtl.bench.problems.qm9_mini"]
    )
    begun(folder).unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run, args=(training, folder))
    process.start()
    return process


# ------------------------------------------------------------------------------------------------
# Judging what a fault left


def numbers(folder: Path) -> dict[str, Any]:
    """Return the content of every file of finished runs, without what tells of the time.

    The cache of baselines is left out: one that was not kept there is trained again.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # A page says when it was written, and so does Optuna's journal, whose exports are compared.
        if path.is_dir() or path.suffix in (".lock", ".html", ".log") or name.startswith("cache/"):
            continue
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_bytes()))
        else:
            found[name] = path.read_bytes()
    return found


def differing(folder: Path, whole: dict[str, Any]) -> str:
    """Return where the numbers of runs differ from those of undisturbed ones, ``""`` nowhere."""
    found = numbers(folder)
    names = sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n))
    told = []
    for name in names:
        one, other = found.get(name), whole.get(name)
        keys = ""
        if isinstance(one, dict) and isinstance(other, dict):
            keys = ", ".join(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
        told.append(f"{name} ({keys or ('missing' if one is None else 'content')})")
    return "; ".join(told)


def same(outcome: Outcome, folder: Path, whole: dict[str, Any], name: str) -> None:
    """Note it where the numbers of runs are not those of undisturbed ones."""
    told = differing(folder, whole)
    outcome.expect(not told, f"{name}: ended with other numbers: {told}")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in VOLATILE}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def unreadable(folder: Path) -> list[str]:
    """Return one text per file below a folder that cannot be read as what its name says."""
    broken = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        try:
            if path.name == CONFIG:
                read_config(path)
            elif path.name in (CHECKPOINT, PREVIOUS):
                read_checkpoint(path)
            elif path.suffix == ".json":
                read_json(path)
            if path.name == RESULT:
                run = load_run(path.parent)
                _ = run.history, run.steps
        except (RunFileError, CheckpointError) as error:
            broken.append(str(error))
    return broken


@contextmanager
def unsaid() -> Iterator[None]:
    """Keep warnings off the screen where they are what is being tried out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
