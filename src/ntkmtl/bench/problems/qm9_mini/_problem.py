"""The problem ``qm9-mini``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._custom_split import custom_split
from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems._supervised import LEAST, fitted, positions, refuse_unfit
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import MultiTaskModel, Recipe, Sample, Split
from ntkmtl.bench.problems.qm9_mini._data import SPLITS, read
from ntkmtl.bench.problems.qm9_mini._features import Invariants, Scaling, invariants
from ntkmtl.bench.problems.qm9_mini._model import FeatureBatch, MoleculeNet, backbone
from ntkmtl.bench.problems.qm9_mini._properties import PropertiesProblem, Targets

__all__ = ["QM9Mini", "Targets"]

MODEL_VERSION = "molecule-net 1"
"""Changes with everything in features, network and losses that changes a trained network."""


class _Prepared(NamedTuple):
    indices: list[int]
    features: Invariants
    properties: Tensor
    sha256: str


_read = lru_cache(maxsize=1)(read)


@lru_cache(maxsize=1)
def _prepare() -> _Prepared:
    molecules, sha256 = _read()
    properties = torch.from_numpy(molecules.properties())
    return _Prepared(molecules.index.tolist(), invariants(molecules), properties, sha256)


@lru_cache(maxsize=1)
def _inputs(training: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the network's inputs of all molecules, scaled as these rows of them ask."""
    features = _prepare().features
    scaled = Scaling.fit(features.rows(training)).apply(features)
    atoms, mask, places, shells, whole = map(torch.from_numpy, scaled)
    return atoms, mask, places, shells, whole


class QM9Mini(PropertiesProblem):
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
        split: A JSON or CSV file with the GDB indices of the three splits, instead of those above;
            see :func:`~ntkmtl.bench.problems._custom_split.custom_split`.

    Raises:
        ValueError: ``targets`` is neither, the split cannot be used, the data file is damaged, or
            the architecture or one of its settings is unknown, out of range or, as ``ple``, in need
            of several stages.
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
        split: str | None = None,
    ) -> None:
        self._architecture = choose(architecture, architecture_options)
        self._choose(targets)
        prepared = _prepare()
        self._sha256 = prepared.sha256
        self._rows = {name: torch.arange(*SPLITS[name]) for name in get_args(Split)}
        self._split_said: object = {name: list(rows) for name, rows in SPLITS.items()}
        if split is not None:
            named = {str(index): row for row, index in enumerate(prepared.indices)}
            custom = custom_split(split, named, "molecules", "they are called by their GDB index")
            self._rows, self._split_said = custom.rows, custom.said
            self._sizes_said = custom.sizes("molecules")
            if self.size("train") < LEAST:
                raise ValueError(
                    f"split={split}: train must name at least {LEAST} molecules, whose features "
                    f"scale those of all, found {self.size('train')}"
                )
            self.recipe = fitted(self.recipe, self.size("train"), self._sizes_said)
        labels = self._scaled(prepared.properties)
        self._all = FeatureBatch(*_inputs(tuple(self._rows["train"].tolist())), labels)
        refuse_unfit(self)

    @property
    def options(self) -> dict[str, Any]:
        """Targets, data file, split, network and loss."""
        return {
            "targets": self._targets,
            "data_sha256": self._sha256,
            "split": self._split_said,
            "model": MODEL_VERSION,
            "loss": "mse",
            **self._architecture.options,
        }

    def _take(self, rows: Tensor) -> FeatureBatch:
        return FeatureBatch(*(part.index_select(0, rows) for part in self._all))

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a new :class:`MoleculeNet`, or another architecture over its trunk."""
        columns = positions(self.tasks, tasks)
        sizes = self._all.atoms.shape[-1], self._all.whole.shape[-1]
        if self._architecture.name == "hard":
            return MoleculeNet(*sizes, heads=len(columns))
        trunk = backbone(*sizes)
        return self._architecture.build(
            trunk, [partial(nn.Linear, trunk.widths[-1], 1) for _ in columns]
        )

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the mean absolute errors in the units of :attr:`metrics`."""
        rows = self._rows[split]
        columns, (outputs,) = self._predicted(model, rows, len(rows), tasks)
        predicted = outputs[..., 0].double() * self._scale[columns] + self._center[columns]
        error = (predicted - self._properties[rows][:, columns]).abs().mean(0)
        return error * self._unit[columns]

    def sample(self, split: Split, index: int) -> Sample:
        """Return a molecule, called by its GDB index."""
        row = int(self._rows[split][index])
        molecules, _ = _read()
        inside = torch.from_numpy(molecules.molecule) == row
        numbers, places = map(torch.from_numpy, (molecules.numbers, molecules.positions))
        name = f"molecule {molecules.index[row]}"
        return Sample(name, atoms=(numbers[inside], places[inside]))

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        said = self._architecture.sentence
        sizes = [self.size(split) for split in ("train", "val", "test")]
        return (
            f"{sum(sizes):,} molecules drawn at random from QM9 ({sizes[0]:,} for training, "
            f"{sizes[1]:,} for validation, {sizes[2]:,} for testing) and the 11 properties of the "
            f"literature's benchmark, {self._targets} for training. "
            "The network sees each heavy atom's surroundings as "
            "invariant features, passes messages once between all heavy atoms, adds over atoms and "
            f"ends in one linear head per property: {parameters:,} parameters. {said}"
            "Errors are mean absolute errors on the test molecules."
        )
