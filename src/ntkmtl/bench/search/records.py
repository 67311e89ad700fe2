"""What is searched of a method, and the JSON files of a search.

``docs/run-format.md`` describes the files: ``study.json`` says what was asked for; ``trial.json``
and ``best.json`` are exports from Optuna's storage, for people and for tables. Nothing here imports
torch or Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ntkmtl.weighting import SearchRange, spec

if TYPE_CHECKING:
    from ntkmtl.bench.problems.base import Recipe

__all__ = [
    "RATE",
    "SAMPLER",
    "TUNING",
    "Parameter",
    "Trial",
    "Tuning",
    "Value",
    "method_options_of",
    "option_of",
    "parameters_of",
    "read_study",
    "read_tuning",
    "study_request",
    "tuning_of",
]

TUNING = "tuning"
"""Name of the folder of a search, beside the runs of its method."""

SAMPLER = "tpe"
"""How settings are chosen."""

Value = float | str
"""What a parameter may be."""

RATE = "learning_rate"
"""Name of the parameter that every method has."""

LEARNING_RATE_FACTOR = 10.0
"""Learning rates are searched from the recipe's divided by this to the recipe's times this."""

LENGTHS = ("method", "plain", "unit")
"""Lengths of the combined gradient that are tried where lengths are searched."""

WIDE = 1e6
"""Weights are searched from 1 / WIDE to WIDE where measured kernels say where to look."""

_OPTION, _WEIGHT = "options.", "weights."
_NARROW = 10.0


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched: a number in a range, or one of several words.

    Attributes:
        name: Its name.
        low: Least value.
        high: Largest value.
        start: Its value in trial 0.
        log: Whether its logarithm is drawn uniformly, not the number itself.
        choices: The words; none for a number.
    """

    name: str
    low: float
    high: float
    start: Value
    log: bool = True
    choices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what ``study.json`` says of it."""
        found: dict[str, Any] = {"name": self.name, "start": self.start}
        if self.choices:
            return {**found, "choices": list(self.choices)}
        return {**found, "low": self.low, "high": self.high, "log": self.log}


def parameters_of(
    method: str,
    tasks: Sequence[str],
    recipe: Recipe,
    *,
    length: bool = False,
    given: Collection[str] = (),
    wide: bool = False,
) -> tuple[Parameter, ...]:
    """Return what is searched of a method: its learning rate, and the options with a known range.

    For ``fixed`` these are the weights of the tasks, from 0.1 to 10, equal ones to begin with.

    Args:
        method: Its name.
        tasks: Names of the tasks.
        recipe: The recipe that the search begins with.
        length: Whether the length of the combined gradient is searched as well, of methods that
            know one.
        given: Options with a fixed value; if ``length`` is among them, it is not searched.
        wide: Whether weights of ``fixed`` may be from 1e-6 to 1e6.

    Raises:
        ValueError: The ``search_space`` of a custom method holds something else than ranges.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
        >>> for p in parameters_of("cagrad", ["a", "b"], recipe, length=True):
        ...     print(p.name, p.low, p.start, p.high)
        learning_rate 0.001 0.01 0.1
        options.c 0.0 0.4 0.99
        options.length 0.0 method 0.0
    """
    rate, spread = recipe.learning_rate, WIDE if wide else _NARROW
    low, high = rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR
    found = [Parameter(RATE, float(f"{low:.4g}"), float(f"{high:.4g}"), start=rate)]
    known = spec(method)
    _check_space(method, known.space)
    if method == "fixed":
        found += [Parameter(f"{_WEIGHT}{task}", 1 / spread, spread, start=1.0) for task in tasks]
    found += [
        Parameter(f"{_OPTION}{r.option}", r.low, r.high, start=r.start, log=r.log)
        for r in known.space
    ]
    if length and "length" not in given and known.requires not in ("losses", "jacobian"):
        found.append(Parameter(f"{_OPTION}length", 0.0, 0.0, "method", log=False, choices=LENGTHS))
    return tuple(found)


def _check_space(method: str, space: Sequence[SearchRange]) -> None:
    """Refuse what is no range of numbers with its start in it; a custom class may have anything."""
    if not isinstance(space, tuple | list):
        raise ValueError(
            f"search_space of {method} must hold SearchRange in a tuple, found {space!r}"
        )
    for each in space:
        if not isinstance(each, SearchRange):
            raise ValueError(f"search_space of {method} must hold SearchRange, found {each!r}")
        ends = (each.low, each.start, each.high)
        numbers = all(
            isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
            for end in ends
        )
        if not (numbers and each.low <= each.start <= each.high and each.low < each.high):
            raise ValueError(
                f"search_space of {method}: {each.option} must have numbers low <= start <= high "
                f"and low < high, found low={each.low!r}, start={each.start!r}, high={each.high!r}"
            )
        if each.log and each.low <= 0:
            raise ValueError(
                f"search_space of {method}: the logarithm of {each.option} is searched: low must "
                f"be above 0, found {each.low!r}"
            )
    names = [each.option for each in space]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"search_space of {method} names {twice!r} twice")


def option_of(parameter: Parameter) -> str:
    """Return the method's option that a parameter sets, ``""`` for the learning rate."""
    if parameter.name.startswith(_WEIGHT):
        return "weights"
    return parameter.name.removeprefix(_OPTION) if parameter.name != RATE else ""


def method_options_of(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the options of a method that the values of its parameters stand for.

    Example:
        >>> method_options_of({"learning_rate": 0.1, "weights.a": 2.0, "weights.b": 1.0})
        {'weights': [2.0, 1.0]}
    """
    weights = [value for name, value in values.items() if name.startswith(_WEIGHT)]
    found: dict[str, Any] = {"weights": weights} if weights else {}
    for name, value in values.items():
        if name.startswith(_OPTION):
            found[name.removeprefix(_OPTION)] = value
    return found


# ------------------------------------------------------------------------------------------------
# Files


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
        identity: What :func:`ntkmtl.bench.training.spec.run_identity` returns for its trials.
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
