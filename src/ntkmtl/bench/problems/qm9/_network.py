"""The network of ``qm9``: as it is, and in two stages for architectures."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.qm9._message_passing import (
    AtomStates,
    Graphs,
    MessagePassingNetwork,
    MoleculeReadout,
)

__all__ = ["ATOM", "Graphs", "MoleculeBatch", "MoleculeNetwork", "backbone", "head"]

ATOM = 11
"""Numbers that describe an atom."""


class MoleculeBatch(NamedTuple):
    """b molecules.

    Attributes:
        graphs: Atoms and pairs of atoms as the network takes them.
        targets: Targets of the heads, float32 of shape (b, 11).
    """

    graphs: Graphs
    targets: Tensor


def _graphs(batch: MoleculeBatch | Graphs) -> Graphs:
    return batch.graphs if isinstance(batch, MoleculeBatch) else batch


class MoleculeNetwork(MessagePassingNetwork):
    """The network on batches of the problem."""

    def __init__(self, heads: int, width: int, hidden: int) -> None:
        super().__init__(heads, width=width, hidden=hidden)
        # torch_geometric's NNConv starts with a bias of zero.
        nn.init.zeros_(self.convolve.root.bias)

    def represent(self, batch: MoleculeBatch | Graphs) -> Tensor:
        """Return z of a batch, or of its graphs."""
        return super().represent(_graphs(batch))


class _CarriedGraphs(NamedTuple):
    """What the readout reads.

    Attributes:
        states: Of the atoms, (b, width, N), 0 in the padding.
        present: 1 for atoms, 0 for padding, (b, N).
    """

    states: Tensor
    present: Tensor


class _Atoms(nn.Module):
    """The first stage, whose output has features along dimension 1, as mixing needs them."""

    def __init__(self, part: AtomStates) -> None:
        super().__init__()
        self.part = part

    def forward(self, batch: Graphs) -> Tensor:
        states: Tensor = self.part(batch)
        return states.transpose(1, 2)


class _Molecule(nn.Module):
    """The second stage, from atoms to z."""

    def __init__(self, part: MoleculeReadout) -> None:
        super().__init__()
        self.part = part

    def forward(self, carried: _CarriedGraphs) -> Tensor:
        z: Tensor = self.part(carried.states.transpose(1, 2), carried.present)
        return z


def _stages(width: int, hidden: int) -> list[nn.Module]:
    atoms, molecule = MoleculeNetwork(0, width, hidden).stages()
    return [_Atoms(atoms), _Molecule(molecule)]


def _mean(values: Tensor, present: Tensor) -> Tensor:
    """Return means over the atoms that there are, (b, f), of values of shape (b, f, N)."""
    return torch.einsum("bfn,bn->bf", values, present) / present.sum(dim=1, keepdim=True)


def _described(batch: MoleculeBatch | Graphs) -> Tensor:
    graphs = _graphs(batch)
    return _mean(graphs.nodes.transpose(1, 2), graphs.present)


def _carry(number: int, read: Graphs, said: Tensor) -> _CarriedGraphs:
    return _CarriedGraphs(said, read.present)


def _seen(number: int, read: Graphs, said: Tensor) -> Tensor:
    return _mean(said, read.present)


def backbone(width: int, hidden: int) -> Backbone:
    """Return the trunk of the message-passing network in two stages.

    It is that of :class:`~ntkmtl.bench.problems.qm9.MessagePassingNetwork`.

    The first is the embedding and all rounds of message passing, which share their weights, and
    ends with the atoms' states; the second is the readout and the last linear layer. Gates read the
    mean over a molecule's atoms: of the numbers that describe them, and after the first stage of
    their states. So molecules do not see each other, however far they are padded.

    Example:
        >>> from ntkmtl.bench.problems.qm9 import random_molecules
        >>> trunk = backbone(8, hidden=16)
        >>> trunk.widths, trunk.encoder()(random_molecules(3, atoms=5)).shape
        ((8, 8), torch.Size([3, 8]))
    """
    return Backbone(
        partial(_stages, width, hidden),
        widths=(width, width),
        gate=_described,
        gate_width=ATOM,
        read=_graphs,
        carry=_carry,
        seen=_seen,
    )


def head(width: int) -> nn.Module:
    """Make a head, which maps z of shape (b, width) to a number per molecule, (b,)."""
    return nn.Sequential(nn.Linear(width, 1), nn.Flatten(0))
