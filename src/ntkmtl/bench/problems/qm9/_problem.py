"""The problem ``qm9``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems._arrays import data_folder, last_change
from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems._supervised import (
    LEAST,
    SPLITS,
    chosen_recipe,
    enough,
    fitted,
    positions,
    refuse_unfit,
    shuffled,
)
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import MultiTaskModel, Recipe, Sample, Split
from ntkmtl.bench.problems.qm9._molecules import COLUMNS, RANGES, Molecules
from ntkmtl.bench.problems.qm9._network import (
    Graphs,
    MoleculeBatch,
    MoleculeNetwork,
    backbone,
    head,
)
from ntkmtl.bench.problems.qm9._store import HOW, load
from ntkmtl.bench.problems.qm9_mini._data import TARGETS
from ntkmtl.bench.problems.qm9_mini._problem import PropertiesProblem, Targets

__all__ = ["PARTS", "QM9", "Graphs", "MoleculeBatch", "Targets", "graphs"]

MODEL_VERSION = "message-passing 1"
"""Changes with everything in features, network and losses that changes a trained network."""

EVALUATED = 128
"""Molecules in a batch of an evaluation."""


@dataclass(frozen=True)
class _MoleculePart:
    """The part of the data and the network that a recipe takes; all the rest is for training."""

    test: int
    val: int
    train: int | None
    width: int
    hidden: int


PARTS = {
    "paper": _MoleculePart(test=10_000, val=10_000, train=None, width=64, hidden=128),
    "small": _MoleculePart(test=1_000, val=500, train=3_000, width=32, hidden=32),
}
PAPER_TRAIN = 110_831


def graphs(molecules: Molecules, rows: Tensor) -> Graphs:
    """Return molecules as padded complete graphs.

    An atom is described by 11 numbers, those of ``torch_geometric.datasets.QM9``: one-hot element
    (H, C, N, O, F), atomic number, four zeros (aromatic, sp, sp2 and sp3, which that library leaves
    empty as it reads the molecules without sanitising them), number of hydrogen atoms bonded to it.
    A pair is described by 5: one-hot kind of bond (single, double, triple, aromatic; zeros where
    there is none) and distance in Angstrom.
    """
    picked = rows.numpy()
    sizes = molecules.atoms[picked].astype(np.int64)
    most = int(sizes.max())
    inside = np.arange(most) < sizes[:, None]
    atoms = np.where(inside, molecules.first_atoms[picked][:, None] + np.arange(most), 0)
    numbers = torch.from_numpy(np.where(inside, molecules.numbers[atoms], 0).astype(np.int64))
    places = torch.from_numpy(molecules.positions[atoms])

    counts = molecules.bond_counts[picked].astype(np.int64)
    molecule = np.repeat(np.arange(len(picked)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    bonds = molecules.bonds[np.repeat(molecules.first_bonds[picked], counts) + within].astype(
        np.int64
    )
    first, second, order = (torch.from_numpy(column.copy()) for column in bonds.T)
    order_of = torch.zeros(len(picked), most, most, dtype=torch.int64)
    at = torch.from_numpy(molecule)
    order_of[at, first, second] = order
    order_of[at, second, first] = order

    present = torch.from_numpy(inside.astype(np.float32))
    linked = present[:, :, None] * present[:, None] * (1.0 - torch.eye(most))
    distance = (places[:, :, None] - places[:, None]).square().sum(-1).sqrt() * linked
    kinds = functional.one_hot(order_of, 5)[..., 1:]
    hydrogen = (numbers == 1)[:, None] & (order_of > 0)
    elements = (numbers[..., None] == torch.tensor([1, 6, 7, 8, 9])).float()
    nodes = torch.cat(
        [
            elements,
            numbers[..., None].float(),
            torch.zeros(*numbers.shape, 4),
            hydrogen.sum(-1, keepdim=True).float(),
        ],
        dim=-1,
    )
    edges = torch.cat([kinds.float(), distance[..., None]], dim=-1)
    return Graphs(nodes, edges, linked, present)


class _Loaded(NamedTuple):
    molecules: Molecules
    sha256: str
    accepted: str
    order: Tensor


@lru_cache(maxsize=2)
def _load(folder: Path, changed: int) -> _Loaded:
    """Return data and their random order. ``changed`` is the time at which the data were made."""
    molecules, sha256, accepted = load(folder)
    return _Loaded(molecules, sha256, accepted, shuffled("qm9 split", molecules.index.tolist()))


class QM9(PropertiesProblem):
    """11 properties of molecules, with the field's message-passing network.

    The split is random and fixed. Losses are mean squared errors; metrics are mean absolute errors
    in the units of the paper.

    Args:
        recipe: ``"paper"``: all 130,831 molecules, 10,000 of them for testing and 10,000 for
            validation, and the network at its published width of 64. ``"small"``: 4,500 of the
            molecules that there are, 1,000 for testing and 500 for validation, and a width of 32;
            where there are fewer molecules, all of them in the same shares.
        targets: ``"standardized"`` trains on targets of mean 0 and standard deviation 1 over the
            training molecules; ``"raw"`` on D, a0^3, eV, a0^2 and cal/(mol K) as they are.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/qm9``, or in the user's cache.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc``,
            ``ple`` or ``dselect-k``. Encoders and experts are whole message-passing networks, for
            ``ple`` in two levels, atoms and molecule. See
            :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.
        split: A JSON or CSV file with the GDB indices of the three splits, instead of the recipe's;
            see :func:`~ntkmtl.bench.problems._supervised.custom_split`. There may then be any
            number of molecules.

    Raises:
        ValueError: An option is unknown or out of range, the data are damaged, the split cannot be
            used, or there are too few molecules.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "qm9"
    summary: ClassVar[str] = PROBLEMS["qm9"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "paper": Recipe(
            epochs=300,
            batch_size=60,
            learning_rate=1e-3,
            minibatches=4,
            description="The settings of the paper's Table 3 and Appendix C.1.",
            schedule="plateau",
            plateau_factor=0.7,
            plateau_patience=10,
            min_learning_rate=1e-5,
        ),
        "small": Recipe(
            epochs=10,
            batch_size=60,
            learning_rate=6e-3,
            minibatches=4,
            reduced=True,
            description=(
                "3,000 training molecules, 10 epochs and a network of width 32, where the paper "
                "has 110,831 molecules, 300 epochs and width 64."
            ),
        ),
    }
    # The row STL of the paper's Table 3; the learning rate of the recipe paper depends on it.
    reference: tuple[float, ...] | None = (
        *(0.060, 0.156, 60.54, 51.22, 0.419, 3.08, 39.3, 42.9, 41.7, 43.1, 0.061),
    )

    def __init__(
        self,
        recipe: str = "paper",
        targets: Targets = "standardized",
        data: str | None = None,
        architecture: str = "hard",
        architecture_options: Mapping[str, Any] | None = None,
        split: str | None = None,
    ) -> None:
        self.recipe = chosen_recipe(self.recipes, recipe)
        self._architecture = choose(architecture, architecture_options)
        self._choose(targets)
        self._part = PARTS[recipe]
        folder = data_folder("qm9", data)
        self._molecules, self._sha256, self._accepted, order = _load(folder, last_change(folder))
        if split is None:
            self._rows = self._split(order, recipe, folder)
            self._split_said = "SHA-256 of the GDB index"
        else:
            self._use_indices(split, self._molecules.index.tolist())
        self.recipe = fitted(self.recipe, self.size("train"), self._sizes_said)
        self._labels = self._scaled(torch.from_numpy(np.array(self._molecules.targets)))
        refuse_unfit(self)

    def _split(self, order: Tensor, recipe: str, folder: Path) -> dict[Split, Tensor]:
        part = self._part
        # All that is left is for training where the recipe names no number.
        train = part.train or max(PAPER_TRAIN, len(order) - part.test - part.val)
        wanted = (part.test, part.val, train)
        least = LEAST if recipe == "small" else None
        enough(recipe, sum(wanted), len(order), "molecules", folder, HOW, least)
        return self._share_out(order, wanted, "molecules")

    @property
    def options(self) -> dict[str, Any]:
        """Targets, data, split, network and loss."""
        return {
            "targets": self._targets,
            "data_sha256": self._sha256,
            "split": self._split_said,
            "model": MODEL_VERSION,
            "width": self._part.width,
            "hidden": self._part.hidden,
            "loss": "mse",
            **self._architecture.options,
        }

    def _take(self, rows: Tensor) -> MoleculeBatch:
        """Return molecules, padded to the largest of them."""
        return MoleculeBatch(graphs(self._molecules, rows), self._labels[rows])

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized network.

        See :class:`~ntkmtl.bench.problems.qm9.MessagePassingNetwork`; other architectures are over
        its trunk.
        """
        count, part = len(positions(self.tasks, tasks)), self._part
        if self._architecture.name == "hard":
            return MoleculeNetwork(count, part.width, part.hidden)
        return self._architecture.build(
            backbone(part.width, part.hidden), [partial(head, part.width)] * count
        )

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the mean absolute errors in the units of :attr:`metrics`."""
        rows = self._rows[split]
        # Molecules of like size together: less padding.
        rows = rows[torch.from_numpy(self._molecules.atoms[rows.numpy()]).argsort(stable=True)]
        columns, outputs = self._predicted(model, rows, EVALUATED, tasks)
        total = torch.zeros(len(columns), dtype=torch.float64)
        for some, output in zip(rows.split(EVALUATED), outputs, strict=True):
            predicted = output.double() * self._scale[columns] + self._center[columns]
            total += (predicted - self._properties[some][:, columns]).abs().sum(0)
        return total / len(rows) * self._unit[columns]

    def sample(self, split: Split, index: int) -> Sample:
        """Return a molecule, called by its GDB index."""
        row = int(self._rows[split][index])
        start, count = int(self._molecules.first_atoms[row]), int(self._molecules.atoms[row])
        numbers = self._molecules.numbers[start : start + count].astype(np.int64)
        places = np.array(self._molecules.positions[start : start + count])
        name = f"molecule {self._molecules.index[row]}"
        return Sample(name, atoms=(torch.from_numpy(numbers), torch.from_numpy(places)))

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        sizes = [f"{self.size(split):,}" for split in SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        said = self._architecture.sentence
        return (
            f"Molecules of QM9 ({sizes[0]} for training, {sizes[1]} for validation, {sizes[2]} for "
            "testing) and the 11 properties of the literature's benchmark, "
            f"{self._targets} for training. Message passing over the complete graph of a molecule, "
            "with kinds of bonds and distances on its edges: a linear embedding, three rounds of "
            f"edge-conditioned convolution and gated recurrent unit at width {self._part.width}, a "
            "set-to-set readout, and one linear head per property; "
            f"{parameters:,} parameters. {said}"
            "Errors are mean absolute errors on the test molecules."
        )


assert tuple(target.task for target in TARGETS) == COLUMNS == tuple(RANGES)
