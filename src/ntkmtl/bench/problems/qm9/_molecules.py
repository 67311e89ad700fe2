"""Molecules with their targets, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._arrays import ArrayLayout, require_layout
from ntkmtl.bench.problems.qm9_mini._data import ELEMENTS

MOLECULES = 130_831
"""Molecules of QM9 without those that are left out."""

UNCHARACTERIZED = 3_054
"""Molecules that are left out, as their geometry and their SMILES disagree."""

LAST_INDEX = MOLECULES + UNCHARACTERIZED
MOST_ATOMS, MOST_BONDS = 29, 32

COLUMNS = ("mu", "alpha", "homo", "lumo", "r2", "zpve", "u0", "u", "h", "g", "cv")
"""The targets in the order of the paper: columns 0, 1, 2, 3, 5, 6, 12, 13, 14, 15 and 11 of
torch_geometric."""


@dataclass(frozen=True)
class Molecules:
    """m molecules of a atoms and b bonds in all.

    Attributes:
        index: GDB index, from 1, rising, int32 of shape (m,).
        atoms: Number of atoms of each molecule, uint8 of shape (m,).
        numbers: Atomic numbers, molecule after molecule, uint8 of shape (a,).
        positions: Places in Angstrom, float32 of shape (a, 3), of four decimals.
        bond_counts: Number of bonds of each molecule, uint8 of shape (m,).
        bonds: First atom, second atom (from 0 within the molecule) and order (1 to 3, 4 for
            aromatic) of each bond, uint8 of shape (b, 3).
        targets: :data:`COLUMNS` in D, a0^3, eV, a0^2 and cal/(mol K), float64 of shape (m, 11).
    """

    index: NDArray[np.int32]
    atoms: NDArray[np.uint8]
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    bond_counts: NDArray[np.uint8]
    bonds: NDArray[np.uint8]
    targets: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def first_atoms(self) -> NDArray[np.int64]:
        """First atom of each molecule, shape (m,)."""
        return _firsts(self.atoms)

    @cached_property
    def first_bonds(self) -> NDArray[np.int64]:
        """First bond of each molecule, shape (m,)."""
        return _firsts(self.bond_counts)

    def check(self) -> None:
        """Refuse arrays with wrong counts or shapes, or values out of range."""
        m, a, b = len(self), int(self.atoms.sum()), int(self.bond_counts.sum())
        layout: ArrayLayout = {
            "index": (np.int32, (m,)),
            "atoms": (np.uint8, (m,)),
            "numbers": (np.uint8, (a,)),
            "positions": (np.float32, (a, 3)),
            "bond_counts": (np.uint8, (m,)),
            "bonds": (np.uint8, (b, 3)),
            "targets": (np.float64, (m, len(COLUMNS))),
        }
        require_layout(vars(self), layout)
        if m == 0:
            raise ValueError("there are no molecules")
        if (np.diff(self.index) <= 0).any() or self.index[0] < 1 or self.index[-1] > LAST_INDEX:
            raise ValueError(f"GDB indices must rise within 1 to {LAST_INDEX}, each once")
        if self.atoms.min() < 1 or self.atoms.max() > MOST_ATOMS:
            raise ValueError(
                f"a molecule of QM9 has 1 to {MOST_ATOMS} atoms, found {self.atoms.min()} to "
                f"{self.atoms.max()}"
            )
        if not np.isin(self.numbers, ELEMENTS).all():
            raise ValueError("an element is none of H, C, N, O, F")
        if not np.isfinite(self.positions).all() or np.abs(self.positions).max() > 30:
            raise ValueError("a place is not finite, or more than 30 Angstrom from the origin")
        sizes = np.repeat(self.atoms, self.bond_counts)
        ends = self.bonds[:, :2]
        if (ends >= sizes[:, None]).any() or (ends[:, 0] == ends[:, 1]).any():
            raise ValueError("a bond is between atoms that the molecule does not have")
        if b and (self.bonds[:, 2].min() < 1 or self.bonds[:, 2].max() > 4):
            raise ValueError("the order of a bond must be 1 to 4")
        bad = np.argwhere(~np.isfinite(self.targets))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{COLUMNS[column]} of molecule {self.index[row]} is not finite "
                f"({len(bad)} such values)"
            )

    def take(self, rows: NDArray[np.int64]) -> Molecules:
        """Return the molecules at ``rows``, in that order."""
        atoms = _ranges(self.first_atoms[rows], self.atoms[rows])
        bonds = _ranges(self.first_bonds[rows], self.bond_counts[rows])
        return Molecules(
            self.index[rows],
            self.atoms[rows],
            self.numbers[atoms],
            self.positions[atoms],
            self.bond_counts[rows],
            self.bonds[bonds],
            self.targets[rows],
        )


def _firsts(counts: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.cumsum(counts, dtype=np.int64) - counts


def _ranges(firsts: NDArray[np.int64], counts: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(i, i + n) for i, n in zip(firsts, counts, strict=True)])
