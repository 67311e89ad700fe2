"""Single-task baselines: their cache, and how a multi-task network performs against them.

A baseline costs as much as a run and does not depend on the methods that it is compared with, so it
is trained once per machine and copied from then on. Nothing here
looks at the test split: methods that learn from scores, and the search of settings, must not see
it.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ntkmtl.bench.compute.environment import hardware, source_digest, versions
from ntkmtl.bench.jobs.engine import SweepError
from ntkmtl.bench.runs import (
    CONFIG,
    HISTORY,
    MODEL,
    RESULT,
    SINGLE_TASK,
    STEPS,
    RunFileError,
    canonical_json,
    load_run,
    run_folder,
)
from ntkmtl.bench.runs.folder import PATIENCE
from ntkmtl.bench.runs.model_file import model_bytes
from ntkmtl.files import atomic_write, read_bytes, write_json
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Metric, Problem
    from ntkmtl.bench.runs import RunMetric

__all__ = [
    "TRAINING_VERSION",
    "BaselineCache",
    "baseline_key",
    "cache_folder",
    "check_baseline",
    "read_baseline",
    "task_scores",
]

TRAINING_VERSION = 2
"""Raised when a change of the trainer changes the numbers of a run."""

_COPIED = (CONFIG, HISTORY, STEPS)


def cache_folder() -> Path:
    """Return the folder of caches: ``$NTKMTL_CACHE``, or the user's cache folder for ntkmtl."""
    chosen = os.environ.get("NTKMTL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("ntkmtl")


def baseline_key(identity: Mapping[str, Any], problem_class: type, threads: int) -> str:
    """Return the key of everything that determines a baseline's numbers.

    Besides the run's identity these are the versions of the libraries and of the trainer, the
    source of the problem, the processor, and the number of threads.

    Args:
        identity: What :func:`ntkmtl.bench.training.spec.run_identity` returned.
        problem_class: The problem's class.
        threads: Threads that torch computes with.

    Returns:
        64 hexadecimal digits.
    """
    everything = {
        "identity": dict(identity),
        "versions": versions(),
        "training": TRAINING_VERSION,
        "source": source_digest(problem_class),
        "hardware": hardware(threads),
    }
    return hashlib.sha256(canonical_json(everything).encode()).hexdigest()


class BaselineCache:
    """Complete runs of single-task baselines by key.

    Args:
        folder: Where they are kept; :func:`cache_folder` if None.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / "stl"

    def fetch(
        self, key: str, identity: Mapping[str, Any], to: Path, keep_model: bool = True
    ) -> bool:
        """Copy a baseline into a run's folder.

        Args:
            key: Its key.
            identity: What the run must be.
            to: The run's folder.
            keep_model: Whether to copy its network, where the cache has it.

        Returns:
            True if there was one.

        Raises:
            RunFileError: There was one, and it is damaged; nothing was copied.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return False
        run = load_run(entry)
        if run.config.identity() != identity:
            raise RunFileError(entry / CONFIG, "is not the run that its folder is named after")
        # Read before anything is copied, so that damage is found here and not in a report.
        _ = run.history, run.steps
        result = run.result
        if not keep_model:
            result = replace(result, model=None)
        if result.model is not None:
            content = model_bytes(run)
            with atomic_write(to / MODEL) as file:
                file.write(content)
        _copy(entry, to, _COPIED)
        write_json(to / RESULT, result.to_json())
        return True

    def store(self, key: str, run: Path) -> None:
        """Store a complete run; other processes may store the same at the same time.

        Raises:
            OSError: The cache cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.folder / key
        if entry.exists():
            return
        try:
            with FileLock(self.folder.with_name(".stl.lock"), timeout=PATIENCE):
                self._store(entry, run)
        except Timeout as error:
            raise OSError(f"another process has been writing in {self.folder}") from error

    def _store(self, entry: Path, run: Path) -> None:
        # No other process writes: unfinished entries are of processes that were killed.
        for leftover in self.folder.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
        try:
            model = (MODEL,) if (run / MODEL).exists() else ()
            _copy(run, temporary, (*_COPIED, *model, RESULT))
            temporary.chmod(0o755)
            try:
                temporary.rename(entry)
            except OSError:
                # If another process was first, it stored the same.
                if not entry.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def discard(self, key: str) -> None:
        """Remove a baseline, as after :meth:`fetch` has found it damaged."""
        shutil.rmtree(self.folder / key, ignore_errors=True)


def _copy(source: Path, to: Path, names: Sequence[str]) -> None:
    for name in names:
        with atomic_write(to / name) as file:
            file.write(read_bytes(source / name))


# ------------------------------------------------------------------------------------------------
# Against the baselines


def read_baseline(problem: Problem, out: str | os.PathLike[str], seed: int) -> tuple[float, ...]:
    """Return the validation metrics of the single-task networks of one seed.

    Args:
        problem: The problem.
        out: Folder of the comparison in which their runs are complete.
        seed: The seed.

    Returns:
        One number per metric.

    Raises:
        ValueError: :func:`check_baseline` refuses a number.
        RunFileError: A run is incomplete or damaged.
    """
    values = []
    for metric in problem.metrics:
        run = load_run(run_folder(out, problem.name, SINGLE_TASK, seed, metric.task))
        own = dict(zip((m.name for m in run.config.metrics), run.result.val, strict=True))
        if metric.name not in own:
            raise RunFileError(run.path / CONFIG, f"does not hold the metric {metric.name!r}")
        values.append(own[metric.name])
    check_baseline(values, problem.metrics)
    return tuple(values)


def check_baseline(baseline: Sequence[float], metrics: Sequence[Metric | RunMetric]) -> None:
    """Check that Delta-m can be measured against a baseline.

    Args:
        baseline: One number per metric.
        metrics: The metrics.

    Raises:
        ValueError: There are more or fewer numbers than metrics.
        SweepError: A number is not positive or not finite.
    """
    if len(baseline) != len(metrics):
        raise ValueError(
            f"the baseline must hold one number for each of {len(metrics)} metrics. "
            f"Found {len(baseline)}."
        )
    for metric, value in zip(metrics, baseline, strict=True):
        # Relative to a negative number, better would count as worse.
        if value <= 0 or not math.isfinite(value):
            raise SweepError(
                f"the single-task network has {value} in {metric.name}, which Delta-m cannot be "
                "measured against: leave that metric out of the problem, or train longer"
            )


def task_scores(
    values: Sequence[float],
    baseline: Sequence[float],
    metrics: Sequence[RunMetric],
    tasks: Sequence[str],
) -> Tensor:
    """Return Delta-m of each task in percent, the mean over the task's metrics; lower is better.

    Args:
        values: One number per metric.
        baseline: The same of the single-task networks, all of them positive.
        metrics: The metrics.
        tasks: Names of the k tasks.

    Returns:
        float64 of shape (k,), NaN for a task that no metric judges.

    Example:
        >>> from ntkmtl.bench.runs import RunMetric
        >>> metrics = [RunMetric("error", "depth"), RunMetric("accuracy", "seg", "", True)]
        >>> task_scores([0.3, 60.0], [0.2, 50.0], metrics, ["seg", "depth"]).round().tolist()
        [-20.0, 50.0]
    """
    found = []
    for task in tasks:
        own = [place for place, metric in enumerate(metrics) if metric.task == task]
        if not own:
            found.append(math.nan)
            continue
        score = delta_m(
            [values[place] for place in own],
            [baseline[place] for place in own],
            [metrics[place].higher_is_better for place in own],
        )
        found.append(float(score))
    return torch.tensor(found, dtype=torch.float64)
