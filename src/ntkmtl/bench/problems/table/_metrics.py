"""What predictions of a table are judged by, and what simple models reach."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Metric, Split
from ntkmtl.bench.problems.table._data import PreparedTable
from ntkmtl.bench.problems.table._fitted import FittedTarget
from ntkmtl.errors import imports_for


def macro_f1(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Return the mean F1 score of the classes that occur in the labels or the predictions.

    Args:
        predicted: Class numbers, int64 of shape (b,).
        truth: The same for the labels.
        classes: Number of classes.

    Example:
        >>> import torch
        >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
        0.6666666666666666
    """
    both = torch.bincount(truth[predicted == truth], minlength=classes).double()
    total = torch.bincount(truth, minlength=classes) + torch.bincount(predicted, minlength=classes)
    occurs = total > 0
    return float((2 * both[occurs] / total[occurs].double()).mean())


def rmse(predicted: Tensor, truth: Tensor, target: FittedTarget) -> float:
    """Return the root mean squared error in the target's unit.

    Args:
        predicted: Standardized predictions, shape (b,).
        truth: Labels in the target's unit, float64 of shape (b,).
        target: The target.
    """
    error = predicted.double() - target.scaled(truth)
    return float(error.square().mean().sqrt() * target.scale)


def score(predicted: Tensor, truth: Tensor, target: FittedTarget) -> float:
    """Return a target's metric over the rows that have a label.

    Args:
        predicted: Standardized predictions, or class numbers, shape (b,).
        truth: Labels in the target's unit, or class numbers, shape (b,).
        target: The target.
    """
    known = target.known(truth)
    predicted, truth = predicted[known], truth[known]
    if target.classes:
        return macro_f1(predicted, truth, target.size)
    return rmse(predicted, truth, target)


def metric_of(target: FittedTarget) -> Metric:
    """Return the metric of a target; its label tells where a class has no test row."""
    if not target.classes:
        return Metric(target.name, target.name, unit=target.unit, label=f"{target.name} RMSE")
    label = f"{target.name} F1"
    if target.judged < target.size:
        label += f" ({target.judged} of {target.size} classes)"
    return Metric(target.name, target.name, higher_is_better=True, label=label)


# ------------------------------------------------------------------------------------------------
# Simple models to compare with

REFERENCES = {
    "mean": "the mean of the training rows, or their most frequent class",
    "ridge": "ridge regression or classification of each target, its penalty chosen by "
    "cross-validation over training rows (scikit-learn's RidgeCV, RidgeClassifierCV)",
    "forest": "a random forest of 200 trees for each target (scikit-learn)",
}
"""What each reference is."""

PENALTIES = 10.0 ** np.arange(-3, 5, 0.5)


def references(data: PreparedTable, split: Split = "test") -> dict[str, Tensor]:
    """Return the metrics of simple models by name, on the inputs that the networks get.

    Returns:
        For each of :data:`REFERENCES` float64 of shape (number of targets,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with imports_for("the rows of ridge and forest"):
        from sklearn import ensemble, linear_model

    def ridge(classes: bool) -> Any:
        if classes:
            return linear_model.RidgeClassifierCV(PENALTIES)
        return linear_model.RidgeCV(PENALTIES)

    def forest(classes: bool) -> Any:
        kind = ensemble.RandomForestClassifier if classes else ensemble.RandomForestRegressor
        return kind(
            n_estimators=200, min_samples_leaf=1 if classes else 2, random_state=0, n_jobs=1
        )

    return {
        "mean": trivial(data, split),
        "ridge": _judged(data, split, ridge),
        "forest": _judged(data, split, forest),
    }


def trivial(data: PreparedTable, split: Split) -> Tensor:
    """Return the metrics of the mean over training rows, or of their most frequent class."""
    values = []
    for place, target in enumerate(data.fitted.targets):
        truth = data.truth[split][place]
        if target.classes:
            training = data.truth["train"][place]
            said = torch.bincount(training[training >= 0]).argmax().expand_as(truth)
        else:
            said = torch.zeros_like(truth)
        values.append(score(said, truth, target))
    return torch.tensor(values, dtype=torch.float64)


def _judged(data: PreparedTable, split: Split, make: Callable[[bool], Any]) -> Tensor:
    values = []
    for place, target in enumerate(data.fitted.targets):
        predicted = _predicted(data, split, place, target, make(bool(target.classes)))
        values.append(score(predicted, data.truth[split][place], target))
    return torch.tensor(values, dtype=torch.float64)


def _predicted(
    data: PreparedTable, split: Split, place: int, target: FittedTarget, model: Any
) -> Tensor:
    labels = data.splits["train"].labels[place].numpy()
    known = target.known(labels)
    with warnings.catch_warnings():
        # Inputs that are sums of others, as the levels of a category are, are no concern of users.
        warnings.simplefilter("ignore")
        model.fit(data.splits["train"].inputs.numpy()[known].astype(np.float64), labels[known])
    said = model.predict(data.splits[split].inputs.numpy().astype(np.float64))
    return torch.from_numpy(np.asarray(said))
