"""The message-passing network that the field trains on QM9, as it is and for architectures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.base import MultiTaskModel, linear_outputs


class Graphs(NamedTuple):
    """A batch of molecules, padded to the same number of atoms N.

    Attributes:
        nodes: Numbers that describe an atom, shape (B, N, node features).
        edges: Numbers that describe a pair of atoms, shape (B, N, N, edge features); ``[b, i, j]``
            belongs to messages from atom j to atom i.
        linked: 1 where atom i receives messages from atom j, else 0, shape (B, N, N).
        present: 1 for atoms, 0 for padding, shape (B, N).
    """

    nodes: Tensor
    edges: Tensor
    linked: Tensor
    present: Tensor

    def to(self, device: torch.device | str) -> Graphs:
        """Return the batch on another device."""
        return Graphs(*(tensor.to(device) for tensor in self))


class MessagePassingNetwork(MultiTaskModel):
    """The message-passing network that the field trains on the 11 properties of QM9.

    A linear embedding; three rounds of edge-conditioned convolution (mean of the neighbors'
    states, each through a matrix that a small network makes of the edge) and a gated recurrent
    unit; a set-to-set readout of three rounds; a linear layer; and one linear head per property. In
    plain torch on padded batches.

    Args:
        heads: Number of properties.
        node_features: Numbers that describe an atom.
        edge_features: Numbers that describe a pair.
        width: Width of an atom's state and of z.
        hidden: Width of the network that makes matrices of edges.
        rounds: Rounds of message passing.
        readouts: Rounds of the readout.

    References:
        Gilmer et al.: Neural message passing for quantum chemistry. ICML 2017.
        Vinyals, Bengio, Kudlur: Order matters: sequence to sequence for sets. ICLR 2016.

    Example:
        >>> import torch
        >>> network = MessagePassingNetwork(heads=2, width=8, hidden=16)
        >>> batch = random_molecules(3, atoms=5)
        >>> z = network.represent(batch)
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([3, 8]), [(3,), (3,)])
    """

    def __init__(
        self,
        heads: int = 11,
        node_features: int = 11,
        edge_features: int = 5,
        width: int = 64,
        hidden: int = 128,
        rounds: int = 3,
        readouts: int = 3,
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self.embed = nn.Linear(node_features, width)
        self.convolve = _EdgeConvolution(width, edge_features, hidden)
        self.update = nn.GRUCell(width, width)
        self.readout = _Set2Set(width, readouts)
        self.last = nn.Linear(2 * width, width)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(heads))

    def represent(self, batch: Graphs) -> Tensor:
        """Return z, shape (B, width)."""
        states = _passed(batch, self.embed, self.convolve, self.update, self.rounds)
        return _read_out(states, batch.present, self.readout, self.last)

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one number per molecule and property: k tensors of shape (B,)."""
        return linear_outputs(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the heads'."""
        for module in (self.embed, self.convolve, self.update, self.readout, self.last):
            yield from module.parameters()


def _passed(
    batch: Graphs, embed: nn.Linear, convolve: _EdgeConvolution, update: nn.GRUCell, rounds: int
) -> Tensor:
    present = batch.present[:, :, None]
    state = torch.relu(embed(batch.nodes)) * present
    hidden = convolve.of_edges(batch.edges, batch.linked)
    for _ in range(rounds):
        message = torch.relu(convolve(state, hidden, batch.linked))
        state = update(message.flatten(0, 1), state.flatten(0, 1)).view_as(state) * present
    return state


def _read_out(states: Tensor, present: Tensor, readout: _Set2Set, last: nn.Linear) -> Tensor:
    features: Tensor = torch.relu(last(readout(states, present)))
    return features


class _EdgeConvolution(nn.Module):
    """x_i W + mean over neighbors j of x_j M(e_ij), M a network of one hidden layer.

    M(e) is linear in its hidden layer h(e), so states are summed under h first and multiplied with
    its weights once per atom: no (edges, width, width) matrices are made.
    """

    def __init__(self, width: int, edge_features: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(edge_features, hidden)
        self.second = nn.Linear(hidden, width * width)
        self.root = nn.Linear(width, width)
        self.width = width

    def of_edges(self, edges: Tensor, linked: Tensor) -> Tensor:
        """Return h(e_ij) and a last entry of 1 for the bias, both 0 where there is no edge."""
        hidden = functional.pad(torch.relu(self.first(edges)), (0, 1), value=1.0)
        return hidden * linked[..., None]

    def forward(self, x: Tensor, hidden: Tensor, linked: Tensor) -> Tensor:
        batch, atoms, width = x.shape
        # (B, N, hidden + 1, width): sums of neighbors' states under each hidden unit.
        sums = torch.matmul(hidden.transpose(2, 3), x[:, None])
        matrices = torch.cat([self.second.weight.T, self.second.bias[None]])
        message = sums.reshape(batch, atoms, -1) @ matrices.reshape(-1, width)
        degree = linked.sum(dim=2, keepdim=True).clamp_min(1.0)
        out: Tensor = self.root(x) + message / degree
        return out


class _Set2Set(nn.Module):
    """Reads a set by attention, some rounds long, in an order that does not matter."""

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2 * width, width)
        self.rounds = rounds

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        batch, _, width = x.shape
        state = (x.new_zeros(batch, width), x.new_zeros(batch, width))
        read = x.new_zeros(batch, 2 * width)
        absent = present[:, :, None] == 0
        for _ in range(self.rounds):
            state = self.cell(read, state)
            scores = torch.bmm(x, state[0][:, :, None]).masked_fill(absent, -torch.inf)
            read = torch.cat([state[0], (scores.softmax(dim=1) * x).sum(dim=1)], dim=1)
        return read


def random_molecules(
    batch: int, atoms: int = 18, node_features: int = 11, edge_features: int = 5
) -> Graphs:
    """Return molecules of random numbers, of half to all of ``atoms`` atoms, every pair linked.

    For measurements and tests; drawn from torch's global random state.
    """
    sizes = torch.randint((atoms + 1) // 2, atoms + 1, (batch,))
    present = (torch.arange(atoms)[None] < sizes[:, None]).float()
    linked = present[:, :, None] * present[:, None, :] * (1.0 - torch.eye(atoms))
    return Graphs(
        torch.randn(batch, atoms, node_features),
        torch.randn(batch, atoms, atoms, edge_features),
        linked,
        present,
    )


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


def _holding(**layers: nn.Module) -> Any:
    """Return a module that holds layers of a network, under their names there."""
    found = nn.Module()
    for name, layer in layers.items():
        setattr(found, name, layer)
    return found


class _Atoms(nn.Module):
    """The first stage, embedding and message passing.

    Its output has features along dimension 1, as mixing needs them.
    """

    def __init__(self, whole: MoleculeNetwork) -> None:
        super().__init__()
        self.rounds = whole.rounds
        self.part = _holding(embed=whole.embed, convolve=whole.convolve, update=whole.update)

    def forward(self, batch: Graphs) -> Tensor:
        part = self.part
        states = _passed(batch, part.embed, part.convolve, part.update, self.rounds)
        return states.transpose(1, 2)


class _Molecule(nn.Module):
    """The second stage, from atoms to z: readout and last linear layer."""

    def __init__(self, whole: MoleculeNetwork) -> None:
        super().__init__()
        self.part = _holding(readout=whole.readout, last=whole.last)

    def forward(self, carried: _CarriedGraphs) -> Tensor:
        states = carried.states.transpose(1, 2)
        return _read_out(states, carried.present, self.part.readout, self.part.last)


def _stages(width: int, hidden: int) -> list[nn.Module]:
    whole = MoleculeNetwork(0, width, hidden)
    return [_Atoms(whole), _Molecule(whole)]


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
