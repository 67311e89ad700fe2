"""Networks that the multi-task literature compares on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.base import MultiTaskModel

__all__ = [
    "DENSE_TASKS",
    "AtomStates",
    "CelebANetwork",
    "MessagePassingNetwork",
    "MoleculeReadout",
    "Molecules",
    "SegNetMTAN",
    "TransformerNetwork",
    "celeba_losses",
    "dense_losses",
    "random_molecules",
]


class CelebANetwork(MultiTaskModel):
    """The nine-layer convolutional network that the field trains on CelebA.

    Seven 3 x 3 convolutions (64, 128, 128, 256, 256, 512, 512 channels) with max pooling after the
    first, third and fifth, global average pooling, two linear layers of 512, batch norm and ReLU
    after each, and one linear head per attribute.

    Args:
        heads: Number of attributes.
        width: Channels of the first convolution, 64 in the literature; the other layers keep their
            proportion to it.

    Example:
        >>> import torch
        >>> network = CelebANetwork(heads=3)
        >>> z = network.represent(torch.randn(2, 3, 64, 64))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([2, 512]), [(2,), (2,), (2,)])
    """

    def __init__(self, heads: int = 40, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for times, pool in (
            (1, True),
            (2, False),
            (2, True),
            (4, False),
            (4, True),
            (8, False),
            (8, False),
        ):
            layers += [
                nn.Conv2d(channels, times * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(times * width),
                nn.ReLU(inplace=True),
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = times * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            layers += [
                nn.Linear(channels, channels, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(channels, 1) for _ in range(heads))

    def represent(self, batch: Tensor) -> Tensor:
        """Return z, shape (B, 8 width), of images of shape (B, 3, H, W)."""
        features: Tensor = self.trunk(batch)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one logit per image and attribute: k tensors of shape (B,)."""
        return _scored(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the convolutions and the two linear layers."""
        return self.trunk.parameters()


def celeba_losses(outputs: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """Return the binary cross-entropy of each attribute.

    Args:
        outputs: k logits of shape (B,).
        labels: 0 or 1, shape (B, k).
    """
    return [
        functional.binary_cross_entropy_with_logits(logit, label)
        for logit, label in zip(outputs, labels.unbind(dim=1), strict=True)
    ]


def _scored(heads: nn.ModuleList, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Apply linear heads with one output each: k tensors of shape (B,)."""
    views = [features] * len(heads) if isinstance(features, Tensor) else features
    return [head(view).squeeze(1) for head, view in zip(heads, views, strict=True)]


# ---------------------------------------------------------------- dense prediction: SegNet and MTAN

DENSE_TASKS = ("segmentation", "depth", "normals")


class SegNetMTAN(nn.Module):
    """A multi-task attention network on SegNet, for measurements of time and memory.

    It is that of the literature but for what is said below; the problems ``nyuv2`` and
    ``cityscapes`` train :class:`~ntkmtl.bench.problems._dense_network.MTANNetwork`, which follows
    the published code.

    SegNet is the convolutions of VGG-16 in five stages, each followed by max pooling, and their
    mirror image, each preceded by unpooling to the places of the maxima. Each task owns one
    attention module per stage: from the stage's first feature map and from what the task's module
    of the stage before hands on, two 1 x 1 convolutions and a sigmoid make a mask, and the stage's
    last feature map times that mask goes through a 3 x 3 convolution to the next stage. Heads are a
    3 x 3 and a 1 x 1 convolution. Batch norm and ReLU after every convolution but the last ones.

    What a head reads is its task's own masked features, so :meth:`represent` returns a list of k
    tensors, which go to :meth:`ntkmtl.Balancer.backward` as they are.

    It differs from the published network in two places:

    - The 3 x 3 convolutions between attention modules, one per stage, are each task's own here. In
      the published code all tasks share them, and the masks alone are a task's own.
    - In the decoder a mask is made from the feature map after the stage's first convolution here,
      as in the encoder. In the published code it is made from what that convolution reads, the
      unpooled map, which in three of five stages has twice as many channels.

    Together they make 64,411,345 parameters at the published size with three tasks, where the
    published network has 44,229,073: two further copies of the ten convolutions between modules
    (20,440,320) less the narrower masks (258,048). Two further differences change no shape: weights
    start from torch's own distributions here, and from Xavier's normal distribution with biases of
    0 there; and :meth:`shared_parameters` yields SegNet alone, where comparisons in the literature
    count all before the heads.

    Args:
        tasks: Kinds of the k tasks, each of ``"segmentation"``, ``"depth"``, ``"normals"``; a kind
            may come more than once.
        classes: Number of classes of a segmentation.
        widths: Channels of each stage.
        depths: Convolutions of each stage.

    Raises:
        ValueError: A kind is unknown, or ``widths`` and ``depths`` are of different lengths.

    References:
        Liu, Johns, Davison: End-to-end multi-task learning with attention. CVPR 2019.
        Badrinarayanan, Kendall, Cipolla: SegNet. TPAMI 2017.

    Example:
        >>> import torch
        >>> network = SegNetMTAN(widths=(4, 8), depths=(2, 2))
        >>> z = network.represent(torch.randn(2, 3, 8, 12))
        >>> [tuple(t.shape) for t in z]
        [(2, 4, 8, 12), (2, 4, 8, 12), (2, 4, 8, 12)]
        >>> [tuple(y.shape) for y in network.predict(z)]
        [(2, 13, 8, 12), (2, 1, 8, 12), (2, 3, 8, 12)]
    """

    def __init__(
        self,
        tasks: Sequence[str] = DENSE_TASKS,
        classes: int = 13,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        unknown = sorted(set(tasks) - set(DENSE_TASKS))
        if unknown:
            raise ValueError(f"tasks must be of {', '.join(DENSE_TASKS)}, found {unknown}")
        if len(widths) != len(depths):
            raise ValueError(
                f"widths and depths must name the same stages, found {len(widths)} and "
                f"{len(depths)}"
            )
        self.tasks = tuple(tasks)
        inputs = (3, *widths[:-1])
        outputs = (widths[0], *widths[:-1])
        self.encoder = nn.ModuleList(
            _Stage(before, width, depth)
            for before, width, depth in zip(inputs, widths, depths, strict=True)
        )
        # From the coarsest stage to the finest, as they are run.
        self.decoder = nn.ModuleList(
            _Stage(width, after, depth)
            for width, after, depth in zip(
                reversed(widths), reversed(outputs), reversed(depths), strict=True
            )
        )
        # What the module of the stage before hands on, of this stage's width: nothing at first.
        handed = (0, *widths[1:])
        self.encoder_attention = nn.ModuleList(
            nn.ModuleList(
                _Attention(width + before, width, after)
                for before, width, after in zip(
                    handed, widths, (*widths[1:], widths[-1]), strict=True
                )
            )
            for _ in tasks
        )
        self.decoder_attention = nn.ModuleList(
            nn.ModuleList(
                _UpwardAttention(width, after)
                for width, after in zip(reversed(widths), reversed(outputs), strict=True)
            )
            for _ in tasks
        )
        channels = {"segmentation": classes, "depth": 1, "normals": 3}
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[0], widths[0], 3, padding=1),
                nn.Conv2d(widths[0], channels[task], 1),
            )
            for task in tasks
        )

    def represent(self, batch: Tensor) -> list[Tensor]:
        """Return each task's features, k tensors of shape (B, widths[0], H, W).

        Args:
            batch: Images of shape (B, 3, H, W), H and W multiples of 2 to the number of stages.
        """
        x = batch
        down: list[tuple[Tensor, Tensor]] = []
        indices: list[Tensor] = []
        for stage in self.encoder:
            first, last = stage(x)
            down.append((first, last))
            x, index = functional.max_pool2d(last, 2, return_indices=True)
            indices.append(index)
        up: list[tuple[Tensor, Tensor]] = []
        for stage, index in zip(self.decoder, reversed(indices), strict=True):
            first, last = stage(functional.max_unpool2d(x, index, [2, 2]))
            up.append((first, last))
            x = last
        return [self._attend(i, down, up) for i in range(len(self.tasks))]

    def _attend(
        self, task: int, down: Sequence[tuple[Tensor, Tensor]], up: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Run one task's attention modules along the shared feature maps."""
        handed: Tensor | None = None
        downward: Any = self.encoder_attention[task]
        upward: Any = self.decoder_attention[task]
        for module, (first, last) in zip(downward, down, strict=True):
            handed = functional.max_pool2d(module(first, last, handed), 2)
        for module, (first, last) in zip(upward, up, strict=True):
            handed = module(first, last, handed)
        assert handed is not None
        return handed

    def predict(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return class scores (B, classes, H, W), depths (B, 1, H, W) or unit normals (B, 3, H, W).

        Args:
            features: What :meth:`represent` returned.
        """
        outputs = [head(z) for head, z in zip(self.heads, features, strict=True)]
        return [
            functional.normalize(output, dim=1) if task == "normals" else output
            for task, output in zip(self.tasks, outputs, strict=True)
        ]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of SegNet; those of the attention modules belong to the tasks."""
        yield from self.encoder.parameters()
        yield from self.decoder.parameters()


def _convolution(before: int, after: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2), nn.BatchNorm2d(after), nn.ReLU()
    )


class _Stage(nn.Module):
    """Some convolutions; returns the feature maps after the first and after the last."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.first = _convolution(before, after)
        self.rest = nn.Sequential(*[_convolution(after, after) for _ in range(depth - 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first, self.rest(first)


class _Attention(nn.Module):
    """A mask from the stage's first map and what was handed on; hands on the masked last map."""

    def __init__(self, before: int, width: int, after: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            _convolution(before, width, 1),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.Sigmoid(),
        )
        self.out = _convolution(width, after)

    def forward(self, first: Tensor, last: Tensor, handed: Tensor | None) -> Tensor:
        seen = first if handed is None else torch.cat([first, handed], dim=1)
        masked: Tensor = self.out(self.mask(seen) * last)
        return masked


class _UpwardAttention(nn.Module):
    """The decoder's: what was handed on is enlarged and convolved first."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.enter = _convolution(before, width)
        self.mask = nn.Sequential(
            _convolution(2 * width, width, 1),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.Sigmoid(),
        )

    def forward(self, first: Tensor, last: Tensor, handed: Tensor) -> Tensor:
        larger = functional.interpolate(
            handed, scale_factor=2.0, mode="bilinear", align_corners=True
        )
        mask: Tensor = self.mask(torch.cat([first, self.enter(larger)], dim=1))
        return mask * last


def dense_losses(
    tasks: Sequence[str], outputs: Sequence[Tensor], labels: Sequence[Tensor]
) -> list[Tensor]:
    """Return cross-entropy, mean absolute error and one minus the cosine, each over valid pixels.

    A batch without a valid pixel of a task gives 0.

    Args:
        tasks: Kinds of the k tasks.
        outputs: What :meth:`SegNetMTAN.predict` returned.
        labels: Classes, int64 of shape (B, H, W), -1 where there is none; depths, (B, 1, H, W); or
            unit normals, (B, 3, H, W). Depths and normals of zero are not valid.

    Example:
        >>> import torch
        >>> up = torch.zeros(1, 3, 2, 2)
        >>> up[:, 2] = 1.0
        >>> dense_losses(["depth", "normals"], [torch.zeros(1, 1, 2, 2), up], [up[:, 2:] * 3, up])
        [tensor(3.), tensor(0.)]
    """
    losses = []
    for task, output, label in zip(tasks, outputs, labels, strict=True):
        if task == "segmentation":
            total = functional.cross_entropy(output, label, ignore_index=-1, reduction="sum")
            losses.append(total / (label != -1).sum().clamp_min(1))
            continue
        valid = (label != 0).any(dim=1)
        if task == "depth":
            error = (output - label).abs().squeeze(1)
        else:
            error = 1.0 - (output * label).sum(dim=1)
        losses.append((error * valid).sum() / valid.sum().clamp_min(1))
    return losses


# ---------------------------------------------------------------- molecules: message passing


class Molecules(NamedTuple):
    """A batch of molecules, padded to the same number of atoms N.

    Attributes:
        nodes: Numbers that describe an atom, shape (B, N, node features).
        edges: Numbers that describe a pair of atoms, shape (B, N, N, edge features); ``[b, i, j]``
            is what atom i hears from atom j along.
        linked: 1 where atom i hears from atom j, else 0, shape (B, N, N).
        present: 1 for atoms, 0 for padding, shape (B, N).
    """

    nodes: Tensor
    edges: Tensor
    linked: Tensor
    present: Tensor

    def to(self, device: torch.device | str) -> Molecules:
        """Return the batch on another device."""
        return Molecules(*(tensor.to(device) for tensor in self))


class MessagePassingNetwork(MultiTaskModel):
    """The message-passing network that the field trains on the 11 properties of QM9.

    A linear embedding; three rounds of edge-conditioned convolution (mean of the neighbours'
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

    def represent(self, batch: Molecules) -> Tensor:
        """Return z, shape (B, width)."""
        states = _passed(batch, self.embed, self.convolve, self.update, self.rounds)
        return _read_out(states, batch.present, self.readout, self.last)

    def stages(self) -> tuple[AtomStates, MoleculeReadout]:
        """Return the trunk in two modules, which hold its layers: up to atoms, and from atoms to z.

        Example:
            >>> network = MessagePassingNetwork(heads=0, width=8, hidden=16)
            >>> batch = random_molecules(3, atoms=5)
            >>> atoms, molecule = network.stages()
            >>> z = molecule(atoms(batch), batch.present)
            >>> bool((z == network.represent(batch)).all())
            True
        """
        return (
            AtomStates(self.embed, self.convolve, self.update, self.rounds),
            MoleculeReadout(self.readout, self.last),
        )

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one number per molecule and property: k tensors of shape (B,)."""
        return _scored(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the heads'."""
        for module in (self.embed, self.convolve, self.update, self.readout, self.last):
            yield from module.parameters()


class AtomStates(nn.Module):
    """The first part of a :class:`MessagePassingNetwork`: embedding and message passing.

    Args:
        embed: The linear embedding.
        convolve: The edge-conditioned convolution.
        update: The gated recurrent unit.
        rounds: Rounds of message passing.
    """

    def __init__(
        self, embed: nn.Linear, convolve: _EdgeConvolution, update: nn.GRUCell, rounds: int
    ) -> None:
        super().__init__()
        self.rounds = rounds
        self.embed, self.convolve, self.update = embed, convolve, update

    def forward(self, batch: Molecules) -> Tensor:
        """Return the atoms' states, shape (B, N, width), 0 in the padding."""
        return _passed(batch, self.embed, self.convolve, self.update, self.rounds)


class MoleculeReadout(nn.Module):
    """The second part of a :class:`MessagePassingNetwork`: the readout and the last linear layer.

    Args:
        readout: The set-to-set readout.
        last: The linear layer.
    """

    def __init__(self, readout: _Set2Set, last: nn.Linear) -> None:
        super().__init__()
        self.readout, self.last = readout, last

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """Return z, shape (B, width), of states (B, N, width) and of what atoms there are."""
        return _read_out(states, present, self.readout, self.last)


def _passed(
    batch: Molecules,
    embed: nn.Linear,
    convolve: _EdgeConvolution,
    update: nn.GRUCell,
    rounds: int,
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
    """x_i W + mean over neighbours j of x_j M(e_ij), M a network of one hidden layer.

    M(e) is linear in its hidden layer h(e), so states are summed under h first and multiplied with
    its weights once per atom: no (edges, width, width) matrices come to be.
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
        # (B, N, hidden + 1, width): sums of neighbours' states under each hidden unit.
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
) -> Molecules:
    """Return molecules of random numbers, of half to all of ``atoms`` atoms, every pair linked.

    For measurements and tests; drawn from torch's global random state.
    """
    sizes = torch.randint((atoms + 1) // 2, atoms + 1, (batch,))
    present = (torch.arange(atoms)[None] < sizes[:, None]).float()
    linked = present[:, :, None] * present[:, None, :] * (1.0 - torch.eye(atoms))
    return Molecules(
        torch.randn(batch, atoms, node_features),
        torch.randn(batch, atoms, atoms, edge_features),
        linked,
        present,
    )


# ---------------------------------------------------------------- sequences: a transformer


class TransformerNetwork(MultiTaskModel):
    """A small transformer encoder, averaged over positions, with k linear heads.

    Args:
        heads: Number of tasks.
        vocabulary: Number of tokens.
        length: Longest sequence.
        width: Width of a token's state and of z.
        attention_heads: Heads of an attention layer.
        layers: Number of encoder layers.
        dropout: Probability of dropping an entry.

    Example:
        >>> import torch
        >>> network = TransformerNetwork(heads=2, vocabulary=10, length=6, width=8, layers=1)
        >>> z = network.represent(torch.zeros(3, 6, dtype=torch.int64))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([3, 8]), [(3,), (3,)])
    """

    def __init__(
        self,
        heads: int = 11,
        vocabulary: int = 1000,
        length: int = 32,
        width: int = 128,
        attention_heads: int = 4,
        layers: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, attention_heads, 4 * width, dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(heads))

    def represent(self, batch: Tensor) -> Tensor:
        """Return z, shape (B, width), of tokens, int64 of shape (B, T)."""
        places = torch.arange(batch.shape[1], device=batch.device)
        states = self.encoder(self.token(batch) + self.position(places))
        features: Tensor = states.mean(dim=1)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one number per sequence and task: k tensors of shape (B,)."""
        return _scored(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the heads'."""
        for module in (self.token, self.position, self.encoder):
            yield from module.parameters()
