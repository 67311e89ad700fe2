"""What an estimator learns from and with: targets column by column, a network, its losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.balance import Balancer
from ntkmtl.errors import imports_for

if TYPE_CHECKING:
    from ntkmtl.weighting import Weighting

Kind = Literal["regression", "classification"]
Array = Any

LEAST_HELD_OUT = 20


def as_pandas(data: Any) -> Any:
    """Return a data frame of another library, as polars, as one of pandas; all else as it is."""
    if hasattr(data, "iloc") or not hasattr(data, "columns"):
        return data
    if hasattr(data, "__arrow_c_stream__"):
        with imports_for(f"{type(data).__module__.partition('.')[0]}'s data frames"):
            import pyarrow as pa
        return pa.table(data).to_pandas(date_as_object=False)
    if hasattr(data, "__dataframe__"):
        return pd.api.interchange.from_dataframe(data)
    return data


def split_columns(y: Any) -> tuple[list[Array], list[str] | None, bool]:
    """Return targets column by column, any names, and whether they are one column of an array.

    Raises:
        ValueError: They are sparse, or have another number of dimensions.
    """
    if hasattr(y, "iloc") and hasattr(y, "columns"):
        columns = [y.iloc[:, place].to_numpy() for place in range(y.shape[1])]
        return columns, [str(name) for name in y.columns], False
    if issparse(y):
        raise ValueError("y is sparse: pass y.toarray()")
    array = np.asarray(y)
    if isinstance(y, list | tuple) and array.dtype.kind in "US":
        array = np.asarray(y, dtype=object)  # numbers beside strings stay numbers
    if array.ndim not in (1, 2):
        raise ValueError(f"y must have one or two dimensions, found {array.ndim}")
    flat = array.ndim == 1
    return [array] if flat else list(array.T), None, flat


def declared_kinds(y: Any, count: int) -> list[Kind | None]:
    """Return what the types of pandas say of targets: one of type category has classes."""
    if not hasattr(y, "dtypes"):
        return [None] * count
    types = y.dtypes if hasattr(y, "columns") else [y.dtype]
    return ["classification" if isinstance(t, pd.CategoricalDtype) else None for t in types]


def kind_of(column: Array) -> Kind:
    """Return what a column of targets looks like: numbers are regressed, all else classified."""
    numbers = all(
        isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_)
        for value in column.tolist()
        if not pd.isna(value)
    )
    return "regression" if numbers else "classification"


class TargetColumn:
    """A column of the targets: its kind, its classes or its scale, and its labels for training.

    Raises:
        ValueError: It has no label, one class only, or numbers that are infinite.
    """

    def __init__(self, name: str, column: Array, kind: Kind) -> None:
        self.name, self.kind = name, kind
        missing = np.asarray(pd.isna(column), dtype=bool)
        if missing.all():
            raise ValueError(f"target {name} has no label")
        known = column[~missing]
        if kind == "classification":
            self.classes, codes = np.unique(_class_names(name, known), return_inverse=True)
            if len(self.classes) < 2:
                raise ValueError(
                    f"target {name} must have at least two classes, found one class only, "
                    f"{self.classes.tolist()[0]!r}"
                )
            self.labels = torch.full((len(column),), -1)
            self.labels[torch.from_numpy(~missing)] = torch.from_numpy(codes.reshape(-1))
            return
        try:
            numbers = known.astype(np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"target {name} is regressed and holds no numbers: {error}") from error
        values = np.full(len(column), np.nan)
        values[~missing] = check_array(numbers.reshape(-1, 1), input_name="y").ravel()
        center, deviation = standardization(values[~missing].reshape(-1, 1))
        self.center, self.scale = float(center[0]), float(deviation[0]) or 1.0
        self.labels = torch.from_numpy(standardized(values, self.center, self.scale)).float()

    @property
    def size(self) -> int:
        """Numbers that its head says."""
        return len(self.classes) if self.kind == "classification" else 1

    def loss(self, output: Tensor, labels: Tensor) -> Tensor | None:
        """Return the mean loss of the rows with a label, None where there is none."""
        known = labels >= 0 if self.kind == "classification" else ~labels.isnan()
        if not known.any():
            return None
        if self.kind == "classification":
            return functional.cross_entropy(output[known], labels[known])
        return functional.mse_loss(output[known, 0], labels[known])

    def said(self, output: Tensor) -> Array:
        """Return predictions from the head's outputs."""
        if self.kind == "classification":
            return self.classes[output.argmax(1).numpy()]
        return output[:, 0].numpy() * self.scale + self.center


def _class_names(name: str, known: Array) -> Array:
    """Return the labels of a classified target as an array of strings, whole numbers or booleans.

    Raises:
        ValueError: They are something else, or of several types.
    """
    for value in known.tolist():
        if not isinstance(value, str | bytes | Real):
            raise ValueError(
                f"target {name} must have numbers, or classes that are strings, whole numbers or "
                f"booleans. Found {value!r}, a {type(value).__name__}."
            )
    if len({isinstance(value, str) for value in known.tolist()}) > 1:
        raise ValueError(f"target {name} has classes that are strings and others that are not")
    if known.dtype.kind == "U" and (known == "nan").any():
        raise ValueError(
            f"target {name} has the class 'nan', which NumPy makes of NaN among strings. Give an "
            "array of dtype object, with None where a label is missing."
        )
    labels = np.asarray(known.tolist())
    check_classification_targets(labels)
    return labels


def standardization(values: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column, of numbers of any size."""
    # Squares of the largest floats are infinite, and those of the smallest are 0.
    largest = np.abs(values).max(0)
    largest[largest == 0] = 1.0
    scaled = values / largest
    deviation = np.where(values.min(0) == values.max(0), 0.0, scaled.std(0) * largest)
    return scaled.mean(0) * largest, deviation


def standardized(values: Array, center: Array, scale: Array) -> Array:
    # Halves: the difference of two of the largest floats would be infinite.
    return (values / 2 - center / 2) / scale * 2


def parted(rows: int, fraction: float, targets: Sequence[TargetColumn]) -> tuple[Tensor, Tensor]:
    """Return the rows held out, and those trained on: at least one of each target and class."""
    held = round(fraction * rows)
    order = torch.randperm(rows)
    held = held if held >= LEAST_HELD_OUT else 0
    validation, training = order[:held], order[held:]
    needed = torch.zeros(held, dtype=torch.bool)
    for target in targets:
        aside, used = target.labels[validation], target.labels[training]
        if target.kind == "classification":
            needed |= (aside >= 0) & ~torch.isin(aside, used)
        elif used.isnan().all():
            needed |= ~aside.isnan()
    return validation[~needed], torch.cat([training, validation[needed]])


class TargetNetwork(nn.Module):
    """A perceptron with one linear head per target."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(inputs, size) for size in outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.trunk(x)
        return [head(z) for head in self.heads]


class TargetLearner:
    """Balances the losses of a network; one target alone is trained plainly."""

    def __init__(
        self,
        network: TargetNetwork,
        targets: Sequence[TargetColumn],
        method: str | Weighting,
        options: Mapping[str, Any],
    ) -> None:
        self.network, self.targets = network, targets
        names = [target.name for target in targets]
        self.balancer = Balancer(copy.deepcopy(method), tasks=names, **options)
        if self.balancer.weighting.needs_scores:
            raise ValueError(
                f"{self.balancer.method} learns from single-task networks, which only "
                "`ntkmtl compare` and `ntkmtl run` train: use another method"
            )
        self.alone = len(targets) == 1

    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.balancer.parameters()]

    def losses(self, X: Tensor, rows: Tensor) -> dict[str, Tensor | None]:
        outputs = self.network(X[rows])
        return {
            target.name: target.loss(output, target.labels[rows])
            for target, output in zip(self.targets, outputs, strict=True)
        }

    def backward(self, X: Tensor, rows: Tensor) -> None:
        losses = self.losses(X, rows)
        present = [loss for loss in losses.values() if loss is not None]
        if self.alone and present:
            if not present[0].isfinite():
                raise FloatingPointError(
                    f"the loss became {float(present[0])}: lower learning_rate, and look for "
                    "inputs or targets of extreme size"
                )
            present[0].backward()
        elif present:
            self.balancer.backward(losses)

    def after_step(self, X: Tensor, rows: Tensor) -> None:
        if self.balancer.needs_after_step and not self.alone:
            self.balancer.after_step(lambda: self.losses(X, rows))

    def end_epoch(self) -> None:
        if not self.alone:
            self.balancer.end_epoch()

    def relative_loss(self, X: Tensor, rows: Tensor) -> float:
        """Return the mean of the targets' losses, each relative to a guess that knows no input."""
        with torch.no_grad():
            losses = self.losses(X, rows)
        found = [
            float(loss) / (math.log(target.size) if target.kind == "classification" else 1.0)
            for target, loss in zip(self.targets, losses.values(), strict=True)
            if loss is not None
        ]
        return sum(found) / len(found) if found else math.inf
