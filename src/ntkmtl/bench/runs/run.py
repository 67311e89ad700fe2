"""Reading complete runs, one or all below a folder, and choosing the one to use."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from ntkmtl.bench.runs.errors import RunFileError
from ntkmtl.bench.runs.layout import CONFIG, FAILURE, HISTORY, RESULT, STEPS, STUDY
from ntkmtl.bench.runs.records import (
    Epoch,
    RunConfig,
    RunResult,
    convert,
    read_config,
    read_history,
    read_json,
    read_result,
)
from ntkmtl.bench.runs.steps import Steps, read_steps

__all__ = ["IncompleteRun", "Run", "best_run", "load_run", "load_runs", "use_command"]


@dataclass(frozen=True)
class Run:
    """A complete run. Epochs and steps are read from disk on first use.

    Attributes:
        path: The run's folder.
        config: What was trained.
        result: Its outcome.
    """

    path: Path
    config: RunConfig
    result: RunResult

    @cached_property
    def history(self) -> tuple[Epoch, ...]:
        """The epochs in order.

        Raises:
            RunFileError: ``history.json`` is missing or damaged.
        """
        return read_history(self.path / HISTORY, self.config)

    @cached_property
    def steps(self) -> Steps:
        """Weights and eigenvalues over training.

        Raises:
            RunFileError: ``steps.npz`` is missing or damaged.
        """
        return read_steps(self.path / STEPS, len(self.config.tasks))


@dataclass(frozen=True)
class IncompleteRun:
    """A run folder without a result.

    Attributes:
        path: The folder.
        reason: ``failed: ...`` with the recorded reason, else ``unfinished``.
    """

    path: Path
    reason: str


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a complete run.

    Args:
        path: The run's folder.

    Returns:
        The run; its epochs and steps are read when first asked for.

    Raises:
        RunFileError: The run is incomplete, or a file is damaged, foreign or of another version.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        why = "cannot be read: there is no such file; give the folder of a run, as .../seed-0"
        raise RunFileError(path / CONFIG, why)
    config = read_config(path / CONFIG)
    if not (path / RESULT).exists():
        raise RunFileError(path / RESULT, "is not there: the run is not complete")
    return Run(path=path, config=config, result=read_result(path / RESULT, config))


def load_runs(
    folder: str | os.PathLike[str],
) -> tuple[list[Run], list[IncompleteRun]]:
    """Read every run below a folder, except the trials of a search.

    Args:
        folder: The folder of a comparison, or one above or below it.

    Returns:
        The complete runs, and the incomplete ones with the reason of each, both in the order of
        their paths.

    Raises:
        FileNotFoundError: There is no such folder.
        RunFileError: A file is damaged, foreign or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one that --out named")
    runs: list[Run] = []
    incomplete: list[IncompleteRun] = []
    for place, folders, files in os.walk(folder):
        # A folder with a file's name is reported when it is read.
        files = [*files, *folders]
        if STUDY in files:
            # Trials look like runs of the comparison (same method and seed), but are not.
            folders.clear()
            continue
        folders.sort()
        if CONFIG not in files:
            if RESULT in files and HISTORY in files:
                raise RunFileError(Path(place) / CONFIG, f"is not there, and {RESULT} is")
            continue
        if RESULT in files:
            runs.append(load_run(place))
        else:
            incomplete.append(IncompleteRun(Path(place), _why_incomplete(Path(place), files)))
    return runs, incomplete


def _why_incomplete(path: Path, files: Sequence[str]) -> str:
    if FAILURE not in files:
        return "unfinished"
    failure = convert(path / FAILURE, read_json(path / FAILURE), _Failure)
    return f"failed: {failure.message}"


class _Failure(msgspec.Struct):
    message: str


def best_run(runs: Sequence[Run]) -> Run | None:
    """Return the run with the best mean rank over metrics on the validation split.

    The test split takes no part, so the winner's numbers in the table stay honest. Single-task
    networks predict one task each and are left out, as are runs that kept no network.

    Args:
        runs: Complete runs of one problem.

    Returns:
        The run, the first of equals; None if no run qualifies.
    """
    chosen = [run for run in runs if run.config.single_task is None and run.result.model]
    if not chosen:
        return None
    metrics = chosen[0].config.metrics
    if any(run.config.metrics != metrics for run in chosen):
        return None

    def mean_rank(run: Run) -> float:
        return statistics.fmean(
            sum(
                other.result.val[place] > run.result.val[place]
                if metric.higher_is_better
                else other.result.val[place] < run.result.val[place]
                for other in chosen
            )
            for place, metric in enumerate(metrics)
        )

    return min(chosen, key=mean_rank)


def use_command(run: Run, source: str = "") -> str:
    """Return the command that uses the network of a run.

    Args:
        run: The run.
        source: Its problem as it was typed; a custom one is named by its class if empty.
    """
    config = run.config
    command = ["ntkmtl", "predict", str(run.path)]
    if ":" in source or not config.problem_class.startswith("ntkmtl."):
        command += ["--problem", source or config.problem_class]
    if config.problem == "table":
        command += ["--csv", "new.csv", "-o", "predictions.csv"]
    else:
        command += ["--split", "test", "-o", "predictions.npz"]
    return shlex.join(command)
