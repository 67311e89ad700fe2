"""What the network and the losses are given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowBatch(NamedTuple):
    """b rows of a table.

    Attributes:
        inputs: float32 of shape (b, columns).
        labels: One tensor of shape (b,) per task: float32 and standardized, NaN where missing, for
            regression; int64, -1 where missing, for classification. Empty for rows to predict.
    """

    inputs: Tensor
    labels: tuple[Tensor, ...]


class NewRows(NamedTuple):
    """Rows of another file, encoded as the training rows were.

    Attributes:
        inputs: The rows in the file's order, without labels.
        ids: Columns that go through to the predictions, by name.
        warnings: What is unlike the training rows: new levels, missing and further columns, values
            that could not be read.
    """

    inputs: RowBatch
    ids: dict[str, list[str]]
    warnings: list[str]
