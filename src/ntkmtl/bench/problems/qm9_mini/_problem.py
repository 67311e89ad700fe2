"""The problem ``qm9-mini``, its network, and what it shares with ``qm9``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems._supervised import (
    LEAST,
    ColumnsProblem,
    fitted,
    paired,
    positions,
    refuse_unfit,
)
from ntkmtl.bench.problems.architectures import Backbone, Represent, choose
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Prediction, Recipe, Sample, Split
from ntkmtl.bench.problems.qm9_mini._data import (
    SHELLS,
    SPLITS,
    TARGETS,
    Invariants,
    Scaling,
    invariants,
    read,
)

REPRESENTATION = 96
"""Size d of the shared representation z."""


class FeatureBatch(NamedTuple):
    """b molecules as the network takes them, float32.

    Attributes:
        atoms: Scaled surroundings of the heavy atoms, (b, 9, F).
        mask: 1 where there is a heavy atom, (b, 9, 1).
        places: Their places from the center of nuclear charge in Angstrom, (b, 9, 3).
        shells: Weights of messages, (b, 9 * 6, 9).
        whole: Scaled features of the whole molecule, (b, 10).
        targets: Targets of the heads, (b, 11).
    """

    atoms: Tensor
    mask: Tensor
    places: Tensor
    shells: Tensor
    whole: Tensor
    targets: Tensor


class MoleculeNet(MultiTaskModel):
    """One round of message passing, a readout that adds over atoms, k linear heads.

    Each heavy atom is embedded from its surroundings and receives messages from every other heavy
    atom, by shells of distance. A molecule is then described by sums over its atoms: of the
    embeddings, of learned charges times squared distances from the center (for the extent of the
    electron cloud), and the lengths of dipoles of learned charges that add to zero (for the dipole
    moment).

    Args:
        features: Numbers that describe a heavy atom.
        whole: Numbers that describe a whole molecule.
        heads: Number of tasks k.
        width: Width of an atom's embedding.
        message: Numbers that an atom sends to each shell.
        charges: Sets of learned charges.
        representation: Size d of the shared representation z.
    """

    def __init__(
        self,
        features: int,
        whole: int,
        heads: int,
        width: int = 64,
        message: int = 8,
        charges: int = 8,
        representation: int = REPRESENTATION,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.send = nn.Linear(width, message)
        self.update = nn.Linear(width + SHELLS * message, width)
        self.charge = nn.Linear(width, 2 * charges)
        self.whole = nn.Linear(whole, representation)
        self.read = nn.Linear(width + 2 * charges, representation)
        self.refine = nn.Linear(representation, representation)
        self.heads = nn.ModuleList(nn.Linear(representation, 1) for _ in range(heads))

    def represent(self, batch: FeatureBatch) -> Tensor:
        """Return z of shape (b, d)."""
        mask, places = batch.mask, batch.places
        atoms = self.embed(batch.atoms)
        messages = torch.bmm(batch.shells, self.send(atoms)).view(*atoms.shape[:2], -1)
        atoms = atoms + functional.silu(self.update(torch.cat([atoms, messages], dim=-1)))
        atoms = atoms * mask
        dipole_charge, extent_charge = (self.charge(atoms) * mask).chunk(2, dim=-1)
        mean = dipole_charge.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        dipole = torch.bmm((dipole_charge - mean * mask).transpose(1, 2), places)
        # The constant keeps the square root's derivative finite where a dipole vanishes.
        length = (dipole.square().sum(-1) + 0.01).sqrt()
        extent = (extent_charge * places.square().sum(-1, keepdim=True)).sum(1)
        # Sums over atoms are brought to about unit size.
        readout = torch.cat([atoms.sum(1) / 3, length, extent / 100], dim=-1)
        z = self.read(readout) + self.whole(batch.whole)
        refined: Tensor = z + functional.silu(self.refine(z))
        return refined

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return k outputs of shape (b, 1)."""
        if isinstance(features, Tensor):
            return [head(features) for head in self.heads]
        if len(features) != len(self.heads):
            raise ValueError(f"{len(features)} views of z for {len(self.heads)} heads")
        return [head(view) for head, view in zip(self.heads, features, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the trunk: all but those of the heads."""
        for name, parameter in self.named_parameters():
            if not name.startswith("heads."):
                yield parameter


def _trunk(features: int, whole: int) -> list[nn.Module]:
    return [Represent(MoleculeNet(features, whole, heads=0))]


def _whole(batch: FeatureBatch) -> Tensor:
    return batch.whole


def backbone(features: int, whole: int) -> Backbone:
    """Return the trunk of :class:`MoleculeNet` for architectures, as one stage.

    Gates read the numbers that describe the whole molecule.
    """
    return Backbone(
        partial(_trunk, features, whole), widths=(REPRESENTATION,), gate=_whole, gate_width=whole
    )


Targets = Literal["standardized", "raw"]


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
        if self._targets == "standardized":
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
        targets: ``"standardized"`` trains on targets of mean 0 and standard deviation 1 over the
            training molecules; ``"raw"`` on debye, a0^3, eV, a0^2 and cal/(mol K) as they are:
            losses then differ by a factor of a million and more.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc`` or
            ``dselect-k``, over the whole trunk. See :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.
        split: A JSON or CSV file with the GDB indices of the three splits, instead of those above;
            see :func:`~ntkmtl.bench.problems._supervised.custom_split`.

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
        targets: Targets = "standardized",
        architecture: str = "hard",
        architecture_options: Mapping[str, Any] | None = None,
        split: str | None = None,
    ) -> None:
        self._architecture = choose(architecture, architecture_options)
        self._choose(targets)
        prepared = _prepare()
        self._sha256 = prepared.sha256
        self._rows = {name: torch.arange(*SPLITS[name]) for name in get_args(Split)}
        self._split_said = {name: list(rows) for name, rows in SPLITS.items()}
        if split is not None:
            self._use_indices(split, prepared.indices)
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
