"""The network, residual blocks and one linear head per task, and its recipe."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.base import Recipe


class RowBatch(NamedTuple):
    """b rows of a table.

    Attributes:
        inputs: float32 of shape (b, columns).
        labels: One tensor of shape (b,) per task: float32 and standardized, NaN where missing, for
            regression; int64, -1 where missing, for classification. Empty for rows to predict.
    """

    inputs: Tensor
    labels: tuple[Tensor, ...]


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
    """Return the trunk: a linear layer and ``depth - 1`` residual blocks, each of them a stage.

    A linear dependence passes through untouched, as small tables have little else that can be
    learned. Gates read the row.

    Args:
        inputs: Numbers that describe a row.
        width: Width of every layer, and so size d of the shared representation z.
        depth: Number of layers, the linear one included.
        dropout: Probability of dropping an entry of a block's hidden layer.

    Example:
        >>> import torch
        >>> trunk = backbone(inputs=3, width=8, depth=2, dropout=0.0)
        >>> trunk.encoder()(trunk.read(RowBatch(torch.zeros(5, 3), ()))).shape
        torch.Size([5, 8])
    """
    return Backbone(
        partial(layers, inputs, width, depth, dropout),
        widths=(width,) * depth,
        gate=_inputs,
        gate_width=inputs,
        read=_inputs,
    )


# ------------------------------------------------------------------------------------------------
# How large it is and how it is trained, by the number of rows

STEPS = 2_500


def recipe_for(rows: int) -> Recipe:
    """Return the recipe for so many training rows.

    Small tables get small batches and many epochs, so that every table gets about 2,500 steps and
    at least two epochs; the epoch is chosen on the validation split.

    Args:
        rows: Number of training rows, at least 8.

    Example:
        >>> for rows in (100, 538, 6_387, 1_000_000):
        ...     found = recipe_for(rows)
        ...     print(found.epochs, found.batch_size)
        208 8
        156 32
        104 256
        3 1024
    """
    batch = 8
    while batch < 1024 and batch * 2 <= rows / 16:
        batch *= 2
    epochs = max(2, round(STEPS / (rows // batch)))
    return Recipe(
        epochs=epochs,
        batch_size=batch,
        learning_rate=2e-3,
        minibatches=4,
        weight_decay=1.0,
        chosen_epoch="validation",
        description=(
            f"The package's recipe for {rows:,} training rows, about {STEPS:,} steps and at least "
            "2 epochs; nothing tuned to this table but the epoch"
        ),
    )


def default_width(rows: int) -> int:
    """Return the width of the network for so many training rows."""
    return 64 if rows < 1_000 else 128 if rows < 20_000 else 256
