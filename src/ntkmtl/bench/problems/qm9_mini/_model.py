"""The network: message passing over the heavy atoms of a molecule, and one linear head per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.architectures import Backbone, Represent
from ntkmtl.bench.problems.base import MultiTaskModel
from ntkmtl.bench.problems.qm9_mini._features import SHELLS

REPRESENTATION = 96
"""Size d of the shared representation z."""


class FeatureBatch(NamedTuple):
    """b molecules as the network takes them, float32.

    Attributes:
        atoms: Scaled surroundings of the heavy atoms, (b, 9, F).
        mask: 1 where there is a heavy atom, (b, 9, 1).
        places: Their places from the center of nuclear charge in Angstrom, (b, 9, 3).
        shells: Weights of messages, (b, 9 * 6, 9).
        whole: Scaled features of the whole molecule, (b, 10).
        targets: Targets of the heads, (b, 11).
    """

    atoms: Tensor
    mask: Tensor
    places: Tensor
    shells: Tensor
    whole: Tensor
    targets: Tensor


class MoleculeNet(MultiTaskModel):
    """One round of message passing, a readout that adds over atoms, k linear heads.

    Each heavy atom is embedded from its surroundings and receives messages from every other heavy
    atom, by shells of distance. A molecule is then described by sums over its atoms: of the
    embeddings, of learned charges times squared distances from the center (for the extent of the
    electron cloud), and the lengths of dipoles of learned charges that add to zero (for the dipole
    moment).

    Args:
        features: Numbers that describe a heavy atom.
        whole: Numbers that describe a whole molecule.
        heads: Number of tasks k.
        width: Width of an atom's embedding.
        message: Numbers that an atom sends to each shell.
        charges: Sets of learned charges.
        representation: Size d of the shared representation z.
    """

    def __init__(
        self,
        features: int,
        whole: int,
        heads: int,
        width: int = 64,
        message: int = 8,
        charges: int = 8,
        representation: int = REPRESENTATION,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.send = nn.Linear(width, message)
        self.update = nn.Linear(width + SHELLS * message, width)
        self.charge = nn.Linear(width, 2 * charges)
        self.whole = nn.Linear(whole, representation)
        self.read = nn.Linear(width + 2 * charges, representation)
        self.refine = nn.Linear(representation, representation)
        self.heads = nn.ModuleList(nn.Linear(representation, 1) for _ in range(heads))

    def represent(self, batch: FeatureBatch) -> Tensor:
        """Return z of shape (b, d)."""
        mask, places = batch.mask, batch.places
        atoms = self.embed(batch.atoms)
        messages = torch.bmm(batch.shells, self.send(atoms)).view(*atoms.shape[:2], -1)
        atoms = atoms + functional.silu(self.update(torch.cat([atoms, messages], dim=-1)))
        atoms = atoms * mask
        dipole_charge, extent_charge = (self.charge(atoms) * mask).chunk(2, dim=-1)
        mean = dipole_charge.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        dipole = torch.bmm((dipole_charge - mean * mask).transpose(1, 2), places)
        # The constant keeps the square root's derivative finite where a dipole vanishes.
        length = (dipole.square().sum(-1) + 0.01).sqrt()
        extent = (extent_charge * places.square().sum(-1, keepdim=True)).sum(1)
        # Sums over atoms are brought to about unit size.
        readout = torch.cat([atoms.sum(1) / 3, length, extent / 100], dim=-1)
        z = self.read(readout) + self.whole(batch.whole)
        refined: Tensor = z + functional.silu(self.refine(z))
        return refined

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return k outputs of shape (b, 1)."""
        if isinstance(features, Tensor):
            return [head(features) for head in self.heads]
        if len(features) != len(self.heads):
            raise ValueError(f"{len(features)} views of z for {len(self.heads)} heads")
        return [head(view) for head, view in zip(self.heads, features, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the trunk: all but those of the heads."""
        for name, parameter in self.named_parameters():
            if not name.startswith("heads."):
                yield parameter


def _trunk(features: int, whole: int) -> list[nn.Module]:
    return [Represent(MoleculeNet(features, whole, heads=0))]


def _whole(batch: FeatureBatch) -> Tensor:
    return batch.whole


def backbone(features: int, whole: int) -> Backbone:
    """Return the trunk of :class:`MoleculeNet` for architectures, as one stage.

    Gates read the numbers that describe the whole molecule.
    """
    return Backbone(
        partial(_trunk, features, whole), widths=(REPRESENTATION,), gate=_whole, gate_width=whole
    )
