"""The study of one method: Optuna's storage of its trials, and what to try next.

Optuna chooses, but for fixed weights with measured gradients: drawn at random, a handful of trials
says nothing about k weights. Two facts help: good weights are often between equal ones and those
that bring all gradients to one length, and what is left to find is local.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ntkmtl.bench.runs import BEST, STUDY, TRIAL, RunFileError, differences
from ntkmtl.bench.search.records import (
    RATE,
    WIDE,
    Parameter,
    Trial,
    Tuning,
    Value,
    exported,
    read_study,
    read_tuning,
)
from ntkmtl.errors import imports_for
from ntkmtl.files import require_regular, write_json

__all__ = [
    "JOURNAL",
    "POWERS",
    "OptunaStudy",
    "WeightSearch",
    "optuna_module",
    "power_weights",
    "rounded",
]

JOURNAL = "optuna.log"
"""Optuna's storage of a study: the record of its trials."""

_RANDOM_TRIALS = 5
"""Trials before TPE chooses; all but the first of them are drawn at random."""

SAMPLER = "measured kernels, then one weight at a time"
"""How weights are chosen, as tables say it."""

POWERS = (0.0, 0.5, 1.0)
"""Powers of the first trials: equal weights, half-way, gradients of one length."""


def optuna_module() -> Any:
    """Import Optuna."""
    with imports_for("tuning"):
        import optuna
    # Lines for each trial would cross the progress bars.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def rounded(value: Value) -> Value:
    """Return a number with four digits, and a word as it is.

    Example:
        >>> rounded(0.123456), rounded("plain")
        (0.1235, 'plain')
    """
    return value if isinstance(value, str) else float(f"{value:.4g}")


class OptunaStudy:
    """The search for the settings of one method.

    A trial enters the storage when it has ended, in one step, so that a process that is killed
    leaves whole trials only. What a trial tries is a function of the seed and of the trials before
    it: a search that was stopped or killed ends as one that never was.

    Args:
        folder: Its folder.
        asked: Content of ``study.json``: what is searched, and how.
        parameters: What is searched.

    Attributes:
        trials: The trials that have ended, in their order.
    """

    def __init__(
        self, folder: Path, asked: Mapping[str, Any], parameters: tuple[Parameter, ...]
    ) -> None:
        self.folder = folder
        self.asked = asked
        self.parameters = parameters
        self.trials: list[Trial] = []
        self.storage: Any = None

    @property
    def method(self) -> str:
        """The method."""
        return str(self.asked["method"])

    @property
    def seed(self) -> int:
        """Seed of the search, and of every trial's run."""
        return int(self.asked["seed"])

    def place(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / f"trial-{number:04d}"

    def other(self) -> list[str]:
        """Return how a study that is in the folder differs from this one.

        Raises:
            RunFileError: Its ``study.json`` is damaged.
        """
        if not (self.folder / STUDY).exists():
            return []
        return differences(read_study(self.folder), self.asked)

    def known(self) -> int:
        """Return how many trials have ended, without changing anything."""
        return len(self._stored().trials) if (self.folder / JOURNAL).exists() else 0

    def begin(self) -> None:
        """Open the storage, and export what was not exported before a process was killed.

        Raises:
            RunFileError: The storage is damaged.
        """
        if not (self.folder / STUDY).exists():
            # Tables leave out folders with such a file.
            write_json(self.folder / STUDY, self.asked)
        self.storage = self._stored()
        self.trials = [
            Trial(parameters=dict(found.params), value=found.value, **found.user_attrs["trial"])
            for found in self.storage.trials
        ]
        for trial in self.trials:
            if not (self.place(trial.number) / TRIAL).exists():
                write_json(self.place(trial.number) / TRIAL, exported(trial))

    def _stored(self) -> Any:
        optuna = optuna_module()
        path = self.folder / JOURNAL
        # The folder of the comparison is locked: a process that was killed left this lock, which
        # Optuna would wait for.
        path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
        try:
            require_regular(path)
        except OSError as error:
            raise RunFileError(path, error.strerror or str(error)) from error
        try:
            backend = optuna.storages.journal.JournalFileBackend(str(path))
            return optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name=self.method,
                direction="minimize",
                load_if_exists=True,
            )
        # What Optuna raises depends on where the journal is damaged.
        except (ValueError, LookupError, TypeError, AssertionError, RecursionError) as error:
            raise RunFileError(
                path,
                f"is not an Optuna journal ({type(error).__name__}: {error}); remove it, and the "
                "same command reads the trials from their runs again",
            ) from error

    def ask(self, number: int) -> dict[str, Value]:
        """Return the values of a trial: where the search begins, or what Optuna chooses.

        Four digits are kept, so that values are easy to read and to type.

        Args:
            number: Number of the trial; all before it have ended.
        """
        if number == 0:
            return {p.name: p.start for p in self.parameters}
        # A sampler for each trial: what it draws does not depend on how often the search was
        # stopped before.
        digest = hashlib.sha256(f"{self.method} {self.seed} {number}".encode()).digest()
        optuna = optuna_module()
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "big"), n_startup_trials=_RANDOM_TRIALS
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        study.add_trials(self.storage.trials[:number])
        values = study.ask(self._distributions()).params
        return {p.name: rounded(values[p.name]) for p in self.parameters}

    def record(self, trial: Trial) -> None:
        """Put a trial that has ended into the storage, and export it as ``trial.json``."""
        optuna = optuna_module()
        states = optuna.trial.TrialState
        attributes = {k: v for k, v in vars(trial).items() if k not in ("parameters", "value")}
        self.storage.add_trial(
            optuna.trial.create_trial(
                state=states.FAIL if trial.value is None else states.COMPLETE,
                value=trial.value,
                params=dict(trial.parameters),
                distributions=self._distributions(),
                user_attrs={"trial": attributes},
            )
        )
        self.trials.append(trial)
        write_json(self.place(trial.number) / TRIAL, exported(trial))

    def _distributions(self) -> dict[str, Any]:
        kinds = optuna_module().distributions
        return {
            p.name: kinds.CategoricalDistribution(p.choices)
            if p.choices
            else kinds.FloatDistribution(p.low, p.high, log=p.log)
            for p in self.parameters
        }

    def finish(self) -> Tuning | None:
        """Return the best trial, among equals the first, and export it as ``best.json``.

        None if all trials diverged.

        Raises:
            RunFileError: The ``best.json`` that is there is damaged.
        """
        values = [(t.value, t.number) for t in self.trials if t.value is not None]
        if not values:
            return None
        value, number = min(values)
        best = self.trials[number]
        found = Tuning(
            sampler=str(self.asked["sampler"]),
            seed=self.seed,
            split=self.asked["objective"]["split"],
            epochs=self.asked["recipe"]["epochs"],
            trials=len(self.trials),
            diverged=len(self.trials) - len(values),
            number=number,
            value=value,
            start_value=self.trials[0].value,
            parameters=best.parameters,
            method_options=best.method_options,
            recipe=best.recipe,
            wall_seconds=math.fsum(trial.wall_seconds for trial in self.trials),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        known = read_tuning(self.folder.parent)
        if known is not None and replace(known, finished=found.finished) == found:
            return known
        write_json(self.folder / BEST, exported(found))
        return found

    def clear(self) -> None:
        """Remove the study and its trials.

        ``study.json`` goes last: without it, trials would be taken for runs of the comparison.
        """
        for name in (BEST, JOURNAL):
            (self.folder / name).unlink(missing_ok=True)
        for place in sorted(self.folder.glob("trial-*/")):
            shutil.rmtree(place)
        (self.folder / STUDY).unlink(missing_ok=True)


def power_weights(scales: Mapping[str, float], power: float) -> dict[str, float]:
    """Return weights scale ** -power, with mean 1.

    Args:
        scales: Length of each task's gradient.
        power: 0 for equal weights, 1 for gradients of one length.

    Example:
        >>> power_weights({"a": 1.0, "b": 3.0}, 1.0)
        {'a': 1.5, 'b': 0.5}
    """
    raw = {task: scale**-power for task, scale in scales.items()}
    mean = math.fsum(raw.values()) / len(raw)
    return {task: weight / mean for task, weight in raw.items()}


class WeightSearch(OptunaStudy):
    """The search for the weights of ``fixed``.

    The first trials have weights scale ** -p for p = 0, 0.5 and 1, at the learning rate that one
    begins with. Each trial after them changes one thing in the best trial so far: the learning
    rate, then the weight of one task after another, doubled and then halved; if doubling helped, it
    is doubled again instead. Each round over all of them takes the square root of the factor.

    Args:
        folder: Its folder.
        asked: Content of ``study.json``: what is searched, and how.
        parameters: The learning rate and one weight per task.
        scales: Length of each task's gradient.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        parameters: tuple[Parameter, ...],
        scales: Mapping[str, float],
    ) -> None:
        kept = {task: rounded(scale) for task, scale in scales.items()}
        super().__init__(folder, {**asked, "sampler": SAMPLER, "scales": kept}, parameters)
        self.scales = dict(scales)
        self._names = [p.name for p in parameters]

    def ask(self, number: int) -> dict[str, Value]:
        """Return the values of a trial; see :meth:`OptunaStudy.ask`."""
        if number < len(POWERS):
            weights = power_weights(self.scales, POWERS[number])
            found = {f"weights.{task}": weight for task, weight in weights.items()}
            return self._within({RATE: self._start_rate(), **found})
        done = [t for t in self.trials[:number] if t.value is not None]
        if not done:
            return self._within({**self.ask(0), RATE: self._start_rate() / 2**number})
        best = min(done, key=lambda t: (t.value, t.number))
        place, sign, factor = self._move(number - len(POWERS))
        if sign < 0 and best.number == number - 1:
            # The trial before increased it and is the best: increase it again instead.
            sign = 1
        name = self._names[place]
        return self._within({**best.parameters, name: float(best.parameters[name]) * factor**sign})

    def _start_rate(self) -> float:
        return float(self.parameters[0].start)

    def _move(self, number: int) -> tuple[int, int, float]:
        """Return which parameter a local trial changes, upwards (1) or downwards (-1), by what."""
        turn, back = divmod(number, 2)
        rounds, place = divmod(turn, len(self._names))
        return place, -1 if back else 1, 2.0 ** (0.5**rounds)

    def _within(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return weights with mean 1, all inside their ranges, in the order of the parameters."""
        weights = [float(values[name]) for name in self._names if name != RATE]
        mean = math.fsum(weights) / len(weights)
        limits = {p.name: (p.low, p.high) for p in self.parameters}
        found: dict[str, Value] = {}
        for name in self._names:
            low, high = limits[name] if name == RATE else (1 / WIDE, WIDE)
            value = float(values[name]) / (1.0 if name == RATE else mean)
            found[name] = rounded(min(max(value, low), high))
        return found
