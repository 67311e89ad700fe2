"""The results of a study: one JSON file for each problem and method, no networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ntkmtl.bench.runs import (
    SCHEMA,
    SINGLE_TASK,
    Finite,
    RunFileError,
    RunMetric,
    canonical_json,
    convert,
    differences,
    folder_name,
    read_json,
    require_schema,
)
from ntkmtl.bench.search.records import Value
from ntkmtl.files import write_json

__all__ = [
    "FinalRun",
    "MethodResult",
    "Setting",
    "TriedSettings",
    "finished",
    "read_result",
    "read_results",
    "result_path",
]


class TriedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One trial.

    Attributes:
        parameters: The values tried, by name.
        value: Delta-m in percent on the validation split; None if it diverged. Of a single-task
            network, of its one task.
        val: One number per metric on the validation split, none if it diverged.
        seconds: Time taken.
        task: The task of a single-task network, else empty.
    """

    parameters: dict[str, Value]
    value: Finite | None
    val: list[Finite]
    seconds: Finite
    task: str = ""


class FinalRun(msgspec.Struct, frozen=True, kw_only=True):
    """One final run.

    Attributes:
        seed: Its seed.
        test: One number per metric on the test split; none if it diverged.
        train_seconds: Time in training steps.
        steps: Number of steps.
        error: Why it diverged, else empty.
        cpu_share: Part of ``train_seconds`` for which the main thread had a processor core; None if
            it was not measured.
    """

    seed: int
    test: list[Finite]
    train_seconds: Finite
    steps: int
    error: str = ""
    cpu_share: Finite | None = None

    @property
    def step_seconds(self) -> float | None:
        """Time of a step, without waiting for a core that other processes had."""
        share = 1.0 if self.cpu_share is None else self.cpu_share
        return share * self.train_seconds / self.steps if self.steps else None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Final runs with one setting.

    Attributes:
        method_options: Options of the method.
        recipe: Changes of the recipe; of single-task networks, learning rates by task.
        runs: The runs, in the order of their seeds.
    """

    method_options: dict[str, Any]
    recipe: dict[str, Any]
    runs: list[FinalRun]


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a study found of one method on one problem.

    Attributes:
        request: What was asked for: problem, options, budget, seeds.
        metrics: What is measured.
        trials: The trials, in their order; none for a method that is not tuned.
        published: Runs with the settings of the paper and the recipe's learning rate. None for
            single-task networks.
        tuned: Runs with the best settings found, None for a method that is not tuned.
        hardware: What it was trained on.
        versions: Of Python, torch and others.
    """

    request: dict[str, Any]
    metrics: list[RunMetric]
    trials: list[TriedSettings]
    published: Setting | None
    tuned: Setting | None
    hardware: dict[str, Any]
    versions: dict[str, str]

    @property
    def problem(self) -> str:
        """Name of the problem in the study."""
        return str(self.request["problem"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.request["method"])

    def write(self, out: Path) -> None:
        """Write it in one piece."""
        content = msgspec.to_builtins(self)
        write_json(result_path(out, self.problem, self.method), {"schema": SCHEMA, **content})


def result_path(out: Path, problem: str, method: str) -> Path:
    """Return the path of the result of a method on a problem."""
    return out / "results" / problem / f"{folder_name(method)}.json"


def read_result(path: Path) -> MethodResult:
    """Read one result.

    Raises:
        RunFileError: It cannot be read, has another schema, or lacks a key.
    """
    found = read_json(path)
    require_schema(path, found)
    return convert(path, found, MethodResult)


def finished(out: Path, request: dict[str, Any]) -> bool:
    """Return whether there is a result of what is asked for.

    Raises:
        RunFileError: There is one of something else, or it is damaged.
    """
    path = result_path(out, request["problem"], request["method"])
    if not path.exists():
        return False
    found = read_result(path).request
    if canonical_json(found) != canonical_json(request):
        what = "; ".join(differences(found, request))
        raise RunFileError(path, f"is of another study: {what}. Give another --out, or remove it")
    return True


def read_results(out: Path) -> list[MethodResult]:
    """Read all results of a study, single-task networks first.

    Raises:
        FileNotFoundError: There are none.
        RunFileError: One is damaged.
    """
    paths = sorted((out / "results").glob("*/*.json"))
    if not paths:
        raise FileNotFoundError(f"{out} holds no result of a study; start one: ntkmtl study FILE")
    found = [read_result(path) for path in paths]
    return sorted(found, key=lambda result: result.method != SINGLE_TASK)
