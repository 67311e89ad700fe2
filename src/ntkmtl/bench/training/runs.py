"""Run directories: what one training leaves behind, written and read.

The files and their keys are described in ``docs/run-format.md``. Nothing here imports torch, so
that tables and reports of finished runs open at once.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ntkmtl.files import atomic_write, write_json

__all__ = [
    "AGENT",
    "SCHEMA",
    "SINGLE_TASK",
    "Epoch",
    "IncompleteRun",
    "JsonObject",
    "Run",
    "RunConfig",
    "RunFileError",
    "RunMetric",
    "RunResult",
    "Steps",
    "canonical_json",
    "check_schema",
    "clear_run",
    "differences",
    "folder_name",
    "load_run",
    "load_runs",
    "read_config",
    "read_object",
    "remove_leftovers",
    "run_folder",
    "write_history",
    "write_steps",
]

SCHEMA = 1
"""Version of the files' layout, written into ``config.json`` and ``result.json``."""

SINGLE_TASK = "stl"
"""Name of the method that trains one network per task: the baseline of Delta-m."""

CONFIG, HISTORY, STEPS, RESULT = "config.json", "history.json", "steps.npz", "result.json"
CHECKPOINT, FAILURE = "checkpoint.pt", "failure.json"
PREVIOUS = "checkpoint.previous.pt"
"""The checkpoint before the last one, for the day on which the last one proves damaged."""
RECORD = "record.json"
"""What :class:`ntkmtl.analysis.Recorder` kept, where a run was recorded."""
STUDY, TRIAL, BEST = "study.json", "trial.json", "best.json"
REQUEST = "compare.json"
AGENT = "agent.pt"
"""The trained agent, where one was trained by reinforcement."""
FILES = (RESULT, TRIAL, FAILURE, CHECKPOINT, PREVIOUS, HISTORY, STEPS, RECORD, AGENT, CONFIG)
"""Names of every file that may stand in a run directory, in the order to remove them: what is left
of a removal that was cut short must not pass for a complete run."""

MAX_STEP_ROWS = 2000

_RECIPE_KEYS: dict[str, type | tuple[type, ...]] = {
    "epochs": int,
    "batch_size": int,
    "learning_rate": (int, float),
    "minibatches": int,
    "reduced": bool,
    "description": str,
}


class RunFileError(ValueError):
    """A file of a run directory cannot be read: damaged, foreign, or of another version.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        self.path = Path(path)
        self.why = why
        super().__init__(f"{path}: {why}")

    def __reduce__(self) -> tuple[type[RunFileError], tuple[Path, str]]:
        return (type(self), (self.path, self.why))


# ------------------------------------------------------------------------------------------------
# JSON with checks


class JsonObject:
    """A JSON object of a file, whose reading says which key of which file is wrong.

    Args:
        path: The file, for messages.
        value: What was read from it.
        where: The object's own key in the file, ``""`` for the whole of it.

    Raises:
        RunFileError: The value is no object; from the methods, a key is missing or of another kind.
    """

    def __init__(self, path: Path, value: Any, where: str = "") -> None:
        if not isinstance(value, dict):
            raise RunFileError(
                path, f"{where or 'the file'} must be an object, found {_say(value)}"
            )
        self.path = path
        self.where = where
        self.value: dict[str, Any] = value

    def get(self, key: str, kind: type | tuple[type, ...], *, default: Any = None) -> Any:
        """Return the value of a key, of one of these kinds."""
        name = f"{self.where}.{key}" if self.where else key
        if key not in self.value:
            if default is not None:
                return default
            raise RunFileError(self.path, f"key '{name}' is missing")
        found = self.value[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # JSON's true is Python's 1: a bool is a number only where a bool is asked for.
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            wanted = " or ".join(_KIND_NAMES[k] for k in kinds)
            raise RunFileError(self.path, f"key '{name}' must be {wanted}, found {_say(found)}")
        return found

    def number(self, key: str) -> float:
        """Return a finite number."""
        return self._finite(self.get(key, (int, float)), key)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Return a list of so many finite numbers."""
        found = self.get(key, list)
        if len(found) != length:
            raise RunFileError(
                self.path, f"key '{key}' must hold {length} numbers, found {len(found)}"
            )
        for value in found:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise RunFileError(self.path, f"key '{key}' must hold numbers, found {_say(value)}")
        return tuple(self._finite(value, key) for value in found)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        found = self.get(key, list)
        for value in found:
            if not isinstance(value, str):
                raise RunFileError(self.path, f"key '{key}' must hold texts, found {_say(value)}")
        return tuple(found)

    def objects(self, key: str) -> list[JsonObject]:
        """Return a list of objects."""
        found = self.get(key, list)
        return [JsonObject(self.path, v, f"{key}[{i}]") for i, v in enumerate(found)]

    def _finite(self, value: float, key: str) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise RunFileError(self.path, f"key '{key}' must hold finite numbers, found {value!r}")
        return number


_KIND_NAMES: dict[type, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _say(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def read_object(path: Path) -> JsonObject:
    """Read a file that holds a JSON object.

    Raises:
        RunFileError: It cannot be read, is not JSON, or holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RunFileError(path, f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise RunFileError(path, f"is not UTF-8 text ({error.reason} at {error.start})") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunFileError(path, f"is not valid JSON ({error})") from error
    return JsonObject(path, value)


def check_schema(found: JsonObject) -> None:
    """Check that a file is of the layout that this version reads.

    Raises:
        RunFileError: It is not.
    """
    schema = found.get("schema", int)
    if schema != SCHEMA:
        raise RunFileError(
            found.path,
            f"has schema {schema}, this version of ntkmtl reads schema {SCHEMA}; "
            "read it with the version that wrote it, or train again into another folder",
        )


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1.0, "a": [True, None]})
        '{"a":[true,null],"b":1.0}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


# ------------------------------------------------------------------------------------------------
# What the files hold


@dataclass(frozen=True)
class RunMetric:
    """A metric as a run records it: the attributes of ``ntkmtl.bench.problems.base.Metric``."""

    name: str
    task: str
    unit: str = ""
    higher_is_better: bool = False
    label: str = ""


@dataclass(frozen=True)
class RunConfig:
    """What determines a run, and where it ran: ``config.json``.

    Attributes:
        problem: Name of the problem.
        problem_class: Its class, as ``module:Class``.
        problem_options: What determines its data, network and losses, as JSON values.
        method: Name of the method.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        seed: Seed of the initial weights, of the order of the data, and of all that is drawn.
        recipe: ``epochs``, ``batch_size``, ``learning_rate``, ``minibatches``, ``reduced`` and
            ``description``.
        tasks: Names of the k tasks.
        metrics: What the network is judged by.
        sizes: Samples in ``train``, ``val`` and ``test``.
        parameters: Number of trainable parameters of the network.
        versions: Of ``python``, ``torch``, ``torchjd`` and ``ntkmtl``.
        hardware: ``device``, ``processor``, ``cores`` and ``threads``.
        baseline: For methods that are told scores: the metrics of the single-task networks that
            the scores compare with, one number per metric. None for the others.
    """

    problem: str
    problem_class: str
    problem_options: Mapping[str, Any]
    method: str
    method_options: Mapping[str, Any]
    seed: int
    recipe: Mapping[str, Any]
    tasks: tuple[str, ...]
    metrics: tuple[RunMetric, ...]
    sizes: Mapping[str, int]
    parameters: int
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    baseline: tuple[float, ...] | None = None

    @property
    def single_task(self) -> str | None:
        """The task of a single-task baseline, None for every other method."""
        return self.tasks[0] if self.method == SINGLE_TASK else None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        content = {"schema": SCHEMA, **json.loads(json.dumps(asdict(self)))}
        if self.baseline is None:
            del content["baseline"]
        return content

    def identity(self) -> dict[str, Any]:
        """Return what two runs must share to be the same.

        All but size, versions, hardware, and the baseline, whose own identity follows from the
        run's.
        """
        content = self.to_json()
        for key in ("parameters", "versions", "hardware", "baseline"):
            content.pop(key, None)
        return content


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one text per key in which two identities of runs differ, nested keys with dots.

    Args:
        found: What :meth:`RunConfig.identity` returned for the run that is there.
        wanted: The same for the run that is asked for.

    Example:
        >>> differences({"recipe": {"epochs": 3}, "seed": 0}, {"recipe": {"epochs": 5}, "seed": 0})
        ['recipe.epochs is 3, asked for 5']
    """
    old, new = _flatten(found), _flatten(wanted)
    return [
        f"{key} is {_say(old[key]) if key in old else 'absent'}, "
        f"asked for {_say(new[key]) if key in new else 'none'}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class Epoch:
    """One epoch of ``history.json``.

    Attributes:
        epoch: Number, from 0.
        train_losses: Mean training loss of each of the k tasks over the epoch's steps, None for a
            task that no step had labels for.
        val: One number per metric, on the validation split after the epoch; on the training split
            where the problem has no validation split.
        learning_rate: That of the epoch's last step.
        train_seconds: Time in training steps, in seconds, without evaluation and checkpoints.
        eval_seconds: Time in evaluation, in seconds.
    """

    epoch: int
    train_losses: tuple[float | None, ...]
    val: tuple[float, ...]
    learning_rate: float
    train_seconds: float
    eval_seconds: float


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


@dataclass(frozen=True)
class RunResult:
    """What a complete run came to: ``result.json``.

    Attributes:
        test: One number per metric on the test split, after the last epoch.
        val: The same on the validation split.
        seconds_per_epoch: Median over epochs of the time in training steps, in seconds.
        train_seconds: Sum of the time in training steps, in seconds.
        wall_seconds: Time from start to end, in seconds, summed over the parts of a resumed run.
        steps: Number of optimiser steps.
        finished: UTC time, ISO 8601.
        skipped_steps: Steps left out, as a loss or a gradient was not finite; None where the
            recipe does not allow that.
        overflowed_steps: Steps left out while the gradient scaler of fp16 found its scale; None in
            other precisions.
    """

    test: tuple[float, ...]
    val: tuple[float, ...]
    seconds_per_epoch: float
    train_seconds: float
    wall_seconds: float
    steps: int
    finished: str
    skipped_steps: int | None = None
    overflowed_steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        counts = {
            "skipped_steps": self.skipped_steps,
            "overflowed_steps": self.overflowed_steps,
        }
        return {
            "schema": SCHEMA,
            "test": list(self.test),
            "val": list(self.val),
            "seconds_per_epoch": self.seconds_per_epoch,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds,
            "steps": self.steps,
            "finished": self.finished,
            **{key: value for key, value in counts.items() if value is not None},
        }


@dataclass(frozen=True)
class Run:
    """A complete run. Epochs and steps are read from disk on first use.

    Attributes:
        path: The run's folder.
        config: What was trained.
        result: What it came to.
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
        return _read_history(self.path / HISTORY, self.config)

    @cached_property
    def steps(self) -> Steps:
        """Weights and eigenvalues over training.

        Raises:
            RunFileError: ``steps.npz`` is missing or damaged.
        """
        return _read_steps(self.path / STEPS, len(self.config.tasks))


@dataclass(frozen=True)
class IncompleteRun:
    """A run folder without a result.

    Attributes:
        path: The folder.
        reason: ``failed: ...`` with the recorded reason, else ``unfinished``.
    """

    path: Path
    reason: str


# ------------------------------------------------------------------------------------------------
# Reading


def read_config(path: str | os.PathLike[str]) -> RunConfig:
    """Read ``config.json``.

    Args:
        path: The file.

    Raises:
        RunFileError: It cannot be read, is not JSON, has another schema, or lacks a key.
    """
    found = read_object(Path(path))
    check_schema(found)
    recipe = JsonObject(found.path, found.get("recipe", dict), "recipe")
    for key, kind in _RECIPE_KEYS.items():
        recipe.get(key, kind)
    sizes = JsonObject(found.path, found.get("sizes", dict), "sizes")
    for split in ("train", "val", "test"):
        sizes.get(split, int)
    tasks = found.strings("tasks")
    if not tasks:
        raise RunFileError(found.path, "key 'tasks' must name at least one task, found none")
    metrics = tuple(
        RunMetric(
            name=metric.get("name", str),
            task=metric.get("task", str),
            unit=metric.get("unit", str),
            higher_is_better=metric.get("higher_is_better", bool),
            label=metric.get("label", str),
        )
        for metric in found.objects("metrics")
    )
    return RunConfig(
        problem=found.get("problem", str),
        problem_class=found.get("problem_class", str, default=""),
        problem_options=found.get("problem_options", dict),
        method=found.get("method", str),
        method_options=found.get("method_options", dict),
        seed=found.get("seed", int),
        recipe=recipe.value,
        tasks=tasks,
        metrics=metrics,
        sizes=sizes.value,
        parameters=found.get("parameters", int),
        versions=found.get("versions", dict),
        hardware=found.get("hardware", dict),
        baseline=found.numbers("baseline", len(metrics)) if "baseline" in found.value else None,
    )


def _read_result(path: Path, config: RunConfig) -> RunResult:
    found = read_object(path)
    check_schema(found)
    return RunResult(
        test=found.numbers("test", len(config.metrics)),
        val=found.numbers("val", len(config.metrics)),
        seconds_per_epoch=found.number("seconds_per_epoch"),
        train_seconds=found.number("train_seconds"),
        wall_seconds=found.number("wall_seconds"),
        steps=found.get("steps", int),
        finished=found.get("finished", str),
        **{
            key: found.get(key, int)
            for key in ("skipped_steps", "overflowed_steps")
            if key in found.value
        },
    )


def _read_history(path: Path, config: RunConfig) -> tuple[Epoch, ...]:
    k = len(config.tasks)
    epochs = []
    for entry in read_object(path).objects("epochs"):
        losses = entry.get("train_losses", list)
        if len(losses) != k or not all(_is_loss(value) for value in losses):
            raise RunFileError(
                path,
                f"{entry.where}.train_losses must hold {k} numbers or null, found {_say(losses)}",
            )
        epochs.append(
            Epoch(
                epoch=entry.get("epoch", int),
                train_losses=tuple(losses),
                val=entry.numbers("val", len(config.metrics)),
                learning_rate=entry.number("learning_rate"),
                train_seconds=entry.number("train_seconds"),
                eval_seconds=entry.number("eval_seconds"),
            )
        )
    return tuple(epochs)


def _is_loss(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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


def _read_steps(path: Path, k: int) -> Steps:
    try:
        # np.load would read the archive's list of members a second time for each of a thousand
        # runs; and of a file that is no archive it makes an array or an error, by what it holds.
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
        raise RunFileError(path, f"is not a readable .npz file ({error})") from error
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
    config = read_config(path / CONFIG)
    if not (path / RESULT).exists():
        raise RunFileError(path / RESULT, "is not there: the run is not complete")
    return Run(path=path, config=config, result=_read_result(path / RESULT, config))


def load_runs(
    folder: str | os.PathLike[str],
) -> tuple[list[Run], list[IncompleteRun]]:
    """Read every run below a folder, but for the trials of a tuning.

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
        if STUDY in files:
            # Trials have the seed and the method of a run of the comparison, and are none.
            folders.clear()
            continue
        folders.sort()
        if CONFIG not in files:
            continue
        if RESULT in files:
            runs.append(load_run(place))
        else:
            incomplete.append(IncompleteRun(Path(place), _why_incomplete(Path(place), files)))
    return runs, incomplete


def _why_incomplete(path: Path, files: Sequence[str]) -> str:
    if FAILURE not in files:
        return "unfinished"
    failure = read_object(path / FAILURE)
    return f"failed: {failure.get('message', str)}"


# ------------------------------------------------------------------------------------------------
# Writing


def folder_name(name: str) -> str:
    """Return a name as one path component on every system; distinct names stay distinct.

    Raises:
        ValueError: The name is empty or made of dots.

    Example:
        >>> folder_name("ntkmtl-sr"), folder_name("R/S: 1")
        ('ntkmtl-sr', 'R%2FS%3A%201')
    """
    if not name.strip("."):
        raise ValueError(f"a problem, method or task needs a name that can name a folder: {name!r}")
    return quote(name, safe="+=,@")


def run_folder(
    out: str | os.PathLike[str], problem: str, method: str, seed: int, task: str | None = None
) -> Path:
    """Return the folder of a run below the folder of a comparison.

    Args:
        out: The comparison's folder.
        problem: Name of the problem.
        method: Name of the method.
        seed: Seed.
        task: The task of a single-task baseline.

    Example:
        >>> run_folder("runs", "qm9-mini", "stl", 0, "mu").as_posix()
        'runs/qm9-mini/stl/seed-0/mu'
    """
    path = Path(out) / folder_name(problem) / folder_name(method) / f"seed-{seed}"
    return path if task is None else path / folder_name(task)


def clear_run(folder: Path) -> None:
    """Remove the files of a run, and nothing else."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def remove_leftovers(out: Path) -> None:
    """Remove what killed processes left of files that they had not finished writing.

    Args:
        out: Folder of a comparison, in which nobody else writes.
    """
    ours = {*FILES, STUDY, BEST, REQUEST}
    for path in out.rglob(".*.tmp"):
        if path.name[1:].rsplit(".", 2)[0] in ours:
            path.unlink(missing_ok=True)


def write_history(path: str | os.PathLike[str], epochs: Sequence[Epoch]) -> None:
    """Write ``history.json`` in one piece."""
    write_json(path, {"epochs": [asdict(epoch) for epoch in epochs]})


def write_steps(path: str | os.PathLike[str], steps: Steps) -> None:
    """Write ``steps.npz`` in one piece. The same steps give the same bytes."""
    arrays: dict[str, npt.NDArray[Any]] = {"step": steps.step, "weights": steps.weights}
    if steps.eigenvalues is not None:
        arrays["eigenvalues"] = steps.eigenvalues
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
