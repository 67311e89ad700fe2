"""Schedules of the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

import torch

from ntkmtl.bench.problems.base import Schedule
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.runs import RunMetric

__all__ = ["LearningRate", "check_schedule", "learning_rate_factor"]

WARM_UP = 0.1
"""Share of the steps over which the learning rate of ``one-cycle`` rises."""


def learning_rate_factor(step: int, total: int) -> float:
    """Return the learning rate of a step of ``one-cycle`` relative to its peak.

    A straight rise over the first tenth of the steps, then half a cosine down to almost 0.

    Args:
        step: Number of the step, from 0.
        total: Number of steps of the whole run.

    Example:
        >>> [round(learning_rate_factor(s, 20), 3) for s in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 0.993, 0.459, 0.007]
    """
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / (total + 1 - rise)))


def check_schedule(problem: Problem, recipe: Recipe) -> None:
    """Check the schedule of a recipe.

    Raises:
        ValueError: The schedule is unknown, its settings make no sense, or a plateau is asked for
            and the problem has nothing to measure Delta-m against.
    """
    known = get_args(Schedule)
    if recipe.schedule not in known:
        raise ValueError(f"schedule must be one of {', '.join(known)}. Found {recipe.schedule!r}.")
    if recipe.tested_epochs < 1:
        raise ValueError(f"tested_epochs must be at least 1. Found {recipe.tested_epochs}.")
    if recipe.schedule != "plateau":
        return
    if not 0 < recipe.plateau_factor < 1:
        raise ValueError(f"plateau_factor must be in (0, 1). Found {recipe.plateau_factor}.")
    if recipe.plateau_patience < 0:
        raise ValueError(f"plateau_patience must not be negative. Found {recipe.plateau_patience}.")
    if not (math.isfinite(recipe.min_learning_rate) and recipe.min_learning_rate >= 0):
        raise ValueError(
            f"min_learning_rate must not be negative. Found {recipe.min_learning_rate}."
        )
    if problem.reference is None or len(problem.reference) != len(problem.metrics):
        found = "none" if problem.reference is None else f"{len(problem.reference)}"
        raise ValueError(
            f"the schedule 'plateau' needs {problem.name}.reference, one number for each of its "
            f"{len(problem.metrics)} metrics. Found {found}."
        )


class LearningRate:
    """Sets the learning rate of an optimizer as a recipe says.

    Args:
        recipe: The recipe; its schedule has been checked.
        optimizer: All its parameter groups get the same learning rate.
        total_steps: Number of steps of the whole run.
        metrics: What the validation split is judged by.
        reference: One number per metric, for ``"plateau"``; None for a single-task run, which
            is judged by its own metric.
    """

    def __init__(
        self,
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        metrics: Sequence[RunMetric],
        reference: Sequence[float] | None,
    ) -> None:
        self.recipe = recipe
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.higher_is_better = [metric.higher_is_better for metric in metrics]
        self.reference = reference
        self.plateau = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer,
                mode="min",
                factor=recipe.plateau_factor,
                patience=recipe.plateau_patience,
                # Any decrease counts. Torch's default threshold is relative to the best value so
                # far: once that is negative, as Delta-m may be, small increases would count too.
                threshold=0.0,
                min_lr=recipe.min_learning_rate,
            )
            if recipe.schedule == "plateau"
            else None
        )

    def before_step(self, step: int) -> None:
        """Set the learning rate of a step, counted from 0."""
        if self.recipe.schedule == "one-cycle":
            factor = learning_rate_factor(step, self.total_steps)
        elif self.recipe.schedule == "halved":
            steps_per_epoch = self.total_steps // self.recipe.epochs
            # Where the epochs are odd in number the first half is the shorter one.
            factor = 1.0 if step // steps_per_epoch < self.recipe.epochs // 2 else 0.5
        else:
            return
        rate = self.recipe.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def end_epoch(self, validation: Sequence[float]) -> None:
        """Adapt to an epoch's metrics on the validation split."""
        if self.plateau is not None:
            self.plateau.step(self._judged(validation))

    def _judged(self, validation: Sequence[float]) -> float:
        if self.reference is not None:
            return float(delta_m(validation, self.reference, self.higher_is_better))
        signed = [
            -value if higher else value
            for value, higher in zip(validation, self.higher_is_better, strict=True)
        ]
        return sum(signed) / len(signed)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep; the optimizer keeps the learning rate itself."""
        return {} if self.plateau is None else dict(self.plateau.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        if self.plateau is not None:
            self.plateau.load_state_dict(dict(state))
