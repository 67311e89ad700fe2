"""The problem ``qm9-mini``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Problem, Recipe, Split
from ntkmtl.bench.problems.qm9_mini._batch import Batch
from ntkmtl.bench.problems.qm9_mini._data import SPLITS, TARGETS, read
from ntkmtl.bench.problems.qm9_mini._features import Scaling, invariants
from ntkmtl.bench.problems.qm9_mini._model import MoleculeNet, backbone

__all__ = ["QM9Mini", "Targets"]

Targets = Literal["standardised", "raw"]

MODEL_VERSION = "molecule-net 1"
"""Changes with everything in features, network and losses that changes a trained network."""


class _Prepared(NamedTuple):
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    properties: Tensor
    sha256: str


@lru_cache(maxsize=1)
def _prepare() -> _Prepared:
    molecules, sha256 = read()
    features = invariants(molecules)
    first, last = SPLITS["train"]
    scaling = Scaling.fit(features.rows(first, last))
    atoms, mask, places, shells, whole = map(torch.from_numpy, scaling.apply(features))
    properties = torch.from_numpy(molecules.properties())
    return _Prepared((atoms, mask, places, shells, whole), properties, sha256)


class QM9Mini(Problem):
    """11 properties of 4,000 molecules drawn at random from QM9.

    3,000 molecules are for training, 500 for validation, 500 for testing, by their order in the
    data file, which is random and fixed. Losses are mean squared errors; metrics are mean absolute
    errors in the units of the paper.

    Args:
        targets: ``"standardised"`` trains on targets of mean 0 and standard deviation 1 over the
            training molecules; ``"raw"`` on debye, a0^3, eV, a0^2 and cal/(mol K) as they are:
            losses then differ by a factor of a million and more.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc`` or
            ``dselect-k``, over the whole trunk. See :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.

    Raises:
        ValueError: ``targets`` is neither, the data file is damaged, or the architecture or one of
            its settings is unknown, out of range or, as ``ple``, in need of several stages.
        FileNotFoundError: The data file is missing.

    Example:
        >>> import torch
        >>> problem = QM9Mini()
        >>> batch = problem.batch("train", torch.arange(60))
        >>> model = problem.model()
        >>> z = model.represent(batch)
        >>> z.shape
        torch.Size([60, 96])
        >>> sorted(problem.losses(model.predict(z), batch))[:3]
        ['alpha', 'cv', 'g']
    """

    name: ClassVar[str] = "qm9-mini"
    summary: ClassVar[str] = PROBLEMS["qm9-mini"].summary
    tasks: tuple[str, ...] = tuple(target.task for target in TARGETS)
    metrics: tuple[Metric, ...] = tuple(
        Metric(target.task, task=target.task, unit=target.unit, label=target.label)
        for target in TARGETS
    )
    recipe: Recipe = Recipe(
        epochs=25,
        batch_size=60,
        learning_rate=5e-3,
        minibatches=4,
        reduced=True,
        description=(
            "3,000 of QM9's 130,831 molecules and 25 epochs, where the literature trains on some "
            "110,000 molecules for 300 epochs"
        ),
    )

    def __init__(
        self,
        targets: Targets = "standardised",
        architecture: str = "hard",
        architecture_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._architecture = choose(architecture, architecture_options)
        if targets not in get_args(Targets):
            known = " or ".join(map(repr, get_args(Targets)))
            raise ValueError(f"targets must be {known}. Found targets={targets!r}.")
        self._targets = targets
        prepared = _prepare()
        self._sha256 = prepared.sha256
        self._properties = prepared.properties
        first, last = SPLITS["train"]
        training = self._properties[first:last]
        if targets == "standardised":
            self._center, self._scale = training.mean(0), training.std(0, correction=0)
        else:
            self._center, self._scale = torch.zeros_like(training[0]), torch.ones_like(training[0])
        self._unit = torch.tensor([target.to_unit for target in TARGETS], dtype=torch.float64)
        labels = ((self._properties - self._center) / self._scale).float()
        self._splits = {
            split: Batch(*(part[first:last] for part in (*prepared.inputs, labels)))
            for split, (first, last) in SPLITS.items()
        }
        # Settings that do not fit are refused now, at no cost.
        with torch.device("meta"):
            self.model()

    @property
    def options(self) -> dict[str, Any]:
        """Targets, data file, split, network and loss."""
        return {
            "targets": self._targets,
            "data_sha256": self._sha256,
            "split": {name: list(rows) for name, rows in SPLITS.items()},
            "model": MODEL_VERSION,
            "loss": "mse",
            **self._architecture.options,
        }

    def size(self, split: Split) -> int:
        """Return the number of molecules in a split."""
        first, last = SPLITS[split]
        return last - first

    def batch(self, split: Split, indices: Tensor) -> Batch:
        """Return the molecules of a split at ``indices``."""
        return Batch(*(part.index_select(0, indices) for part in self._splits[split]))

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized :class:`MoleculeNet`, or another architecture over its trunk.

        Raises:
            ValueError: A task is unknown or named twice.
        """
        whole = self._splits["train"]
        columns = self._columns(tasks)
        sizes = whole.atoms.shape[-1], whole.whole.shape[-1]
        if self._architecture.name == "hard":
            return MoleculeNet(*sizes, heads=len(columns))
        trunk = backbone(*sizes)
        return self._architecture.build(
            trunk, [partial(nn.Linear, trunk.widths[-1], 1) for _ in columns]
        )

    def losses(
        self, outputs: Sequence[Tensor], batch: Batch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return the mean squared error of each task.

        Raises:
            ValueError: There are not as many outputs as tasks, or a task is unknown.
        """
        columns = self._columns(tasks)
        if len(outputs) != len(columns):
            raise ValueError(f"{len(outputs)} outputs for {len(columns)} tasks")
        labels = torch.split(batch.targets, 1, dim=1)
        return {
            self.tasks[column]: functional.mse_loss(output, labels[column])
            for column, output in zip(columns, outputs, strict=True)
        }

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the mean absolute errors in the units of :attr:`metrics`.

        Raises:
            ValueError: The network has not as many heads as there are tasks.
        """
        columns = self._columns(tasks)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                batch = self.batch(split, torch.arange(self.size(split)))
                outputs = model.predict(model.represent(batch))
        finally:
            model.train(training)
        if len(outputs) != len(columns):
            raise ValueError(f"{len(outputs)} outputs for {len(columns)} tasks")
        # Metrics stand in the order of the problem's tasks, heads in that of `tasks`.
        order = sorted(range(len(columns)), key=columns.__getitem__)
        columns = [columns[position] for position in order]
        predicted = torch.cat([outputs[position] for position in order], dim=1).double()
        predicted = predicted * self._scale[columns] + self._center[columns]
        first, last = SPLITS[split]
        error = (predicted - self._properties[first:last, columns]).abs().mean(0)
        return error * self._unit[columns]

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        hard = self._architecture.name == "hard"
        said = "" if hard else f"Architecture {self._architecture.describe()}. "
        return (
            "4,000 molecules drawn at random from QM9 (3,000 for training, 500 for validation, 500 "
            "for testing) and the 11 properties of the literature's benchmark, "
            f"{self._targets} for training. The network sees each heavy atom's surroundings as "
            "invariant features, passes messages once between all heavy atoms, adds over atoms and "
            f"ends in one linear head per property: {parameters:,} parameters. {said}"
            "Errors are mean absolute errors on the test molecules."
        )

    def _columns(self, tasks: Sequence[str] | None) -> list[int]:
        if tasks is None:
            return list(range(len(self.tasks)))
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown:
            raise ValueError(
                f"no task is named {', '.join(map(repr, unknown))}. Known: {', '.join(self.tasks)}"
            )
        if len(set(tasks)) != len(tasks) or not tasks:
            raise ValueError(f"tasks must be named once each, at least one. Found {list(tasks)}.")
        return [self.tasks.index(task) for task in tasks]
