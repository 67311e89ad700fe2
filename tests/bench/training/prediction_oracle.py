"""Metrics worked out from predictions and true values by NumPy alone, for any problem's test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ntkmtl.bench.problems.base import Problem
from ntkmtl.bench.trained import TrainedModel

Array = Any


def f1(said: Array, true: Array) -> float:
    right = int((said & true).sum())
    return 2 * right / max(1, int(said.sum()) + int(true.sum()))


def macro_f1(said: Array, true: Array) -> float:
    """Return the mean F1 over classes that occur among labels or predictions."""
    known = true >= 0
    said, true = said[known], true[known]
    return float(np.mean([f1(said == c, true == c) for c in np.union1d(said, true)]))


def rmse(said: Array, true: Array) -> float:
    known = ~np.isnan(true)
    return float(np.sqrt(np.mean((said[known] - true[known]) ** 2)))


def mae(said: Array, true: Array) -> float:
    return float(np.mean(np.abs(said - true)))


def segmentation(said: Array, true: Array) -> list[float]:
    known = true >= 0
    said, true = said[known], true[known]
    shares = [
        ((said == c) & (true == c)).sum() / ((said == c) | (true == c)).sum()
        for c in np.union1d(said, true)
    ]
    return [100 * float(np.mean(shares)), 100 * float((said == true).mean())]


def depth(said: Array, true: Array) -> list[float]:
    known = ~np.isnan(true)
    error = np.abs(said[known].astype(np.float64) - true[known])
    return [float(error.mean()), float((error / true[known]).mean())]


def normals(said: Array, true: Array) -> list[float]:
    said, true = (np.moveaxis(a, 1, -1).astype(np.float64) for a in (said, true))
    known = ~np.isnan(true).any(-1)
    said, true = said[known], true[known]
    sine = np.linalg.norm(np.cross(said, true), axis=-1)
    angle = np.degrees(np.arctan2(sine, (said * true).sum(-1)))
    within = [100 * float((angle < limit).mean()) for limit in (11.25, 22.5, 30)]
    return [float(angle.mean()), float(np.median(angle)), *within]


BY_TASK = {"segmentation": segmentation, "depth": depth, "normals": normals}


def recomputed(problem: Problem, said: dict[str, Array], true: dict[str, Array]) -> list[float]:
    """Return the metrics of a problem of this package from predictions."""
    values: list[float] = []
    for task in problem.tasks:
        if task not in said:
            continue
        if problem.name in ("nyuv2", "cityscapes"):
            values += BY_TASK[task](said[task], true[task])
        elif problem.name == "celeba":
            values.append(f1(said[task] == 1, true[task] == 1))
        elif problem.name == "table":
            judge = rmse if true[task].dtype.kind == "f" else macro_f1
            values.append(judge(said[task], true[task]))
        else:
            values.append(mae(said[task], true[task]))
    return values


def check_predictions(problem: Problem, tasks: tuple[str, ...] | None = None) -> None:
    """Check that the metrics of a new network follow from what it predicts."""
    config = SimpleNamespace(
        tasks=tasks or problem.tasks,
        single_task=None if tasks is None else tasks[0],
        recipe={"batch_size": 7},
        metrics=[m for m in problem.metrics if tasks is None or m.task in tasks],
    )
    network = TrainedModel(SimpleNamespace(config=config), problem, problem.model(tasks))
    predictions, truth = network.predict("test"), network.truth("test")
    assert list(predictions) == list(truth) == list(tasks or problem.tasks)
    for task, prediction in predictions.items():
        assert len(prediction.values) == problem.size("test")
        if prediction.probabilities is not None:
            np.testing.assert_allclose(prediction.probabilities.sum(1), 1, rtol=1e-5)
            likeliest = prediction.probabilities.argmax(1)
            assert (likeliest == prediction.values).all(), task
        assert bool(prediction.classes) == (prediction.probabilities is not None) or (
            task == "segmentation"
        )
    found = recomputed(
        problem,
        {task: p.values.numpy() for task, p in predictions.items()},
        {task: values.numpy() for task, values in truth.items()},
    )
    # The median angle is read off bins of 0.01 degrees.
    loose = {"normal_median": 0.006}
    for metric, value, told in zip(
        config.metrics, found, network.metrics("test").values(), strict=True
    ):
        assert value == pytest.approx(told, rel=1e-6, abs=loose.get(metric.name, 1e-12))
