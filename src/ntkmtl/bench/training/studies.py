"""Studies: searches for the settings of a method, one run per trial.

The files are described in ``docs/run-format.md``. A trial's parameters are written with its value,
so that any search, by chance or by what earlier trials found, can go on from the files alone.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ntkmtl.bench.runs import (
    BEST,
    SCHEMA,
    SINGLE_TASK,
    STUDY,
    TRIAL,
    Finite,
    RunFileError,
    convert,
    read_json,
    require_schema,
)
from ntkmtl.files import write_json

__all__ = [
    "COMPLETE",
    "DIVERGED",
    "TUNING",
    "Parameter",
    "Study",
    "Trial",
    "Tuning",
    "read_study",
    "read_tuning",
    "study_request",
    "weight_parameters",
]

TUNING = "tuning"
"""Name of the folder of a study, beside the runs of its method."""

COMPLETE, DIVERGED = "complete", "diverged"
"""The states of a trial that has ended. One that failed otherwise has not: it is tried again."""


@dataclass(frozen=True)
class Parameter:
    """A number that is searched.

    Attributes:
        name: Its name.
        low: Least value.
        high: Largest value.
        start: Its value in trial 0.
        log: Whether its logarithm is drawn uniformly, not the number itself.
    """

    name: str
    low: float
    high: float
    start: float
    log: bool = True

    def draw(self, seed: int, trial: int) -> float:
        """Return the value of a trial, a function of name, seed and number alone.

        Four digits are kept, for the sake of those who read or type them.

        Args:
            seed: Seed of the search.
            trial: Number of the trial; 0 gives :attr:`start`.

        Example:
            >>> weight = Parameter("weights.mu", 0.1, 10.0, start=1.0)
            >>> weight.draw(0, 0), 0.1 <= weight.draw(0, 1) <= 10.0
            (1.0, True)
        """
        if trial == 0:
            return self.start
        digest = hashlib.sha256(f"{self.name} {seed} {trial}".encode()).digest()
        share = int.from_bytes(digest[:6], "big") / 2**48
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        return float(f"{math.exp(value) if self.log else value:.4g}")


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: ``trial.json``.

    Attributes:
        number: Number, from 0.
        state: :data:`COMPLETE`, or :data:`DIVERGED` if a number became NaN or infinite.
        parameters: The values tried, by name.
        method_options: The options of the method that they stand for.
        recipe: The changes of the recipe that they stand for.
        value: Delta-m in percent on the validation split after the last epoch, lower is better;
            None if it diverged.
        wall_seconds: Time taken, in seconds.
        error: What was said when it diverged.
    """

    number: int
    state: str
    parameters: Mapping[str, float]
    method_options: Mapping[str, Any]
    value: Finite | None
    wall_seconds: Finite
    recipe: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Tuning:
    """What a study found: ``best.json``.

    Attributes:
        sampler: How parameters are chosen: ``"random"``.
        seed: Seed of the search, and of every trial's training.
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
    parameters: Mapping[str, float]
    method_options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    wall_seconds: Finite
    finished: str


@dataclass(frozen=True)
class Study:
    """A search for the settings of a method.

    Attributes:
        folder: Its folder.
        asked: Content of ``study.json``: what is searched, and how.
        parameters: What is searched.
        trials: Number of trials asked for.
    """

    folder: Path
    asked: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    trials: int

    @property
    def seed(self) -> int:
        """Seed of the search, and of every trial's training."""
        return int(self.asked["seed"])

    def place(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / f"trial-{number:04d}"

    def draw(self, number: int) -> dict[str, float]:
        """Return the parameters of a trial by name."""
        return {p.name: p.draw(self.seed, number) for p in self.parameters}

    def ended(self) -> dict[int, Trial]:
        """Read the trials that have ended, by number.

        Raises:
            RunFileError: A file is damaged.
        """
        places = sorted(self.folder.glob(f"trial-*/{TRIAL}"))
        return {trial.number: trial for trial in map(_read_trial, places)}

    def begin(self) -> None:
        """Write ``study.json``, by which the folder is known to hold trials."""
        if not (self.folder / STUDY).exists():
            write_json(self.folder / STUDY, self.asked)

    def record(self, trial: Trial) -> None:
        """Write ``trial.json``: the trial has ended."""
        write_json(self.place(trial.number) / TRIAL, {"schema": SCHEMA, **asdict(trial)})

    def best(self) -> Tuning:
        """Return the best of the trials; among equals the first.

        Raises:
            ValueError: Trials are missing, or all diverged.
            RunFileError: A file is damaged.
        """
        ended = self.ended()
        missing = [number for number in range(self.trials) if number not in ended]
        if missing:
            raise ValueError(
                f"the tuning is not complete: {len(missing)} of {self.trials} trials are missing"
            )
        found = [
            (trial.value, number) for number, trial in ended.items() if trial.value is not None
        ]
        if not found:
            raise ValueError(
                f"all {len(ended)} trials diverged: lower the learning rate and tune again"
            )
        value, number = min(found)
        best = ended[number]
        return Tuning(
            sampler=self.asked["sampler"],
            seed=self.seed,
            split=self.asked["objective"]["split"],
            epochs=self.asked["recipe"]["epochs"],
            trials=len(ended),
            diverged=sum(trial.state == DIVERGED for trial in ended.values()),
            number=number,
            value=value,
            start_value=ended[0].value,
            parameters=best.parameters,
            method_options=best.method_options,
            recipe=best.recipe,
            wall_seconds=math.fsum(trial.wall_seconds for trial in ended.values()),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def settle(self) -> Tuning:
        """Write the best of the trials to ``best.json``, if it does not stand there, and return it.

        Raises:
            ValueError: Trials are missing, or all diverged.
            RunFileError: A file is damaged.
        """
        best, known = self.best(), read_tuning(self.folder.parent)
        if known is not None and replace(known, finished=best.finished) == best:
            return known
        write_json(self.folder / BEST, {"schema": SCHEMA, **asdict(best)})
        return best

    def clear(self) -> None:
        """Remove the study and its trials.

        ``study.json`` goes last: without it, what is left would pass for runs of the comparison.
        """
        (self.folder / BEST).unlink(missing_ok=True)
        for place in sorted(self.folder.glob("trial-*/")):
            shutil.rmtree(place)
        (self.folder / STUDY).unlink(missing_ok=True)


def study_request(
    identity: Mapping[str, Any], sampler: str, parameters: Sequence[Parameter]
) -> dict[str, Any]:
    """Return what ``study.json`` says of a search by validation Delta-m.

    Args:
        identity: What :func:`ntkmtl.bench.training.identity.run_identity` says of its trials.
        sampler: How settings are drawn.
        parameters: What is searched.
    """
    kept = (
        *("schema", "problem", "problem_class", "problem_options"),
        *("method", "method_options", "seed", "recipe"),
    )
    return {
        **{key: identity[key] for key in kept},
        "sampler": sampler,
        "objective": {
            "metric": "delta_m",
            "against": SINGLE_TASK,
            "split": "val",
            "direction": "minimize",
        },
        "parameters": [asdict(parameter) for parameter in parameters],
    }


def read_study(folder: Path) -> dict[str, Any]:
    """Return the content of ``study.json``.

    Raises:
        RunFileError: It cannot be read, or has another schema.
    """
    found = read_json(folder / STUDY)
    require_schema(folder / STUDY, found)
    return found


def read_tuning(method: Path) -> Tuning | None:
    """Return what the tuning of a method found, None if there is none that is complete.

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


def _read_trial(path: Path) -> Trial:
    found = read_json(path)
    require_schema(path, found)
    trial = convert(path, found, Trial)
    state = trial.state
    if state not in (COMPLETE, DIVERGED):
        raise RunFileError(path, f"key 'state' must be {COMPLETE} or {DIVERGED}, found {state!r}")
    if (trial.value is None) != (state == DIVERGED):
        raise RunFileError(
            path, f"key 'value' must be a number if complete, else null, found {trial.value}"
        )
    if path.parent.name != f"trial-{trial.number:04d}":
        raise RunFileError(path, f"is of trial {trial.number}, which its folder is not named after")
    return trial


def weight_parameters(
    tasks: Sequence[str], low: float = 0.1, high: float = 10.0
) -> tuple[Parameter, ...]:
    """Return one weight per task as parameters, equal weights to begin with.

    Example:
        >>> [p.name for p in weight_parameters(["mu", "alpha"])]
        ['weights.mu', 'weights.alpha']
    """
    return tuple(Parameter(f"weights.{task}", low, high, start=1.0) for task in tasks)
