"""What the network and the losses are given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """b rows of a table.

    Attributes:
        inputs: float32 of shape (b, columns).
        labels: One tensor of shape (b,) per task: float32 and standardized, NaN where missing, for
            regression; int64, -1 where missing, for classification.
    """

    inputs: Tensor
    labels: tuple[Tensor, ...]
