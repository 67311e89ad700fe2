"""The network: messages between atoms that depend on distances, and a readout from the atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.base import WholeModel

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
