"""Records of a run: what was trained, its epochs, and its outcome.

The files and their keys are described in ``docs/run-format.md``. Nothing here imports torch, so
that tables and reports of finished runs open at once.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ntkmtl.bench.runs.layout import SCHEMA, SINGLE_TASK, RunFileError
from ntkmtl.files import parse_json, read_bytes, write_json

__all__ = [
    "Epoch",
    "Finite",
    "KeptModel",
    "RunConfig",
    "RunMetric",
    "RunResult",
    "canonical_json",
    "convert",
    "differences",
    "read_config",
    "read_history",
    "read_json",
    "read_result",
    "require_length",
    "require_schema",
    "shown",
    "write_history",
]

T = TypeVar("T")

_LARGEST = sys.float_info.max
Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
"""A number that JSON can hold: neither NaN nor infinite."""
Amount = Annotated[float, msgspec.Meta(ge=0, le=_LARGEST)]
"""The same, not negative: a time, in seconds, or a share."""
Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        RunFileError: It cannot be read, is not JSON, or holds something else.
    """
    try:
        value = parse_json(read_bytes(path))
    except OSError as error:
        what = error.strerror or str(error)
        said = what if error.errno == errno.EINVAL else f"cannot be read ({what})"
        raise RunFileError(path, said) from error
    except UnicodeDecodeError as error:
        raise RunFileError(path, f"is not UTF-8 text ({error.reason} at {error.start})") from error
    except ValueError as error:
        raise RunFileError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RunFileError(path, f"the file must be an object, found {shown(value)}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RunFileError(path, "holds half of a surrogate pair, which is not text") from error
    return value


def require_schema(path: Path, value: Mapping[str, Any]) -> None:
    """Check that a file has the layout that this version reads.

    Raises:
        RunFileError: It has not.
    """
    found = convert(path, value, _Schema).schema
    if found != SCHEMA:
        raise RunFileError(
            path,
            f"has schema {found}, this version of ntkmtl reads schema {SCHEMA}; "
            "read it with the version that wrote it, or train again into another folder",
        )


class _Schema(msgspec.Struct):
    schema: int


def convert(path: Path, value: Any, kind: type[T]) -> T:
    """Return a JSON value as a record, a dataclass or a ``msgspec.Struct``; other keys are ignored.

    Args:
        path: The file that the value was read from, for errors.
        value: The value.
        kind: The record's class.

    Raises:
        RunFileError: A key is missing, or its value is of another kind.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RunFileError(path, _explain(str(error), value)) from error


def _explain(message: str, value: Any) -> str:
    """Return what msgspec found wrong in words, with the value that it found there."""
    said, _, place = message.partition(" - at ")
    steps: list[str | int] = [
        name or int(index) for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place)
    ]
    missing = re.match(r"Object missing required field `(.+)`", said)
    if missing:
        return f"key '{_key([*steps, missing[1]])}' is missing"
    for step in steps:
        value = value[step]
    subject = f"key '{_key(steps)}'" if steps else "the file"
    least = re.search(r"`int` >= (\d+)", said)
    if least:
        return f"{subject} must be a whole number from {least[1]}, found {shown(value)}"
    if "`float` >= 0" in said:
        return f"{subject} must be a number from 0, found {shown(value)}"
    if "matching regex" in said:
        return f"{subject} must be a SHA-256 in hexadecimal, found {shown(value)}"
    if "out of range" in said or "finite" in said or re.search(r"[<>]= -?1\.79", said):
        return f"{subject} must be a finite number, found {shown(value)}"
    wanted = re.match(r"Expected `([^`]+)`", said)
    if wanted is None:
        return f"{subject} is wrong ({said}), found {shown(value)}"
    words = " or ".join(_WORDS.get(word, word) for word in wanted[1].split(" | "))
    return f"{subject} must be {words}, found {shown(value)}"


def _key(steps: Sequence[str | int]) -> str:
    joined = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)
    return joined.removeprefix(".")


def require_length(path: Path, key: str, values: Sequence[object], length: int) -> None:
    """Check how many numbers a list holds.

    Raises:
        RunFileError: It holds more or fewer.
    """
    if len(values) != length:
        raise RunFileError(path, f"key '{key}' must hold {length} numbers, found {len(values)}")


def shown(value: Any) -> str:
    """Return a value as it is shown in an error, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1.0, "a": [True, None]})
        '{"a":[true,null],"b":1.0}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


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
    """What determines a run, and its provenance: ``config.json``.

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
        baseline: For methods that learn from scores: the metrics of the single-task networks that
            the scores compare with, one number per metric. None for the others.
        method_source: Digest of the source of a method outside this package, empty for the others.
        created_with: Options that the problem was created with, to create it again; None where its
            class was called directly.
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
    baseline: tuple[Finite, ...] | None = None
    method_source: str = ""
    created_with: Mapping[str, Any] | None = None

    @property
    def single_task(self) -> str | None:
        """The task of a single-task baseline, None for every other method."""
        return self.tasks[0] if self.method == SINGLE_TASK else None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return _content(self)

    def identity(self) -> dict[str, Any]:
        """Return what two runs must share to be the same.

        All but size, versions, hardware, where the data are, and the baseline, which follows from
        the rest.
        """
        content = self.to_json()
        for key in ("parameters", "versions", "hardware", "baseline", "created_with"):
            content.pop(key, None)
        return content


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one string per key in which two identities of runs differ, nested keys with dots.

    Args:
        found: What :meth:`RunConfig.identity` returned for the run that is there.
        wanted: The same for the run that is asked for.

    Example:
        >>> differences({"recipe": {"epochs": 3}, "seed": 0}, {"recipe": {"epochs": 5}, "seed": 0})
        ['recipe.epochs is 3, asked for 5']
    """
    old, new = _flatten(found), _flatten(wanted)
    keys = sorted(old.keys() | new.keys())
    differing = [k for k in keys if k not in old or k not in new or old[k] != new[k]]
    # It says in words what the others say in numbers, and is cut where the two differ.
    if any(key.startswith("recipe.") and key != _DESCRIPTION for key in differing):
        differing = [key for key in differing if key != _DESCRIPTION]
    return [
        f"{key} is {shown(old[key]) if key in old else 'absent'}, "
        f"asked for {shown(new[key]) if key in new else 'none'}"
        for key in differing
    ]


_DESCRIPTION = "recipe.description"


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
        cpu_seconds: How much of ``train_seconds`` the main thread had a processor core; None where
            that says nothing of how busy the machine was: on a GPU, or with several processes.
    """

    epoch: Count
    train_losses: tuple[float | None, ...]
    val: tuple[Finite, ...]
    learning_rate: Finite
    train_seconds: Amount
    eval_seconds: Amount
    cpu_seconds: Amount | None = None


@dataclass(frozen=True)
class KeptModel:
    """The file of a run's trained network, as ``result.json`` describes it.

    Attributes:
        bytes: Its size.
        sha256: Its SHA-256, hexadecimal.
    """

    bytes: Positive
    sha256: Sha256


@dataclass(frozen=True)
class RunResult:
    """The outcome of a complete run: ``result.json``.

    Attributes:
        test: One number per metric on the test split, after the last epoch.
        val: The same on the validation split.
        seconds_per_epoch: Median over epochs of the time in training steps, in seconds.
        train_seconds: Sum of the time in training steps, in seconds.
        wall_seconds: Time from start to end, in seconds, summed over the parts of a resumed run.
        steps: Number of optimizer steps.
        finished: UTC time, ISO 8601.
        epoch: The epoch whose network was tested, from 0, where it was chosen on the validation
            split; None for the last.
        skipped_steps: Steps left out, as a loss or a gradient was not finite; None where the
            recipe does not allow that.
        overflowed_steps: Steps left out while the gradient scaler of fp16 found its scale; None in
            other precisions.
        cpu_share: Median over epochs of ``cpu_seconds`` over ``train_seconds``: 1 on a machine with
            nothing else to do, less the busier it was. None where it is not known.
        model: The file of the trained network, None if it was not kept.
    """

    test: tuple[Finite, ...]
    val: tuple[Finite, ...]
    seconds_per_epoch: Amount
    train_seconds: Amount
    wall_seconds: Amount
    steps: Count
    finished: str
    epoch: Count | None = None
    skipped_steps: Count | None = None
    overflowed_steps: Count | None = None
    cpu_share: Amount | None = None
    model: KeptModel | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``."""
        return _content(self)


def _content(record: RunConfig | RunResult) -> dict[str, Any]:
    """Return what the file of a record holds: fields that have their default value are left out."""
    values = json.loads(json.dumps(asdict(record)))
    kept = {f.name: values[f.name] for f in fields(record) if values[f.name] != f.default}
    return {"schema": SCHEMA, **kept}


# ------------------------------------------------------------------------------------------------
# Files


class _Recipe(msgspec.Struct):
    epochs: Positive
    batch_size: Positive
    learning_rate: Finite
    minibatches: Positive
    reduced: bool
    description: str
    tested_epochs: Positive = 1


class _Sizes(msgspec.Struct):
    train: Count
    val: Count
    test: Count


class _Metric(msgspec.Struct):
    name: str
    task: str
    unit: str
    higher_is_better: bool
    label: str


class _Required(msgspec.Struct):
    """What ``config.json`` must hold beyond the types of :class:`RunConfig`."""

    recipe: _Recipe
    sizes: _Sizes
    metrics: list[_Metric]


def read_config(path: str | os.PathLike[str]) -> RunConfig:
    """Read ``config.json``.

    Args:
        path: The file.

    Raises:
        RunFileError: It cannot be read, is not JSON, has another schema, or lacks a key.
    """
    path = Path(path)
    found = read_json(path)
    require_schema(path, found)
    config = convert(path, {"problem_class": "", **found}, RunConfig)
    convert(path, found, _Required)
    if not config.tasks:
        raise RunFileError(path, "key 'tasks' must name at least one task, found none")
    for number, metric in enumerate(config.metrics):
        if metric.task not in config.tasks:
            raise RunFileError(
                path,
                f"key 'metrics[{number}].task' must be one of the tasks "
                f"{', '.join(shown(task) for task in config.tasks)}, found {shown(metric.task)}",
            )
    if config.baseline is not None:
        require_length(path, "baseline", config.baseline, len(config.metrics))
    return config


def read_result(path: Path, config: RunConfig) -> RunResult:
    """Read ``result.json``.

    Args:
        path: The file.
        config: The run's configuration.

    Raises:
        RunFileError: It cannot be read, is not JSON, has another schema, or lacks a key.
    """
    found = read_json(path)
    require_schema(path, found)
    result = convert(path, found, RunResult)
    require_length(path, "test", result.test, len(config.metrics))
    require_length(path, "val", result.val, len(config.metrics))
    # An epoch of L-BFGS may follow.
    epochs = config.recipe["epochs"] + bool(config.recipe.get("lbfgs_steps"))
    if result.epoch is not None and result.epoch >= epochs:
        raise RunFileError(
            path, f"key 'epoch' must be below the {epochs} epochs of the run, found {result.epoch}"
        )
    return result


class _History(msgspec.Struct):
    epochs: tuple[Epoch, ...]


def read_history(path: Path, config: RunConfig) -> tuple[Epoch, ...]:
    """Read ``history.json``.

    Args:
        path: The file.
        config: The run's configuration.

    Raises:
        RunFileError: It cannot be read, is not JSON, or lacks a key.
    """
    epochs = convert(path, read_json(path), _History).epochs
    k = len(config.tasks)
    for number, epoch in enumerate(epochs):
        if len(epoch.train_losses) != k:
            raise RunFileError(
                path,
                f"key 'epochs[{number}].train_losses' must hold {k} numbers or null, "
                f"found {shown(list(epoch.train_losses))}",
            )
        require_length(path, f"epochs[{number}].val", epoch.val, len(config.metrics))
    return epochs


def write_history(path: str | os.PathLike[str], epochs: Sequence[Epoch]) -> None:
    """Write ``history.json`` in one piece."""
    write_json(path, {"epochs": [asdict(epoch) for epoch in epochs]})
