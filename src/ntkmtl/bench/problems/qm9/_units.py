"""Whether molecules and targets are in the units that they are said to be in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems.qm9._molecules import COLUMNS, Molecules

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
