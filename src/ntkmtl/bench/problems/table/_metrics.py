"""What predictions of a table are judged by."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Metric
from ntkmtl.bench.problems.table._fitted import FittedTarget


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
    # Halves: the difference of two of the largest floats would be infinite.
    error = predicted.double() - (truth / 2 - target.center / 2) / target.scale * 2
    return float(error.square().mean().sqrt() * target.scale)


def score(predicted: Tensor, truth: Tensor, target: FittedTarget) -> float:
    """Return a target's metric over the rows that have a label.

    Args:
        predicted: Standardized predictions, or class numbers, shape (b,).
        truth: Labels in the target's unit, or class numbers, shape (b,).
        target: The target.
    """
    known = truth >= 0 if target.classes else ~truth.isnan()
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
