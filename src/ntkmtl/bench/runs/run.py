"""Complete runs: reading one or all below a folder, their steps, the best one, and references."""

from __future__ import annotations

import io
import os
import shlex
import statistics
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ntkmtl.bench.runs.layout import (
    CONFIG,
    FAILURE,
    HISTORY,
    REFERENCES,
    RESULT,
    SCHEMA,
    STEPS,
    STUDY,
    RunFileError,
)
from ntkmtl.bench.runs.records import (
    Epoch,
    Finite,
    RunConfig,
    RunResult,
    convert,
    read_config,
    read_history,
    read_json,
    read_result,
    require_length,
    require_schema,
)
from ntkmtl.files import atomic_write, require_regular, write_json

__all__ = [
    "IncompleteRun",
    "Reference",
    "Run",
    "Steps",
    "best_run",
    "load_run",
    "load_runs",
    "read_references",
    "read_steps",
    "save_references",
    "use_command",
    "write_steps",
]


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
        why = (
            "cannot be read: there is no such file; give the folder of a run, as .../seed-0, or "
            ".../stl/seed-0/TASK for a single-task network"
        )
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
    if config.problem == "table" and config.problem_class.startswith("ntkmtl."):
        command += ["--csv", "new.csv", "-o", "predictions.csv"]
    else:
        command += ["--split", "test", "-o", "predictions.npz"]
    return shlex.join(command)


# ------------------------------------------------------------------------------------------------
# Steps


@dataclass(frozen=True, eq=False)
class Steps:
    """Task weights and eigenvalues over training: ``steps.npz``.

    Attributes:
        step: Numbers of the recorded steps, int64 of shape (T,).
        weights: The tasks' weights, float32 of shape (T, k).
        eigenvalues: The largest eigenvalue of each task's kernel, float32 of shape (T, k); None for
            methods that have none. NaN at a step at which the kernel was not read.
    """

    step: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    eigenvalues: npt.NDArray[np.float32] | None


# What zipfile and NumPy raise on bytes that are not theirs.
_ARRAY_ERRORS = (
    AttributeError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_steps(path: Path, k: int) -> Steps:
    """Read ``steps.npz``.

    Args:
        path: The file.
        k: Number of tasks.

    Raises:
        RunFileError: It is missing or damaged, or of another number of tasks.
    """
    try:
        require_regular(path)
    except OSError as error:
        raise RunFileError(path, error.strerror or str(error)) from error
    try:
        # Not np.load: it reads the archive's index twice, which adds up over a thousand runs, and
        # it accepts some files that are not archives.
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if not {"step.npy", "weights.npy"} <= names:
                raise RunFileError(path, f"must hold 'step' and 'weights', found {sorted(names)}")
            step, weights = _member(archive, "step.npy"), _member(archive, "weights.npy")
            eigenvalues = None
            if "eigenvalues.npy" in names:
                eigenvalues = _member(archive, "eigenvalues.npy")
    except RunFileError:
        raise
    except _ARRAY_ERRORS as error:
        raise RunFileError(path, f"is not a readable .npz file ({str(error)[:200]})") from error
    if step.ndim != 1 or not np.issubdtype(step.dtype, np.integer):
        raise RunFileError(path, f"'step' must be integers of shape (T,), found {step.shape}")
    for name, array in (("weights", weights), ("eigenvalues", eigenvalues)):
        if array is None:
            continue
        if array.shape != (len(step), k) or not np.issubdtype(array.dtype, np.floating):
            raise RunFileError(
                path,
                f"'{name}' must be floats of shape {(len(step), k)}, "
                f"found {array.dtype} of shape {array.shape}",
            )
    return Steps(
        step=step.astype(np.int64, copy=False),
        weights=weights.astype(np.float32, copy=False),
        eigenvalues=None if eigenvalues is None else eigenvalues.astype(np.float32, copy=False),
    )


def _member(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as file:
        # Read to its end, which is where its checksum is looked at.
        return np.asarray(np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False))


def write_steps(path: str | os.PathLike[str], steps: Steps) -> None:
    """Write ``steps.npz`` in one piece. The same steps give the same bytes."""
    require_regular(path)
    arrays: dict[str, npt.NDArray[Any]] = {"step": steps.step, "weights": steps.weights}
    if steps.eigenvalues is not None:
        arrays["eigenvalues"] = steps.eigenvalues
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


# ------------------------------------------------------------------------------------------------
# References: metrics of models that are not networks, kept beside the runs of a problem


@dataclass(frozen=True)
class Reference:
    """A model that networks are compared with.

    Attributes:
        name: Its name, as ``ridge``.
        description: What it is, in words.
        test: One number per metric on the test split.
        seconds: Time that it took.
    """

    name: str
    description: str
    test: tuple[Finite, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class _Content:
    problem_options: dict[str, Any]
    rows: tuple[Reference, ...]


def save_references(
    folder: str | os.PathLike[str], problem_options: Mapping[str, Any], rows: list[Reference]
) -> None:
    """Write the references of a problem in one piece.

    Args:
        folder: The problem's folder below that of the comparison.
        problem_options: What determines its data.
        rows: The references.
    """
    content = [
        {"name": r.name, "description": r.description, "test": list(r.test), "seconds": r.seconds}
        for r in rows
    ]
    write_json(
        Path(folder) / REFERENCES,
        {"schema": SCHEMA, "problem_options": dict(problem_options), "rows": content},
    )


def read_references(
    folder: str | os.PathLike[str], problem_options: Mapping[str, Any], metrics: int
) -> tuple[Reference, ...]:
    """Read the references of a problem; empty if there are none, or they are of other data.

    Args:
        folder: The problem's folder below that of the comparison.
        problem_options: What determines the data of its runs.
        metrics: Number of its metrics.

    Raises:
        RunFileError: The file is damaged.
    """
    path = Path(folder) / REFERENCES
    if not path.is_file():
        return ()
    found = read_json(path)
    require_schema(path, found)
    content = convert(path, found, _Content)
    if _of_data(content.problem_options) != _of_data(problem_options):
        return ()
    for row in content.rows:
        require_length(path, f"test of {row.name}", row.test, metrics)
    return content.rows


def _of_data(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "network"}
