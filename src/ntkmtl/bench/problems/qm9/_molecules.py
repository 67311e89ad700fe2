"""Molecules with their targets, as arrays, and whether these are in their units."""

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


BOHR = 0.529177210903
"""Angstrom."""

MANY = 50
"""Molecules from which on the spread of a target is judged."""

RANGES = {
    "mu": ("D", 0.0, 50.0),
    "alpha": ("a0^3", 1.0, 400.0),
    "homo": ("eV", -25.0, 0.0),
    "lumo": ("eV", -10.0, 15.0),
    "r2": ("a0^2", 1.0, 10_000.0),
    "zpve": ("eV", 0.1, 20.0),
    **dict.fromkeys(("u0", "u", "h", "g"), ("eV", -300.0, -0.1)),
    "cv": ("cal/(mol K)", 1.0, 150.0),
}
"""Unit and widest plausible range of each target. QM9's own values lie well within."""

PER_ATOM = {
    "alpha": (2.0, 12.0),
    "zpve": (0.05, 0.4),
    **dict.fromkeys(("u0", "u", "h", "g"), (-7.0, -2.5)),
    "cv": (0.8, 5.0),
}
"""Plausible medians of a target divided by the number of atoms, in its unit."""

BOND = (0.9, 1.6)
"""Plausible median length of bonds in Angstrom; 1.1 is one of hydrogen to carbon."""

SPREAD = (0.8, 20.0)
"""Plausible distance in eV of the quantiles of 5 % and 95 % of LUMO energies; 4 in QM9."""

DIPOLE = (1.2, 8.0)
"""Plausible median of dipoles in D; 2.4 in QM9."""

EXTENT = (0.8, 6.0)
"""Plausible ratio of <R^2> to that of electrons on their nuclei: 1.04 to 1.30 in QM9, 3 for the
smallest molecules. No other unit, and hardly another molecule's number, lies within."""


def wrong_units(molecules: Molecules) -> list[str]:
    """Return what is implausible in places and targets: a phrase each, with what was found.

    A range alone lets energies in hartree pass as eV, so values are also judged by what they are
    per atom, per bond, or for the places of the atoms.
    """
    targets = dict(zip(COLUMNS, molecules.targets.T, strict=True))
    said = _out_of_range(molecules, targets)
    if said:
        return said
    median = _bond_length(molecules)
    if median is not None and not BOND[0] <= median <= BOND[1]:
        said.append(
            f"places must be in Angstrom, with a median bond of {BOND[0]} to {BOND[1]}, found "
            f"{median:.4g}: are they in another unit?"
        )
    for name, (low, high) in PER_ATOM.items():
        middle = float(np.median(targets[name] / molecules.atoms))
        if not low <= middle <= high:
            said.append(_median(name, "per atom ", low, high, middle))
    middle = float(np.median(targets["homo"]))
    if not -12 <= middle <= -3:
        said.append(_median("homo", "", -12, -3, middle))
    if len(molecules) >= MANY:
        low, high = np.quantile(targets["lumo"], (0.05, 0.95))
        if not SPREAD[0] <= high - low <= SPREAD[1]:
            said.append(
                f"lumo must be in eV, with 5 % and 95 % of values {SPREAD[0]:g} to {SPREAD[1]:g} "
                f"apart, found {high - low:.4g}: is it in another unit?"
            )
        middle = float(np.median(targets["mu"]))
        if not DIPOLE[0] <= middle <= DIPOLE[1]:
            said.append(_median("mu", "", *DIPOLE, middle))
    return said if said else _out_of_extent(molecules, targets["r2"])


def _median(name: str, per: str, low: float, high: float, found: float) -> str:
    unit = RANGES[name][0]
    return (
        f"{name} must be in {unit}, with a median {per}of {low:g} to {high:g}, found {found:.4g}: "
        "is it in another unit?"
    )


def _out_of_range(molecules: Molecules, targets: dict[str, NDArray[np.float64]]) -> list[str]:
    said = []
    for name, (unit, low, high) in RANGES.items():
        values = targets[name]
        bad = np.flatnonzero((values < low) | (values > high))
        if len(bad):
            said.append(
                f"{name} must be in {unit}, from {low:g} to {high:g}, found "
                f"{values[bad[0]]:.4g} for molecule {molecules.index[bad[0]]} ({len(bad)} of "
                f"{len(molecules)} molecules are outside): is it in another unit?"
            )
    return said


def _bond_length(molecules: Molecules) -> float | None:
    """Return the median length of all bonds, None where there are none."""
    if not len(molecules.bonds):
        return None
    start = np.repeat(molecules.first_atoms, molecules.bond_counts)
    first, second = (start + molecules.bonds[:, k] for k in (0, 1))
    apart = molecules.positions[first] - molecules.positions[second]
    return float(np.median(np.linalg.norm(apart.astype(np.float64), axis=1)))


def _out_of_extent(molecules: Molecules, r2: NDArray[np.float64]) -> list[str]:
    """Compare <R^2> with that of electrons on their nuclei, from the center of nuclear charge."""
    molecule = np.repeat(np.arange(len(molecules)), molecules.atoms)
    charge = molecules.numbers.astype(np.float64)
    places = molecules.positions.astype(np.float64) / BOHR
    total = np.bincount(molecule, charge)
    center = np.stack([np.bincount(molecule, charge * x) for x in places.T], axis=1)
    squares = ((places - (center / total[:, None])[molecule]) ** 2).sum(axis=1)
    on_nuclei = np.bincount(molecule, charge * squares)
    judged = molecules.atoms > 1
    ratio = r2[judged] / np.maximum(on_nuclei[judged], 1e-9)
    bad = np.flatnonzero((ratio < EXTENT[0]) | (ratio > EXTENT[1]))
    if not len(bad):
        return []
    return [
        f"r2 must be in a0^2, {EXTENT[0]:g} to {EXTENT[1]:g} times that of electrons on the "
        f"molecule's nuclei, found {ratio[bad[0]]:.4g} times for molecule "
        f"{molecules.index[judged][bad[0]]} ({len(bad)} of {len(ratio)} molecules are outside): is "
        "it in another unit, or are targets and places of different molecules?"
    ]
