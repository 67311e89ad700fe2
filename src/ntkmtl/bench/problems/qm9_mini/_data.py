"""The molecules as they are stored, and what the network sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ntkmtl.errors import imports_for

with imports_for("qm9-mini"):
    import numpy as np
    from numpy.typing import NDArray

    from ntkmtl.bench.problems._arrays import shipped

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

DATA = Path(__file__).parent / "data" / "qm9_mini.npz"

SPLITS = {"train": (0, 3000), "val": (3000, 3500), "test": (3500, 4000)}
"""First and last + 1 row of each split. The rows are stored in random order."""


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

        Dipole in debye, polarizability in a0^3, orbital energies and ZPVE in eV, <R^2> in a0^2, the
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


# ------------------------------------------------------------------------------------------------
# What the network sees: numbers that no rotation, translation or order of atoms changes
#
# Hydrogen atoms are seen through the heavy atoms (C, N, O, F) around them. QM9 has at most 9 of
# these in a molecule.

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

HEAVY = 9
"""Most heavy atoms in a molecule."""

# Two atoms are bonded if they are closer than 1.25 times the sum of their covalent radii in
# Angstrom (Cordero et al. 2008): H, C, N, O, F.
RADII = np.array([0.31, 0.76, 0.71, 0.66, 0.57])
BONDED = 1.25

# Gaussians over the distance to an atom: fine where bond orders differ, coarse beyond. Angstrom.
RADIAL = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 2.0, 2.4, 2.8, 3.3, 3.9, 4.6, 5.4])
RADIAL_WIDTH = np.array([0.07] * 7 + [0.25] * 3 + [0.4] * 2 + [0.5] * 2)
RADIAL_CUTOFF = 6.5

# Gaussians over the angle between two near atoms, degrees.
ANGULAR = np.deg2rad([60.0, 90.0, 110.0, 120.0, 150.0, 180.0])
ANGULAR_WIDTH = np.deg2rad([12.0, 10.0, 6.0, 6.0, 12.0, 12.0])
ANGULAR_CUTOFF = 2.0

# Gaussians over the distance between two heavy atoms, through which messages pass. Angstrom.
SHELL = np.array([1.25, 1.45, 2.0, 2.5, 3.2, 5.0])
SHELL_WIDTH = np.array([0.1, 0.1, 0.3, 0.3, 0.5, 1.0])
SHELLS = len(SHELL)


class Invariants(NamedTuple):
    """Features of m molecules before scaling. F = 265 numbers describe a heavy atom.

    Attributes:
        atoms: Surroundings of each heavy atom, (m, 9, F), zero where there is no atom.
        mask: 1 where there is a heavy atom, (m, 9).
        places: Places of the heavy atoms from the center of nuclear charge, (m, 9, 3), Angstrom.
            The only part that turns with the molecule; the network uses lengths of sums of it.
        shells: Weight of heavy atom j for atom i in distance shell r, (m, 9 i, 6 r, 9 j).
        whole: Number of atoms of each element, and each element's sum of squared distances from the
            center of nuclear charge in square Angstrom, (m, 10).
    """

    atoms: Singles
    mask: Singles
    places: Singles
    shells: Singles
    whole: Floats

    def rows(self, rows: Sequence[int]) -> Invariants:
        """Return the molecules at these rows."""
        picked = np.asarray(rows)
        return Invariants(*(part[picked] for part in self))


class Inputs(NamedTuple):
    """Scaled features of m molecules, as in :class:`FeatureBatch`; constant columns removed."""

    atoms: Singles
    mask: Singles
    places: Singles
    shells: Singles
    whole: Singles


@dataclass(frozen=True)
class Scaling:
    """Centers and scales of the features, taken from training molecules.

    Attributes:
        columns: Which of the F columns are used.
        center: Their means.
        scale: Their standard deviations.
        whole_center: Means of the features of whole molecules, (10,).
        whole_map: Linear map that decorrelates them, (10, 10).
    """

    columns: Ints
    center: Singles
    scale: Singles
    whole_center: Floats
    whole_map: Floats

    @classmethod
    def fit(cls, features: Invariants) -> Scaling:
        """Return the scaling that standardizes these molecules.

        Columns that differ from zero for 30 heavy atoms or fewer are left out.
        """
        rows = features.atoms[features.mask > 0]
        columns = np.flatnonzero((np.abs(rows) > 1e-3).sum(0) > 30)
        rows = rows[:, columns]
        # A small set may have one value only, as no fluorine.
        spread, scale = (
            np.where(width > 0, width, 1).astype(width.dtype)
            for width in (features.whole.std(0), rows.std(0))
        )
        whole_center = features.whole.mean(0)
        values, vectors = np.linalg.eigh(np.cov(((features.whole - whole_center) / spread).T))
        # The constant keeps directions of almost no variance from being scaled to unit variance.
        whole_map = (vectors / np.sqrt(values + 1e-3)) / spread[:, None]
        return cls(columns, rows.mean(0), scale, whole_center, whole_map)

    def apply(self, features: Invariants) -> Inputs:
        """Return scaled features. Rare surroundings are clipped at 8 standard deviations."""
        count = len(features.mask)
        mask = features.mask[..., None]
        atoms = (features.atoms[..., self.columns] - self.center) / self.scale
        return Inputs(
            atoms=np.clip(atoms, -8, 8) * mask,
            mask=mask,
            places=features.places,
            shells=features.shells.reshape(count, HEAVY * SHELLS, HEAVY),
            whole=((features.whole - self.whole_center) @ self.whole_map).astype(np.float32),
        )


def invariants(molecules: MiniMolecules) -> Invariants:
    """Return the features of molecules.

    Args:
        molecules: m molecules of at most 9 heavy atoms each.

    Raises:
        ValueError: A molecule has more than 9 heavy atoms, or none.

    Example:
        >>> from ntkmtl.bench.problems.qm9_mini import read
        >>> import numpy as np
        >>> water = read()[0].take(np.array([0]))
        >>> invariants(water).atoms.shape[:2]
        (1, 9)
    """
    element, molecule = molecules.element, molecules.molecule
    count = len(molecules)
    heavy = element > 0
    per_molecule = np.bincount(molecule[heavy], minlength=count)
    if per_molecule.min() < 1 or per_molecule.max() > HEAVY:
        raise ValueError(f"a molecule must have 1 to {HEAVY} heavy atoms")
    row = np.cumsum(heavy) - 1
    slot = (row - (np.cumsum(per_molecule) - per_molecule)[molecule])[heavy]
    slots = (molecule[heavy], slot)

    first, second = _pairs(molecules)
    distance = np.linalg.norm(molecules.positions[first] - molecules.positions[second], axis=1)
    bonded = distance < BONDED * (RADII[element[first]] + RADII[element[second]])

    surroundings = np.concatenate(
        [
            _kinds(element, heavy, first[bonded], second[bonded]),
            _radial(element, heavy, row, first, second, distance),
            _angular(molecules.positions, element, heavy, row, first, second, distance),
        ],
        axis=1,
        dtype=np.float32,
    )
    atoms = np.zeros((count, HEAVY, surroundings.shape[1]), np.float32)
    atoms[slots] = surroundings
    mask = np.zeros((count, HEAVY), np.float32)
    mask[slots] = 1

    centered = _centered(molecules)
    places = np.zeros((count, HEAVY, 3), np.float32)
    places[slots] = centered[heavy]

    both = heavy[first] & heavy[second]
    i, j = first[both], second[both]
    shells = np.zeros((count, HEAVY, SHELLS, HEAVY), np.float32)
    slot_of = np.zeros(len(element), np.int64)
    slot_of[heavy] = slot
    shells[molecule[i], slot_of[i], :, slot_of[j]] = _gaussians(distance[both], SHELL, SHELL_WIDTH)

    kinds = len(ELEMENTS)
    squares = np.bincount(molecule * kinds + element, (centered**2).sum(1), count * kinds)
    whole = np.concatenate([molecules.composition(), squares.reshape(count, kinds)], axis=1)
    return Invariants(atoms, mask, places, shells, whole)


def _centered(molecules: MiniMolecules) -> Floats:
    """Return the atoms' places from the centers of nuclear charge, (a, 3), Angstrom."""
    molecule, count = molecules.molecule, len(molecules)
    charge = np.bincount(molecule, molecules.numbers, count)
    center = np.stack(
        [np.bincount(molecule, molecules.numbers * x, count) for x in molecules.positions.T], axis=1
    )
    return molecules.positions - (center / charge[:, None])[molecule]


def _pairs(molecules: MiniMolecules) -> tuple[Ints, Ints]:
    """Return all ordered pairs of different atoms of the same molecule."""
    start = molecules.start
    first, second = [], []
    for size in np.unique(molecules.atoms):
        i, j = np.nonzero(~np.eye(size, dtype=bool))
        origin = start[molecules.atoms == size][:, None]
        first.append((origin + i).ravel())
        second.append((origin + j).ravel())
    return np.concatenate(first), np.concatenate(second)


def _gaussians(x: Floats, center: Floats, width: Floats) -> Singles:
    # Single precision: the time to load is spent here.
    offset = (x[:, None].astype(np.float32) - center.astype(np.float32)) / width.astype(np.float32)
    result: Singles = np.exp(np.float32(-0.5) * offset * offset)
    return result


def _cutoff(distance: Floats, cutoff: float) -> Floats:
    result: Floats = 0.5 * (1 + np.cos(np.pi * distance / cutoff))
    return result


def _sums(key: Ints, weights: Floats, atoms: int, kinds: int) -> Floats:
    """Return weights (p, c) summed by key = atom * kinds + kind, shape (atoms, kinds * c)."""
    sums = np.empty((atoms * kinds, weights.shape[1]))
    for column, weight in enumerate(weights.T):
        sums[:, column] = np.bincount(key, weight, atoms * kinds)
    return sums.reshape(atoms, -1)


def _kinds(element: Ints, heavy: NDArray[np.bool_], first: Ints, second: Ints) -> Floats:
    """Return one-hot element and element x neighbors x hydrogens of each heavy atom."""
    neighbors = np.minimum(np.bincount(first, minlength=len(element)), 4)[heavy]
    hydrogens = np.bincount(first, element[second] == 0, len(element)).astype(np.int64)[heavy]
    own = element[heavy] - 1
    kind = (own * 5 + neighbors) * 5 + np.minimum(hydrogens, 4)
    return np.concatenate([np.eye(4)[own], np.eye(100)[kind], hydrogens[:, None]], axis=1)


def _radial(
    element: Ints, heavy: NDArray[np.bool_], row: Ints, first: Ints, second: Ints, distance: Floats
) -> Floats:
    """Return how many atoms of each element are at each distance from each heavy atom."""
    near = heavy[first] & (distance < RADIAL_CUTOFF)
    i, j, r = first[near], second[near], distance[near]
    kinds, atoms = len(ELEMENTS), int(heavy.sum())
    weights = _gaussians(r, RADIAL, RADIAL_WIDTH) * _cutoff(r, RADIAL_CUTOFF)[:, None]
    key = row[i] * kinds + element[j]
    return _sums(key, weights, atoms, kinds)


def _angular(
    positions: Floats,
    element: Ints,
    heavy: NDArray[np.bool_],
    row: Ints,
    first: Ints,
    second: Ints,
    distance: Floats,
) -> Floats:
    """Return how many pairs of near atoms of two elements are at each angle."""
    near = np.flatnonzero(heavy[first] & (distance < ANGULAR_CUTOFF))
    near = near[np.argsort(first[near], kind="stable")]
    i, j, r = first[near], second[near], distance[near]
    valence = np.bincount(i, minlength=len(element))
    start = np.cumsum(valence) - valence
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(valence[valence > 1]):
        a, b = np.triu_indices(size, 1)
        origin = start[valence == size][:, None]
        left.append((origin + a).ravel())
        right.append((origin + b).ravel())
    p, q = np.concatenate(left), np.concatenate(right)
    u = (positions[j] - positions[i]) / r[:, None]
    angle = np.arccos(np.clip((u[p] * u[q]).sum(1), -1, 1))
    weight = 4 * _cutoff(r[p], ANGULAR_CUTOFF) * _cutoff(r[q], ANGULAR_CUTOFF)
    weights = _gaussians(angle, ANGULAR, ANGULAR_WIDTH) * weight[:, None]
    low = np.minimum(element[j[p]], element[j[q]])
    high = np.maximum(element[j[p]], element[j[q]])
    # Number of the unordered pair of two of the five elements.
    pair = high * (high + 1) // 2 + low
    pairs, atoms = len(ELEMENTS) * (len(ELEMENTS) + 1) // 2, int(heavy.sum())
    key = row[i[p]] * pairs + pair
    return _sums(key, weights, atoms, pairs)
