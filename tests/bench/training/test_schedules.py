from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from toy_problem import Toy

from ntkmtl.bench.problems.base import MultiTaskModel, Recipe, Split
from ntkmtl.bench.training import RunInterrupted, train

PLATEAU = dataclasses.replace(
    Toy.recipe,
    epochs=8,
    schedule="plateau",
    plateau_factor=0.5,
    plateau_patience=1,
    min_learning_rate=0.004,
)


class Scripted(Toy):
    """A problem whose metrics on the validation split are written down beforehand."""

    reference = (1.0, 2.0, 4.0)
    # Delta-m of the rows: 100, 50, 60, 55, 55, 40, 45, 50 percent, as corr is better when higher.
    wanted: ClassVar[list[float]] = [1.0, 0.5, 0.6, 0.55, 0.55, 0.4, 0.45, 0.5]

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: tuple[str, ...] | None = None
    ) -> Tensor:
        if split == "test":
            return torch.ones(3 if tasks is None else 1, dtype=torch.float64)
        worse = self.wanted[self.calls]
        self.calls += 1
        if tasks is not None:
            return torch.tensor([worse], dtype=torch.float64)
        return torch.tensor([1 + worse, 2 * (1 + worse), 4 * (1 - worse)], dtype=torch.float64)


def rates(problem: Toy, out: Path, recipe: Recipe, task: str | None = None) -> list[float]:
    method = "ls" if task is None else "stl"
    run = train(problem, method, 0, out, recipe=recipe, single_task=task, threads=1)
    return [epoch.learning_rate for epoch in run.history]


@pytest.mark.parametrize("task", [None, "a"])
def test_plateau_follows_delta_m_or_the_metric(tmp_path: Path, task: str | None) -> None:
    # Best after the second epoch; the third and fourth are worse, which is more than one epoch of
    # patience: halved from the fifth on. The sixth is best again, seventh and eighth are worse.
    found = rates(Scripted(), tmp_path, PLATEAU, task)
    assert found == pytest.approx([0.02] * 4 + [0.01] * 4, rel=1e-12)


def test_plateau_takes_a_metric_that_is_better_when_higher_the_other_way(tmp_path: Path) -> None:
    # corr of task c falls from epoch 1 to 2, so the best is epoch 1 and never again.
    found = rates(Scripted(), tmp_path, PLATEAU, "c")
    assert found == pytest.approx([0.02] * 3 + [0.01] * 2 + [0.005] * 2 + [0.004], rel=1e-12)


@pytest.mark.parametrize("task", [None, "a", "c"])
def test_plateau_notices_a_standstill_below_zero(tmp_path: Path, task: str | None) -> None:
    class Still(Scripted):
        # Delta-m and the metric of task a; the metric of task c is negated, and below zero then.
        wanted: ClassVar[list[float]] = [0.5 if task == "c" else -0.5] * 8

    # More than one epoch of patience after the first: halved from the fourth on.
    found = rates(Still(), tmp_path, PLATEAU, task)
    assert found == pytest.approx([0.02] * 3 + [0.01] * 2 + [0.005] * 2 + [0.004], rel=1e-12)


def test_plateau_counts_a_rise_of_a_negative_value_as_none(tmp_path: Path) -> None:
    class Worse(Scripted):
        wanted: ClassVar[list[float]] = [-0.5 + 1e-6 * i for i in range(8)]

    found = rates(Worse(), tmp_path, PLATEAU)
    assert found == pytest.approx([0.02] * 3 + [0.01] * 2 + [0.005] * 2 + [0.004], rel=1e-12)


def test_constant_stays(tmp_path: Path) -> None:
    recipe = dataclasses.replace(Toy.recipe, schedule="constant")
    assert rates(Toy(), tmp_path, recipe) == [0.02] * 4


def test_plateau_resumes_where_it_was(tmp_path: Path) -> None:
    whole = rates(Scripted(), tmp_path / "whole", PLATEAU)
    problem, steps = Scripted(), 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 21  # in the fourth epoch, with one bad epoch counted

    with pytest.raises(RunInterrupted):
        train(problem, "ls", 0, tmp_path / "cut", recipe=PLATEAU, threads=1, should_stop=stop)
    assert rates(problem, tmp_path / "cut", PLATEAU) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "schedule must be one of one-cycle, constant, plateau"),
        ({"schedule": "plateau"}, r"needs toy\.reference, one number for each of its 3 metrics"),
        ({"schedule": "plateau", "plateau_factor": 1.0}, r"plateau_factor must be in \(0, 1\)"),
        ({"schedule": "plateau", "plateau_patience": -1}, "plateau_patience must not be negative"),
        ({"schedule": "plateau", "min_learning_rate": -1.0}, "min_learning_rate must not be"),
    ],
)
def test_wrong_schedules_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    recipe = dataclasses.replace(Toy.recipe, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        train(Toy(), "ls", 0, tmp_path / "run", recipe=recipe)
    assert not (tmp_path / "run").exists()
