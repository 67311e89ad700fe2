"""The network: residual blocks as trunk, and one linear head per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.base import MultiTaskModel
from ntkmtl.bench.problems.table._batch import RowBatch


class ResidualBlock(nn.Module):
    """z plus a perceptron of z with one hidden layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Return a tensor of the shape of z."""
        added: Tensor = self.out(self.dropout(self.hidden(z).relu()))
        return z + added


def layers(inputs: int, width: int, depth: int, dropout: float) -> list[nn.Module]:
    """Make the layers of the trunk: a linear one, and residual blocks."""
    return [nn.Linear(inputs, width), *(ResidualBlock(width, dropout) for _ in range(depth - 1))]


def _inputs(batch: RowBatch) -> Tensor:
    return batch.inputs


def backbone(inputs: int, width: int, depth: int, dropout: float) -> Backbone:
    """Return the trunk of :class:`TableNet` for architectures: each layer is a stage.

    Gates read the row.
    """
    return Backbone(
        partial(layers, inputs, width, depth, dropout),
        widths=(width,) * depth,
        gate=_inputs,
        gate_width=inputs,
        read=_inputs,
    )


class TableNet(MultiTaskModel):
    """A linear layer and ``depth - 1`` residual blocks of ``width``; linear heads.

    A linear dependence passes through untouched, as small tables have little else that can be
    learned.

    Args:
        inputs: Numbers that describe a row.
        outputs: Outputs of each head: 1 for regression, the number of classes otherwise.
        width: Width of every layer, and so size d of the shared representation z.
        depth: Number of layers of the trunk, the linear one included.
        dropout: Probability of dropping an entry of a block's hidden layer.

    Example:
        >>> import torch
        >>> network = TableNet(inputs=3, outputs=[1, 4], width=8)
        >>> z = network.represent(RowBatch(torch.zeros(5, 3), ()))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([5, 8]), [(5, 1), (5, 4)])
    """

    def __init__(
        self,
        inputs: int,
        outputs: Sequence[int],
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*layers(inputs, width, depth, dropout))
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in outputs)

    def represent(self, batch: RowBatch) -> Tensor:
        """Return z of shape (b, width)."""
        features: Tensor = self.trunk(batch.inputs)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one output of shape (b, size) per head."""
        if isinstance(features, Tensor):
            return [head(features) for head in self.heads]
        if len(features) != len(self.heads):
            raise ValueError(f"{len(features)} views of z for {len(self.heads)} heads")
        return [head(view) for head, view in zip(self.heads, features, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the trunk."""
        return self.trunk.parameters()
