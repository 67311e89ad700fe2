"""The geometries as they are stored, padded to one number of atoms."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ntkmtl.bench.problems._supervised import SPLITS
from ntkmtl.bench.problems.base import Split
from ntkmtl.errors import imports_for

with imports_for("xtb"):
    from ntkmtl.bench.problems._arrays import shipped

DATA = Path(__file__).parent / "data" / "xtb.npz"
ELEMENTS = (1, 6, 7, 8, 9)
GROUPS = ("ethanol", "aspirin", "small molecules")


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
