"""The search for fixed weights by structure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ntkmtl.bench.problems.base import Recipe
from ntkmtl.bench.search import Trial, parameters_of
from ntkmtl.bench.search.study import WeightSearch, power_weights

TASKS = ("a", "b", "c")
SCALES = {"a": 1.0, "b": 100.0, "c": 10.0}
# What the trials below are scored by: log weights of 1.4, -2 and 0.6, a rate of 0.03.
WANTED = {"a": 4.0, "b": 0.14, "c": 1.8}


def search(folder: Path) -> WeightSearch:
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
    parameters = parameters_of("fixed", TASKS, recipe, wide=True)
    found = WeightSearch(folder, {"method": "fixed", "seed": 0}, parameters, SCALES)
    found.begin()
    return found


def score(values: dict[str, float]) -> float:
    weights = {task: values[f"weights.{task}"] for task in TASKS}
    mean = sum(WANTED.values()) / 3
    off = [math.log(weights[t] * mean / WANTED[t]) ** 2 for t in TASKS]
    return sum(off) + math.log(values["learning_rate"] / 0.03) ** 2


def run(study: WeightSearch, trials: int) -> list[float]:
    for number in range(len(study.trials), trials):
        values = study.ask(number)
        study.record(Trial(number, "complete", values, {}, score(values), 1.0, {}))
    return [trial.value for trial in study.trials]


def test_powers_come_first_at_the_recipe_s_rate(tmp_path: Path) -> None:
    study = search(tmp_path)
    run(study, 3)
    for trial, power in zip(study.trials, (0.0, 0.5, 1.0), strict=True):
        expected = power_weights(SCALES, power)
        assert trial.parameters["learning_rate"] == 0.01
        found = [trial.parameters[f"weights.{task}"] for task in TASKS]
        assert found == pytest.approx([expected[task] for task in TASKS], rel=1e-3)


def test_local_search_goes_downhill_and_keeps_the_mean(tmp_path: Path) -> None:
    study = search(tmp_path)
    values = run(study, 40)
    assert min(values) < 0.1 * min(values[:3])
    for trial in study.trials:
        weights = [trial.parameters[f"weights.{task}"] for task in TASKS]
        assert sum(weights) / 3 == pytest.approx(1, rel=1e-3)


def test_a_change_that_helped_is_made_again(tmp_path: Path) -> None:
    study = search(tmp_path)
    run(study, 5)
    start, once, twice = (study.trials[n].parameters["learning_rate"] for n in (0, 3, 4))
    # 0.02 is nearer to 0.03 than 0.01 is, so 0.04 is tried and not 0.005.
    assert (start, once, twice) == (0.01, 0.02, 0.04)


def test_it_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run(search(tmp_path / "a"), 12)
    run(search(tmp_path / "b"), 5)
    assert run(search(tmp_path / "b"), 12) == whole


def test_diverged_trials_lower_the_rate(tmp_path: Path) -> None:
    study = search(tmp_path)
    for number in range(3):
        study.record(Trial(number, "diverged", study.ask(number), {}, None, 1.0, {}, "nan"))
    assert study.ask(3)["learning_rate"] == pytest.approx(0.01 / 8, rel=1e-3)
