"""The geometries as they are stored, padded to one number of atoms."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Split
from ntkmtl.errors import imports_for

with imports_for("xtb"):
    import numpy as np

DATA = Path(__file__).parent / "data" / "xtb.npz"
ELEMENTS = (1, 6, 7, 8, 9)
GROUPS = ("ethanol", "aspirin", "small molecules")


class ForceBatch(NamedTuple):
    """b geometries of at most n atoms, float32.

    Attributes:
        elements: Positions in :data:`ELEMENTS`, 0 for padding, int64 of shape (b, n).
        mask: 1 where there is an atom, shape (b, n).
        positions: In Angstrom, shape (b, n, 3).
        energy: Energy less that of the free atoms, per atom, in eV; shape (b,).
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
    advice = "Install the package again, or make the file with scripts/make_xtb.py."
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"the data of xtb is missing: {path}. {advice}") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        whole, split, group = _padded(arrays)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        what = f"no array {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the data of xtb cannot be read: {path}: {what}. {advice}") from error
    rows: dict[Split, Tensor] = {
        "train": (split == 0).nonzero()[:, 0],
        "val": (split == 1).nonzero()[:, 0],
        "test": (split == 2).nonzero()[:, 0],
    }
    return Geometries(
        {name: ForceBatch(*(part[some] for part in whole)) for name, some in rows.items()},
        {name: group[some] for name, some in rows.items()},
        hashlib.sha256(content).hexdigest(),
    )


def _padded(arrays: dict[str, Tensor]) -> tuple[ForceBatch, Tensor, Tensor]:
    atoms = arrays["atoms"].long()
    if int(atoms.sum()) != len(arrays["numbers"]):
        raise ValueError(f"atoms counts {int(atoms.sum())} atoms of {len(arrays['numbers'])}")
    known = arrays["elements"].long()
    if known.tolist() != list(ELEMENTS):
        raise ValueError(f"the elements are {known.tolist()}, not {list(ELEMENTS)}")
    element = torch.searchsorted(known, arrays["numbers"].long())
    free = torch.nn.utils.rnn.pad_sequence(
        arrays["atomic_energies"][element].split(atoms.tolist()), batch_first=True
    ).sum(dim=1)

    def padded(values: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values.split(atoms.tolist()), batch_first=True)

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
