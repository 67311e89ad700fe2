"""The molecules as they are stored, and the 11 targets in the units of torch_geometric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ntkmtl.errors import imports_for

with imports_for("qm9-mini"):
    import numpy as np
    from numpy.typing import NDArray

    from ntkmtl.bench.problems._arrays import shipped

DATA = Path(__file__).parent / "data" / "qm9_mini.npz"

ELEMENTS = (1, 6, 7, 8, 9)
"""Atomic numbers of the elements in QM9: H, C, N, O, F."""

SPLITS = {"train": (0, 3000), "val": (3000, 3500), "test": (3500, 4000)}
"""First and last + 1 row of each split. The rows are stored in random order."""

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


@dataclass(frozen=True)
class MiniMolecules:
    """m molecules with a atoms in all.

    Attributes:
        index: GDB index in QM9, counted from 1, int64 of shape (m,).
        atoms: Number of atoms of each molecule, int64 of shape (m,).
        numbers: Atomic numbers, all molecules one after the other, int64 of shape (a,).
        positions: Places of the atoms in Angstrom, float64 of shape (a, 3), exact to 1e-6.
        targets: The 11 columns of :data:`TARGETS` in the units of QM9, float64 of shape (m, 11).
    """

    index: NDArray[np.int64]
    atoms: NDArray[np.int64]
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    targets: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def molecule(self) -> NDArray[np.int64]:
        """Row of the molecule that each atom belongs to, shape (a,)."""
        return np.repeat(np.arange(len(self)), self.atoms)

    @property
    def start(self) -> NDArray[np.int64]:
        """First atom of each molecule, shape (m,)."""
        last: NDArray[np.int64] = np.cumsum(self.atoms)
        return last - self.atoms

    @property
    def element(self) -> NDArray[np.int64]:
        """Position in :data:`ELEMENTS` of each atom, shape (a,)."""
        return np.searchsorted(ELEMENTS, self.numbers).astype(np.int64)

    def composition(self) -> NDArray[np.int64]:
        """Return the number of atoms of each element, shape (m, 5)."""
        counts = np.bincount(self.molecule * len(ELEMENTS) + self.element)
        counts = np.pad(counts, (0, len(self) * len(ELEMENTS) - len(counts)))
        return counts.reshape(len(self), len(ELEMENTS))

    def properties(self) -> NDArray[np.float64]:
        """Return the 11 targets as torch_geometric has them, float64 of shape (m, 11).

        Dipole in debye, polarisability in a0^3, orbital energies and ZPVE in eV, <R^2> in a0^2, the
        atomization energies U0, U, H and G in eV, heat capacity in cal/(mol K).
        """
        values: NDArray[np.float64] = self.targets.copy()
        composition = self.composition()
        for j, target in enumerate(TARGETS):
            if target.column in ATOM_ENERGIES:
                values[:, j] -= composition @ np.array(ATOM_ENERGIES[target.column])
            if target.unit == "meV":
                values[:, j] *= HARTREE
        return values

    def take(self, rows: NDArray[np.int64]) -> MiniMolecules:
        """Return the molecules at ``rows``, in that order."""
        atoms = np.concatenate(
            [np.arange(self.start[row], self.start[row] + self.atoms[row]) for row in rows]
        )
        return MiniMolecules(
            index=self.index[rows],
            atoms=self.atoms[rows],
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            targets=self.targets[rows],
        )


def read(path: Path = DATA) -> tuple[MiniMolecules, str]:
    """Read the data file.

    Args:
        path: A file that ``scripts/make_qm9_mini.py`` wrote.

    Returns:
        The molecules, and the SHA-256 of the file as hexadecimal digits.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: The file is damaged, or is not one of that kind.

    Example:
        >>> molecules, _ = read()
        >>> len(molecules), int(molecules.index.min())
        (4000, 3)
    """
    with shipped("qm9-mini", path, "scripts/make_qm9_mini.py") as (arrays, sha256):
        molecules = MiniMolecules(
            index=arrays["index"].astype(np.int64),
            atoms=arrays["atoms"].astype(np.int64),
            numbers=arrays["numbers"].astype(np.int64),
            positions=arrays["positions"].astype(np.float64),
            targets=arrays["targets"].astype(np.float64),
        )
        _check(molecules, arrays["names"])
    return molecules, sha256


def _check(molecules: MiniMolecules, names: NDArray[Any]) -> None:
    count, atoms = len(molecules), int(molecules.atoms.sum())
    for name, shape in (
        ("atoms", (count,)),
        ("numbers", (atoms,)),
        ("positions", (atoms, 3)),
        ("targets", (count, len(TARGETS))),
    ):
        found = getattr(molecules, name).shape
        if found != shape:
            raise ValueError(f"{name} has shape {found}, not {shape}")
    expected = [target.column for target in TARGETS]
    if list(names) != expected:
        raise ValueError(f"the columns are {list(names)}, not {expected}")
    if not np.isin(molecules.numbers, ELEMENTS).all():
        raise ValueError("an element is none of H, C, N, O, F")
    if not (np.isfinite(molecules.positions).all() and np.isfinite(molecules.targets).all()):
        raise ValueError("a value is not finite")
