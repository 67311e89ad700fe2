"""What ``qm9`` and ``qm9-mini`` share: 11 properties of molecules, standardized or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems._supervised import ColumnsProblem, paired, positions
from ntkmtl.bench.problems.base import Metric, Prediction, Split
from ntkmtl.bench.problems.qm9_mini._data import TARGETS

Targets = Literal["standardised", "raw"]


class PropertiesProblem(ColumnsProblem):
    """Mean squared errors of properties, judged by mean absolute errors in the paper's units."""

    tasks: tuple[str, ...] = tuple(target.task for target in TARGETS)
    metrics: tuple[Metric, ...] = tuple(
        Metric(target.task, task=target.task, unit=target.unit, label=target.label)
        for target in TARGETS
    )
    _unit = torch.tensor([target.to_unit for target in TARGETS], dtype=torch.float64)
    _targets: Targets
    _properties: Tensor
    """As the data have them, float64 of shape (m, 11)."""

    def _choose(self, targets: Targets) -> None:
        """Note which targets are trained on; refuse unknown ones."""
        if targets not in get_args(Targets):
            known = " or ".join(map(repr, get_args(Targets)))
            raise ValueError(f"targets must be {known}. Found targets={targets!r}.")
        self._targets = targets

    def _scaled(self, properties: Tensor) -> Tensor:
        """Keep properties; return labels of shape (m, 11), scaled by the training rows if asked."""
        self._properties = properties
        training = properties[self._rows["train"]]
        if self._targets == "standardised":
            self._center, self._scale = training.mean(0), training.std(0, correction=0)
        else:
            self._center, self._scale = torch.zeros_like(training[0]), torch.ones_like(training[0])
        return ((properties - self._center) / self._scale).float()

    @staticmethod
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of a task; outputs are of shape (b,) or (b, 1)."""
        return functional.mse_loss(outputs, labels.view_as(outputs))

    @staticmethod
    def labels(batch: Any) -> Tensor:
        """Return the targets of a batch, shape (b, 11)."""
        targets: Tensor = batch.targets
        return targets

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return properties in the units of :attr:`metrics`."""
        return {
            self.tasks[column]: Prediction(
                (output.flatten().double() * self._scale[column] + self._center[column])
                * self._unit[column]
            )
            for column, output in paired(self.tasks, outputs, tasks)
        }

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return properties in the units of :attr:`metrics`."""
        rows = self._properties[self._rows[split][indices]] * self._unit
        return {self.tasks[column]: rows[:, column] for column in positions(self.tasks, tasks)}
