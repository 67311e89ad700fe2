"""The JSON files of a search, which ``docs/run-format.md`` describes.

``study.json`` says what was asked for. ``trial.json`` and ``best.json`` are exports from Optuna's
storage, for people and for tables. Nothing here imports torch or Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ntkmtl.bench.runs import (
    BEST,
    SCHEMA,
    SINGLE_TASK,
    STUDY,
    Finite,
    Run,
    convert,
    read_json,
    require_schema,
)
from ntkmtl.bench.search.parameters import Parameter, Value

__all__ = [
    "SAMPLER",
    "TUNING",
    "Trial",
    "Tuning",
    "read_study",
    "read_tuning",
    "study_request",
    "tuning_of",
]

TUNING = "tuning"
"""Name of the folder of a search, beside the runs of its method."""

SAMPLER = "tpe"
"""How settings are chosen."""


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: ``trial.json``.

    Attributes:
        number: Number, from 0.
        state: ``"complete"``, or ``"diverged"`` if a number became NaN or infinite.
        parameters: The values tried, by name.
        method_options: The options of the method that was trained.
        value: Delta-m in percent on the validation split after the last epoch, lower is better;
            None if it diverged.
        wall_seconds: Time taken, in seconds.
        recipe: The changes of the recipe that the parameters stand for.
        error: Message of the error with which it diverged.

    Example:
        >>> Trial(3, "complete", {"learning_rate": 0.01}, {}, -3.2, 4.0, {}).parameters
        {'learning_rate': 0.01}
    """

    number: int
    state: str
    parameters: Mapping[str, Value]
    method_options: Mapping[str, Any]
    value: Finite | None
    wall_seconds: Finite
    recipe: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Tuning:
    """The result of a search: ``best.json``.

    Attributes:
        sampler: How parameters were chosen: ``"tpe"``.
        seed: Seed of the search, and of every trial's run.
        split: The split that trials are judged on.
        epochs: Epochs of a trial.
        trials: Number of trials that have ended.
        diverged: How many of them diverged.
        number: The best trial.
        value: Its Delta-m in percent on ``split``.
        start_value: That of trial 0, which has the settings that one begins with; None if it
            diverged.
        parameters: The values found, by name.
        method_options: The options of the method that they stand for.
        recipe: The changes of the recipe that they stand for.
        wall_seconds: Time of all trials, summed, in seconds.
        finished: UTC time, ISO 8601.
    """

    sampler: str
    seed: int
    split: str
    epochs: int
    trials: int
    diverged: int
    number: int
    value: Finite
    start_value: Finite | None
    parameters: Mapping[str, Value]
    method_options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    wall_seconds: Finite
    finished: str


def study_request(identity: Mapping[str, Any], parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return the content of ``study.json``.

    Args:
        identity: What :func:`ntkmtl.bench.training.identity.run_identity` returns for its trials.
        parameters: What is searched.
    """
    kept = (
        *("schema", "problem", "problem_class", "problem_options"),
        *("method", "method_options", "seed", "recipe"),
    )
    return {
        **{key: identity[key] for key in kept},
        "sampler": SAMPLER,
        "objective": {
            "metric": "delta_m",
            "against": SINGLE_TASK,
            "split": "val",
            "direction": "minimize",
        },
        "parameters": [parameter.to_json() for parameter in parameters],
    }


def read_study(folder: Path) -> dict[str, Any]:
    """Return the content of ``study.json``.

    Raises:
        RunFileError: It cannot be read, or has another schema.
    """
    found = read_json(folder / STUDY)
    require_schema(folder / STUDY, found)
    return found


def exported(record: Trial | Tuning) -> dict[str, Any]:
    """Return a record as the content of its file."""
    return {"schema": SCHEMA, **asdict(record)}


def read_tuning(method: Path) -> Tuning | None:
    """Return the result of the search for a method's settings, None if none is complete.

    Args:
        method: The method's folder in a comparison, in which its seeds' folders are.

    Raises:
        RunFileError: The file is damaged.
    """
    path = method / TUNING / BEST
    if not path.exists():
        return None
    found = read_json(path)
    require_schema(path, found)
    return convert(path, found, Tuning)


def tuning_of(group: Sequence[Run]) -> Tuning | None:
    """Return the search that found the settings of all these runs of one method.

    Raises:
        RunFileError: Its file is damaged.
    """
    found = read_tuning(group[0].path.parent)
    if found is None:
        return None
    wanted = dict(found.method_options), dict(found.recipe)
    for run in group:
        recipe = {key: run.config.recipe.get(key) for key in found.recipe}
        if (dict(run.config.method_options), recipe) != wanted:
            return None
    return found
