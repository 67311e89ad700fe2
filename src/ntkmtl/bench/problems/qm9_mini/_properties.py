"""What ``qm9`` and ``qm9-mini`` share: 11 properties of molecules, standardized or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems._supervised import ColumnsProblem, paired, positions
from ntkmtl.bench.problems.base import Metric, Prediction, Split

ELEMENTS = (1, 6, 7, 8, 9)
"""Atomic numbers of the elements in QM9: H, C, N, O, F."""

HARTREE = 27.211386246
"""One hartree in eV, the value that torch_geometric uses."""

# Energies of the free atoms H, C, N, O, F in hartree, from the file atomref.txt of QM9.
ATOM_ENERGIES = {
    "u0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u298": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h298": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g298": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}


class MoleculeTarget(NamedTuple):
    """One of the 11 properties.

    Attributes:
        task: Name of the task.
        column: Name of the column in the data file.
        label: Name as the paper prints it.
        unit: Unit that errors are shown in.
        to_unit: Factor from the unit of :meth:`MiniMolecules.properties` to ``unit``.
    """

    task: str
    column: str
    label: str
    unit: str
    to_unit: float


TARGETS = (
    MoleculeTarget("mu", "mu", "μ", "D", 1.0),
    MoleculeTarget("alpha", "alpha", "α", "a₀³", 1.0),
    MoleculeTarget("homo", "homo", "ε_HOMO", "meV", 1e3),
    MoleculeTarget("lumo", "lumo", "ε_LUMO", "meV", 1e3),
    MoleculeTarget("r2", "r2", "⟨R²⟩", "a₀²", 1.0),
    MoleculeTarget("zpve", "zpve", "ZPVE", "meV", 1e3),
    MoleculeTarget("u0", "u0", "U₀", "meV", 1e3),
    MoleculeTarget("u", "u298", "U", "meV", 1e3),
    MoleculeTarget("h", "h298", "H", "meV", 1e3),
    MoleculeTarget("g", "g298", "G", "meV", 1e3),
    MoleculeTarget("cv", "cv", "c_v", "cal/(mol K)", 1.0),
)

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

    def _use_indices(self, path: object, indices: Iterable[int]) -> None:
        """Take the splits from a file of the user, which names molecules by their GDB index."""
        known = {str(index): row for row, index in enumerate(indices)}
        self._use_lists(path, known, "molecules", "they are called by their GDB index")

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
