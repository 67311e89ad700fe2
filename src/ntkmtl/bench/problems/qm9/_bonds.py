"""Bonds of a molecule from its SMILES and the places of its atoms.

The package ``qm9pack`` gives no bonds, but a SMILES with explicit double and triple bonds. Nearly
always the heavy atoms (C, N, O, F) stand in its order, with the hydrogen atoms after them; else the
heavy atoms are matched to it by element, distance and number of hydrogen atoms. Each hydrogen atom
is bonded to the heavy atom next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkmtl.errors import imports_for

_SYMBOL = {6: "C", 7: "N", 8: "O", 9: "F"}

# Covalent radii in Angstrom (Cordero et al. 2008); two atoms can be bonded if they are closer than
# 1.3 times the sum of their radii.
_RADII = np.array([0.0, 0.31, 0.0, 0.0, 0.0, 0.0, 0.76, 0.71, 0.66, 0.57])
_BONDED = 1.3
_STRETCHED = 1.5


class Skeleton(NamedTuple):
    """The heavy atoms of a molecule.

    Attributes:
        elements: Their symbols.
        hydrogens: Number of hydrogen atoms at each.
        bonds: ``(i, j, order)`` of each bond between them, i < j, sorted.
    """

    elements: tuple[str, ...]
    hydrogens: tuple[int, ...]
    bonds: tuple[tuple[int, int, int], ...]


def read_smiles(smiles: str) -> Skeleton:
    """Read a SMILES of C, N, O and F without aromatic (lower-case) atoms.

    Raises:
        ValueError: RDKit cannot read it, or it has other or aromatic atoms.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> read_smiles("CC(=O)C#N").bonds
        ((0, 1, 1), (1, 2, 2), (1, 3, 1), (3, 4, 3))
        >>> read_smiles("C[NH2+]CC=N[O-]").hydrogens
        (3, 2, 2, 1, 0, 0)
    """
    with imports_for("reading the bonds of qm9pack", "qm9"):
        from rdkit import Chem
        from rdkit.rdBase import BlockLogs
    with BlockLogs():
        # QM9's own bonds: not changed to aromatic ones, odd valences not refused.
        molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"RDKit cannot read the SMILES {smiles!r}")
    molecule.UpdatePropertyCache(strict=False)
    atoms, bonds = molecule.GetAtoms(), molecule.GetBonds()
    elements = tuple(atom.GetSymbol() for atom in atoms)
    ends = [sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in bonds]
    orders = [bond.GetBondTypeAsDouble() for bond in bonds]
    if not set(elements) <= set(_SYMBOL.values()):
        raise ValueError(f"a heavy atom must be C, N, O or F, found {smiles!r}")
    if any(bond.GetIsAromatic() for bond in bonds):
        raise ValueError(f"double bonds must be written as such (C=C, not cc), found {smiles!r}")
    return Skeleton(
        elements,
        tuple(atom.GetTotalNumHs() for atom in atoms),
        tuple(sorted((i, j, int(order)) for (i, j), order in zip(ends, orders, strict=True))),
    )


def bonds_of(
    smiles: str, numbers: NDArray[np.uint8], positions: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return the bonds of a molecule.

    Args:
        smiles: Its SMILES.
        numbers: Atomic numbers of its n atoms.
        positions: Their places in Angstrom, (n, 3).

    Returns:
        First atom, second atom and order of each bond, (b, 3), by atoms.

    Raises:
        ValueError: The SMILES is of other atoms, or its bonds do not fit the places.

    Example:
        >>> import numpy as np
        >>> places = np.array([[0, 0, 0], [1.1, 0, 0], [2.16, 0, 0], [-1.06, 0, 0]])
        >>> bonds_of("C#C", np.array([6, 6, 1, 1], dtype=np.uint8), places).tolist()
        [[0, 1, 3], [0, 3, 1], [1, 2, 1]]
    """
    skeleton = read_smiles(smiles)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    radii = _RADII[numbers]
    relative = distance / (radii[:, None] + radii[None])
    heavy, light = np.flatnonzero(numbers > 1), np.flatnonzero(numbers == 1)
    symbols = [_SYMBOL[int(numbers[atom])] for atom in heavy]
    if sorted(symbols) != sorted(skeleton.elements):
        raise ValueError(f"{smiles!r} has other heavy atoms than {''.join(symbols)}")
    owner = heavy[distance[light][:, heavy].argmin(axis=1)] if len(light) else light
    if not (relative[light, owner] < _BONDED).all():
        raise ValueError(f"a hydrogen atom of {smiles!r} is bonded to nothing")
    counts = np.bincount(owner, minlength=len(numbers))[heavy].tolist()
    apart = relative[np.ix_(heavy, heavy)]
    places = _match(skeleton, symbols, counts, apart < _BONDED)
    if places is None:
        # A proton has moved from one atom to another: numbers of hydrogen atoms do not fit.
        places = _match(skeleton, symbols, None, apart < _BONDED)
    if places is None:
        # Two cages of QM9, 133857 and 133859, have bonds of 2.2 Angstrom.
        places = _match(skeleton, symbols, counts, apart < _STRETCHED)
    if places is None:
        raise ValueError(f"the bonds of {smiles!r} do not fit the distances between its atoms")
    found = [(int(heavy[places[i]]), int(heavy[places[j]]), o) for i, j, o in skeleton.bonds]
    found += [(int(o), int(h), 1) for o, h in zip(owner, light, strict=True)]
    return np.array(sorted((min(i, j), max(i, j), o) for i, j, o in found), dtype=np.uint8)


def _match(
    skeleton: Skeleton,
    symbols: Sequence[str],
    hydrogens: Sequence[int] | None,
    near: NDArray[np.bool_],
) -> list[int] | None:
    """Return the heavy atom that each atom of a SMILES is: the first match in order of numbers."""
    earlier: list[list[int]] = [[] for _ in symbols]
    for i, j, _ in skeleton.bonds:
        earlier[max(i, j)].append(min(i, j))
    taken: list[int] = []

    def extend() -> bool:
        atom = len(taken)
        if atom == len(symbols):
            return True
        # Its own number first: nearly always the atoms are in the order of the SMILES.
        for place in (atom, *(p for p in range(len(symbols)) if p != atom)):
            if (
                place not in taken
                and symbols[place] == skeleton.elements[atom]
                and (hydrogens is None or hydrogens[place] == skeleton.hydrogens[atom])
                and all(near[place, taken[other]] for other in earlier[atom])
            ):
                taken.append(place)
                if extend():
                    return True
                taken.pop()
        return False

    return taken if extend() else None
