"""The problem ``xtb``, its data and its network."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems._supervised import SPLITS, evaluating, moved, paired, positions
from ntkmtl.bench.problems.base import Metric, Problem, Recipe, Split, WholeModel
from ntkmtl.errors import imports_for

with imports_for("xtb"):
    from ntkmtl.bench.problems._arrays import shipped

ELEMENTS = (1, 6, 7, 8, 9)
CUTOFF = 5.0
BASIS = 20


class ForceBatch(NamedTuple):
    """b geometries of at most n atoms, float32.

    Attributes:
        elements: Positions in :data:`ELEMENTS`, 0 for padding, int64 of shape (b, n).
        mask: 1 where there is an atom, shape (b, n).
        positions: In Angstrom, shape (b, n, 3).
        energy: Energy minus that of the free atoms, per atom, in eV; shape (b,).
        forces: In eV/Angstrom, shape (b, n, 3).
        dipole: In e Angstrom, shape (b, 3).
        charges: In e, shape (b, n).
    """

    elements: Tensor
    mask: Tensor
    positions: Tensor
    energy: Tensor
    forces: Tensor
    dipole: Tensor
    charges: Tensor


class Messages(nn.Module):
    """A continuous-filter convolution: messages are filtered by a function of distance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Linear(BASIS, width, bias=False)
        self.send = nn.Linear(width, width, bias=False)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, atoms: Tensor, basis: Tensor) -> Tensor:
        """Return new atoms, shape (b, n, width); ``basis`` is (b, n, n, BASIS)."""
        heard = torch.einsum("bijw,bjw->biw", self.filter(basis), self.send(atoms))
        update: Tensor = self.second(functional.silu(self.first(heard)))
        return atoms + update


class Potential(WholeModel):
    """An invariant network of atoms, in the manner of SchNet (Schütt et al. 2017).

    Distances below 5 Angstrom are expanded in Bessel functions, which filter the messages between
    atoms; two rounds. The energy is a sum over atoms, forces its negative gradient. Partial
    charges are brought to a sum of 0; the dipole is that of other charges, likewise neutral, as
    GFN2-xTB's has parts within the atoms.

    Args:
        tasks: Which of ``energy``, ``forces``, ``dipole``, ``charges`` it is made for.
        offset: Energy per atom that is added, in eV.
        width: Numbers per atom.
        rounds: Rounds of messages.
    """

    def __init__(
        self, tasks: Sequence[str], offset: float, width: int = 64, rounds: int = 2
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.offset = offset
        self.embed = nn.Embedding(len(ELEMENTS), width)
        self.rounds = nn.ModuleList(Messages(width) for _ in range(rounds))
        needed = {"forces": "energy"}
        names = dict.fromkeys(needed.get(task, task) for task in tasks)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1)
                )
                for name in names
            }
        )

    def predict(self, features: Any) -> list[Tensor]:
        """Return energies per atom (b,), forces (b, n, 3), dipoles (b, 3), charges (b, n)."""
        with torch.enable_grad():
            return self._predict(features)

    def _predict(self, batch: ForceBatch) -> list[Tensor]:
        positions = batch.positions.detach()
        if "forces" in self.tasks:
            positions.requires_grad_()
        atoms = self.embed(batch.elements)
        basis = _basis(positions, batch.mask)
        for layer in self.rounds:
            atoms = layer(atoms, basis)
        read = {name: head(atoms)[..., 0] * batch.mask for name, head in self.heads.items()}
        count = batch.mask.sum(dim=1)
        found: dict[str, Tensor] = {}
        if "energy" in read:
            total = read["energy"].sum(dim=1)
            found["energy"] = total / count + self.offset
            if "forces" in self.tasks:
                (slope,) = torch.autograd.grad(
                    total.sum(), positions, create_graph=self.training, retain_graph=True
                )
                found["forces"] = -slope
        if "charges" in read:
            found["charges"] = _neutral(read["charges"], batch.mask, count)
        if "dipole" in read:
            charges = _neutral(read["dipole"], batch.mask, count)
            found["dipole"] = torch.einsum("bi,bix->bx", charges, batch.positions)
        return [found[task] for task in self.tasks]


def _neutral(charges: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    return charges - mask * (charges.sum(dim=1) / count)[:, None]


def _basis(positions: Tensor, mask: Tensor) -> Tensor:
    """Return Bessel functions of all distances within the cutoff, shape (b, n, n, BASIS)."""
    away = positions[:, :, None] - positions[:, None]
    n = positions.shape[1]
    apart = mask[:, :, None] * mask[:, None] * (1 - torch.eye(n, device=positions.device))
    # Missing pairs get a distance beyond the cutoff, so that the square root has a derivative.
    distance = (away.square().sum(dim=-1) + (1 - apart) * CUTOFF**2).sqrt()
    order = torch.arange(1, BASIS + 1, dtype=positions.dtype, device=positions.device)
    waves = torch.sin(order * (math.pi / CUTOFF) * distance[..., None]) / distance[..., None]
    close = 0.5 * (torch.cos(math.pi / CUTOFF * distance.clamp(max=CUTOFF)) + 1) * apart
    basis: Tensor = waves * close[..., None]
    return basis


# ------------------------------------------------------------------------------------------------
# The geometries as they are stored, padded to one number of atoms

DATA = Path(__file__).parent / "data" / "xtb.npz"
GROUPS = ("ethanol", "aspirin", "small molecules")


class Geometries(NamedTuple):
    """All geometries.

    Attributes:
        splits: Those of each split.
        groups: Position in :data:`GROUPS` of each, by split.
        sha256: Digest of the file.
    """

    splits: dict[Split, ForceBatch]
    groups: dict[Split, Tensor]
    sha256: str


@functools.lru_cache(maxsize=1)
def read(path: Path = DATA) -> Geometries:
    """Read the data file.

    Args:
        path: A file that ``scripts/make_xtb.py`` wrote.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: The file is damaged, or is not one of that kind.

    Example:
        >>> read().splits["train"].positions.shape
        torch.Size([1215, 21, 3])
    """
    with shipped("xtb", path, "scripts/make_xtb.py") as (arrays, sha256):
        whole, split, group = _padded({k: torch.from_numpy(v) for k, v in arrays.items()})
    rows = {name: (split == number).nonzero()[:, 0] for number, name in enumerate(SPLITS)}
    return Geometries(
        {name: ForceBatch(*(part[some] for part in whole)) for name, some in rows.items()},
        {name: group[some] for name, some in rows.items()},
        sha256,
    )


def _padded(arrays: dict[str, Tensor]) -> tuple[ForceBatch, Tensor, Tensor]:
    atoms = arrays["atoms"].long()
    if int(atoms.sum()) != len(arrays["numbers"]):
        raise ValueError(f"atoms counts {int(atoms.sum())} atoms of {len(arrays['numbers'])}")
    known = arrays["elements"].long()
    if known.tolist() != list(ELEMENTS):
        raise ValueError(f"the elements are {known.tolist()}, not {list(ELEMENTS)}")
    element = torch.searchsorted(known, arrays["numbers"].long())

    def padded(values: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values.split(atoms.tolist()), batch_first=True)

    free = padded(arrays["atomic_energies"][element]).sum(dim=1)
    whole = ForceBatch(
        elements=padded(element),
        mask=padded(torch.ones(len(element))),
        positions=padded(arrays["positions"]),
        energy=((arrays["energy"] - free) / atoms).float(),
        forces=padded(arrays["forces"]),
        dipole=arrays["dipole"],
        charges=padded(arrays["charges"]),
    )
    if not all(bool(part.isfinite().all()) for part in whole):
        raise ValueError("a value is not finite")
    return whole, arrays["split"].long(), arrays["group"].long()


# ------------------------------------------------------------------------------------------------
# The problem

MODEL_VERSION = "potential 1"
TASKS = ("energy", "forces", "dipole", "charges")
DEBYE = 4.80320471
"""One e Angstrom in debye."""


class XTB(Problem):
    """Energy, forces, dipole and partial charges of GFN2-xTB at geometries of 500 K.

    1,215 geometries for training, 255 each for validation and testing, by whole trajectories: of
    ethanol, aspirin, and 55 small molecules of H, C, N, O and F. Losses are mean squared errors: of
    the energy per atom in eV, of components of forces in eV/Angstrom, of the dipole in e Angstrom,
    and of charges in e. Metrics are mean absolute errors as the field reports them.

    Raises:
        ValueError: The data file is damaged.
        FileNotFoundError: The data file is missing.

    Example:
        >>> import torch
        >>> problem = XTB()
        >>> batch = problem.batch("train", torch.arange(8))
        >>> [tuple(output.shape) for output in problem.model().predict(batch)]
        [(8,), (8, 21, 3), (8, 3), (8, 21)]
    """

    name: ClassVar[str] = "xtb"
    summary: ClassVar[str] = PROBLEMS["xtb"].summary
    residual_samples: ClassVar[int] = 4
    tasks: tuple[str, ...] = TASKS
    metrics: tuple[Metric, ...] = (
        Metric("energy", "energy", "meV/atom", label="E"),
        Metric("forces", "forces", "meV/Å", label="F"),
        Metric("dipole", "dipole", "mD", label="μ"),
        Metric("charges", "charges", "me", label="q"),
    )
    recipe: Recipe = Recipe(
        epochs=15,
        batch_size=15,
        learning_rate=5e-3,
        minibatches=1,
        reduced=True,
        description="1,215 geometries and 15 epochs, where force fields take hundreds of epochs",
    )

    def __init__(self) -> None:
        self._data = read()
        self._offset = float(self._data.splits["train"].energy.double().mean())

    @property
    def options(self) -> dict[str, Any]:
        """Data file, network and loss."""
        return {"data_sha256": self._data.sha256, "model": MODEL_VERSION, "loss": "mse"}

    def size(self, split: Split) -> int:
        """Return the number of geometries in a split."""
        return len(self._data.splits[split].energy)

    def batch(self, split: Split, indices: Tensor) -> ForceBatch:
        """Return the geometries of a split at ``indices``."""
        return ForceBatch(*(part.index_select(0, indices) for part in self._data.splits[split]))

    def model(self, tasks: Sequence[str] | None = None) -> Potential:
        """Build a freshly initialized network."""
        return Potential([TASKS[i] for i in positions(TASKS, tasks)], self._offset)

    def losses(
        self, outputs: Sequence[Tensor], batch: ForceBatch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return the mean squared error of each task."""
        return {
            TASKS[i]: _mean(TASKS[i], (output - getattr(batch, TASKS[i])).square(), batch)
            for i, output in paired(TASKS, outputs, tasks)
        }

    def task_residuals(
        self, outputs: Sequence[Tensor], batch: ForceBatch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the errors of each task, of padded atoms none."""
        pairs = [(TASKS[i], output) for i, output in paired(TASKS, outputs, tasks)]
        errors = {name: output - getattr(batch, name) for name, output in pairs}
        real = batch.mask > 0
        return {n: e[real] if n in ("forces", "charges") else e for n, e in errors.items()}

    def counts(self, batch: ForceBatch, tasks: Sequence[str] | None = None) -> Tensor:
        """Return the number of atoms where losses are means over atoms, 1 elsewhere."""
        atoms, ones = batch.mask.sum(dim=1), torch.ones_like(batch.energy)
        names = [TASKS[i] for i in positions(TASKS, tasks)]
        return torch.stack([atoms if n in ("forces", "charges") else ones for n in names])

    def evaluate(self, model: Any, split: Split, tasks: Sequence[str] | None = None) -> Tensor:
        """Return the mean absolute errors in the units of :attr:`metrics`."""
        sums: dict[int, float] = defaultdict(float)
        with evaluating(model):
            for some in torch.arange(self.size(split)).split(64):
                batch = self.batch(split, some)
                outputs = model.predict(model.represent(moved(batch, model)))
                for i, output in paired(TASKS, outputs, tasks):
                    sums[i] += _absolute(TASKS[i], output.detach().cpu(), batch)
        whole = self._data.splits[split]
        atoms = float(whole.mask.sum())
        size = {"forces": 3 * atoms, "charges": atoms}
        unit = {"energy": 1e3, "forces": 1e3, "dipole": 1e3 * DEBYE, "charges": 1e3}
        found = [
            unit[TASKS[i]] * sums[i] / size.get(TASKS[i], self.size(split)) for i in sorted(sums)
        ]
        return torch.tensor(found, dtype=torch.float64)

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        return (
            f"{self.size('train'):,} geometries at 500 K of ethanol, aspirin and 55 small "
            f"molecules ({self.size('val')} for validation, {self.size('test')} for testing, from "
            "trajectories of their own), labeled by GFN2-xTB. An invariant network passes "
            "messages that depend on distances twice; energies are sums over atoms, forces "
            f"their gradients: {parameters:,} parameters. Errors are mean absolute errors: energy "
            "per atom, components of forces, the length of the dipole's error, and charges."
        )


def _mean(name: str, squares: Tensor, batch: ForceBatch) -> Tensor:
    """Return the mean over what there is; padded atoms have errors of 0."""
    if name == "forces":
        return squares.sum() / (3 * batch.mask.sum())
    if name == "charges":
        return squares.sum() / batch.mask.sum()
    return squares.mean()


def _absolute(name: str, output: Tensor, batch: ForceBatch) -> float:
    """Return the sum of the absolute errors; of the dipole's, their lengths."""
    error = (output - getattr(batch, name)).double()
    return float(error.norm(dim=-1).sum() if name == "dipole" else error.abs().sum())
