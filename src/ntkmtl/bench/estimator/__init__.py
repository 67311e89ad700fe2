"""Estimators for scikit-learn: a small network with one head per target, its losses balanced.

A column of the targets that holds numbers is regressed, any other is classified; a label may be
missing. Inputs are numeric arrays or DataFrames of numeric columns: categories and missing inputs
are for the steps before, in a pipeline.

Example:
    >>> import numpy as np
    >>> from ntkmtl.bench import MultiTaskEstimator
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> y = np.empty((200, 2), dtype=object)
    >>> y[:, 0] = X[:, 0] + 10
    >>> y[:, 1] = np.where(X[:, 1] > 0, "high", "low")
    >>> y[:50, 1] = None  # labels that are missing
    >>> estimator = MultiTaskEstimator(max_steps=300, random_state=0).fit(X, y)
    >>> estimator.kinds_
    ['regression', 'classification']
    >>> estimator.predict(X).shape, estimator.score(X, y) > 0.9
    ((200, 2), True)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ntkmtl.errors import missing_extra

try:
    import numpy as np
    import pandas as pd
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

    from ntkmtl.bench.estimator._learning import (
        Array,
        Kind,
        TargetColumn,
        TargetLearner,
        TargetNetwork,
        as_pandas,
        declared_kinds,
        kind_of,
        parted,
        split_columns,
        standardization,
        standardized,
    )
except ImportError as error:
    raise missing_extra("estimators", "bench", error) from error

if TYPE_CHECKING:
    from ntkmtl.weighting import Weighting

__all__ = ["MultiTaskClassifier", "MultiTaskEstimator", "MultiTaskRegressor"]

# Fitted estimators that earlier versions pickled name these classes so.
_Net, _Target = TargetNetwork, TargetColumn

LEAST_STEPS, MOST_STEPS, STEPS_PER_ROW = 200, 2_500, 10


def _classifies(estimator: MultiTaskEstimator) -> bool:
    if "classification" not in getattr(estimator, "kinds_", ["classification"]):
        raise AttributeError("no target is classified, so there are no probabilities")
    return True


class MultiTaskEstimator(BaseEstimator):  # type: ignore[misc]
    """Predicts several targets, numbers and classes, by one network whose losses are balanced.

    Inputs and numeric targets are standardized. A part of the rows is held out, and the network of
    the epoch with the least loss on it is kept.

    Args:
        method: What balances the losses: a name that ``ntkmtl methods`` lists, or a weighting.
        method_options: Further options of :class:`ntkmtl.Balancer`, as a mapping.
        kinds: ``"regression"`` or ``"classification"`` for each target, by position or by name; of
            all where it is one string. If None, columns of numbers are regressed and all others
            classified, those of pandas' type category among them.
        hidden_layer_sizes: Widths of the layers that the targets share.
        learning_rate: Peak learning rate of Adam, in one cycle.
        batch_size: Rows of a step; about a sixteenth of all, from 8 to 256, if None.
        max_steps: Steps; 10 per row, at least 200 and at most 2,500, if None.
        validation_fraction: Share of the rows held out; none where these are fewer than 20.
        random_state: Seed of the initial weights, of the rows held out and of the order of rows.

    Attributes:
        kinds_: The kind of each target.
        target_names_: Names of the targets: columns of a DataFrame, else y0, y1, ...
        classes_: Of each classified target; the array itself if ``y`` was one column.
        n_features_in_: Number of inputs.
        feature_names_in_: Names of the inputs, where ``X`` was a DataFrame.
        network_: The network, in float64.
        n_steps_: Steps taken.
        best_epoch_: The epoch that was kept, from 0.

    Example:
        See :mod:`ntkmtl.bench.estimator`.
    """

    _kind: Kind | None = None
    network_: nn.Module

    def __init__(
        self,
        method: str | Weighting = "ntkmtl-auto",
        *,
        method_options: Mapping[str, Any] | None = None,
        kinds: Kind | Sequence[Kind] | Mapping[Any, Kind] | None = None,
        hidden_layer_sizes: Sequence[int] = (64, 64),
        learning_rate: float = 5e-3,
        batch_size: int | None = None,
        max_steps: int | None = None,
        validation_fraction: float = 0.15,
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.method_options = method_options
        self.kinds = kinds
        self.hidden_layer_sizes = hidden_layer_sizes
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    # ------------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any) -> MultiTaskEstimator:
        """Train the network.

        Args:
            X: Inputs, shape (rows, inputs).
            y: Targets, shape (rows,) or (rows, k), of any types; NaN or None where one is missing.

        Returns:
            The estimator.

        Raises:
            ValueError: An option is out of range, inputs are not finite numbers, or a target has no
                label or one class only.
            TypeError: Inputs are dates or sparse.
            NonFiniteError: A loss became NaN or infinite.
        """
        self._check_options()
        X, y = as_pandas(X), as_pandas(y)
        _refuse_dates(X)
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        columns = self._columns_of(y, len(X))
        self.kinds_ = self._kinds_of(columns, declared_kinds(y, len(columns)))
        targets = [
            TargetColumn(name, column, kind)
            for name, column, kind in zip(self.target_names_, columns, self.kinds_, strict=True)
        ]
        self._mean, self._deviation = standardization(X)
        self._deviation[self._deviation < 1e-12 * np.abs(self._mean).clip(1e-300)] = 1.0
        random = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.randint(2**31 - 1))
            self._train(self._scaled(X).float(), targets)
        # In float64 a row's prediction does not depend on the rows beside it.
        self.network_ = self.network_.double().eval()
        for target in targets:
            del target.labels
        self._targets = targets
        return self

    def _check_options(self) -> None:
        for name in ("batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value):
                raise ValueError(f"{name} must be at least 1, a whole number. Found {value!r}.")
        widths = self.hidden_layer_sizes
        if not isinstance(widths, Sequence | np.ndarray) or not all(map(_is_whole, widths)):
            raise ValueError(
                f"hidden_layer_sizes must be a list of whole numbers from 1. Found {widths!r}."
            )
        if not isinstance(self.method_options or {}, Mapping):
            raise ValueError(
                f"method_options must be a dict of settings. Found {self.method_options!r}."
            )
        if "tasks" in (self.method_options or {}):
            raise ValueError("method_options cannot name tasks: they are the targets")
        for name in ("validation_fraction", "learning_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{name} must be a number. Found {value!r}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must be from 0 to below 1. Found "
                f"{self.validation_fraction!r}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive. Found {self.learning_rate!r}.")

    def _columns_of(self, y: Any, rows: int) -> list[Array]:
        """Return the targets column by column, and note names and shape."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        columns, names, self._flat = split_columns(y)
        self._named = names is not None
        if any(column.dtype.kind in "cmM" for column in columns):
            raise ValueError("targets must be numbers or classes, found complex numbers or dates")
        if not columns:
            raise ValueError("y has no column, and each one is a target")
        if len(columns[0]) != rows:
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"{[rows, len(columns[0])]}"
            )
        self.target_names_ = names or [f"y{place}" for place in range(len(columns))]
        if len(set(self.target_names_)) < len(columns):
            raise ValueError(f"two targets have one name: {', '.join(self.target_names_)}")
        return columns

    def _kinds_of(self, columns: Sequence[Array], declared: Sequence[Kind | None]) -> list[Kind]:
        """Return the kind of each target.

        Raises:
            ValueError: What was asked for does not fit the targets.
        """
        asked = self._kind or self.kinds
        if isinstance(asked, Mapping):
            asked = {str(name): kind for name, kind in asked.items()}
            if unknown := sorted(set(asked) - set(self.target_names_)):
                raise ValueError(
                    f"kinds names {unknown[0]!r}, and the targets are "
                    f"{', '.join(self.target_names_)}"
                )
            given: list[Any] = [asked.get(name) for name in self.target_names_]
        elif asked is None or isinstance(asked, str):
            given = [asked] * len(columns)
        else:
            given = list(asked)
        if len(given) != len(columns):
            raise ValueError(f"kinds has {len(given)} entries for {len(columns)} targets")
        found = [
            kind or said or kind_of(column)
            for kind, said, column in zip(given, declared, columns, strict=True)
        ]
        for kind in found:
            if kind not in ("regression", "classification"):
                raise ValueError(f"a kind is regression or classification. Found {kind!r}.")
        return found

    def _train(self, X: Tensor, targets: Sequence[TargetColumn]) -> None:
        validation, training = parted(len(X), self.validation_fraction, targets)
        # An int: torch takes none of NumPy's, as scipy.stats.randint draws them.
        batch = min(int(self.batch_size or _batch_size(len(training))), len(training))
        steps = self.max_steps or min(MOST_STEPS, max(LEAST_STEPS, STEPS_PER_ROW * len(training)))
        self.network_ = network = TargetNetwork(
            X.shape[1], self.hidden_layer_sizes, [t.size for t in targets]
        )
        learner = TargetLearner(network, targets, self.method, self.method_options or {})
        optimizer = torch.optim.Adam(learner.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=max(2, steps)
        )
        per_epoch = len(training) // batch
        self.n_steps_, self.best_epoch_, least = 0, 0, math.inf
        best: dict[str, Tensor] = {}
        for epoch in range(-(-steps // per_epoch)):
            for rows in training[torch.randperm(len(training))].split(batch)[:per_epoch]:
                if self.n_steps_ == steps:
                    break
                optimizer.zero_grad()
                learner.backward(X, rows)
                optimizer.step()
                learner.after_step(X, rows)
                schedule.step()
                self.n_steps_ += 1
            learner.end_epoch()
            if len(validation) and (loss := learner.relative_loss(X, validation)) < least:
                least, self.best_epoch_ = loss, epoch
                best = copy.deepcopy(self.network_.state_dict())
        if best:
            self.network_.load_state_dict(best)
        elif not len(validation):
            self.best_epoch_ = epoch

    # ------------------------------------------------------------------ predicting

    def _scaled(self, X: Array) -> Tensor:
        return torch.from_numpy(standardized(X, self._mean, self._deviation))

    def _outputs(self, X: Any) -> list[Tensor]:
        check_is_fitted(self)
        X = as_pandas(X)
        _refuse_dates(X)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            outputs: list[Tensor] = self.network_(self._scaled(X))
        return outputs

    def predict(self, X: Any) -> Array:
        """Return the predictions.

        Args:
            X: Inputs, shape (rows, inputs).

        Returns:
            Shape (rows,) if ``y`` was one column of an array, else (rows, k): floats if all
            targets are numbers, else the classes, as objects where types are mixed.
        """
        outputs = self._outputs(X)
        said = [t.said(out) for t, out in zip(self._targets, outputs, strict=True)]
        if self._flat:
            return said[0]
        if len({column.dtype.kind for column in said}) > 1:
            mixed = np.empty((len(said[0]), len(said)), dtype=object)
            for place, column in enumerate(said):
                mixed[:, place] = column
            return mixed
        return np.stack(said, axis=1)

    @available_if(_classifies)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes in :attr:`classes_`.

        Args:
            X: Inputs, shape (rows, inputs).

        Returns:
            Shape (rows, classes) if ``y`` was one column of an array, else a list of these, one
            per classified target.
        """
        outputs = self._outputs(X)
        shares = [
            output.softmax(1).numpy()
            for target, output in zip(self._targets, outputs, strict=True)
            if target.kind == "classification"
        ]
        return shares[0] if self._flat else shares

    def score(self, X: Any, y: Any) -> float:
        """Return the mean over the targets of R² for numbers and of accuracy for classes.

        Args:
            X: Inputs, shape (rows, inputs).
            y: Targets; rows without a label do not count for that target.

        Raises:
            ValueError: They are not the targets that it was fitted on, or one has no label.
        """
        predictions = self.predict(X)
        said = predictions.reshape(len(predictions), -1)
        true, given, _ = split_columns(as_pandas(y))
        if self._named and given is not None and given != self.target_names_:
            raise ValueError(
                f"the targets are {', '.join(self.target_names_)}, in this order. Found "
                f"{', '.join(given)}."
            )
        if len(true) != len(self.target_names_):
            raise ValueError(f"y must have {len(self.target_names_)} targets. Found {len(true)}.")
        check_consistent_length(said, true[0])
        scores = []
        for place, kind in enumerate(self.kinds_):
            known = ~np.asarray(pd.isna(true[place]), dtype=bool)
            if not known.any():
                raise ValueError(f"target {self.target_names_[place]} has no label")
            pair = (each[known] for each in (true[place], said[:, place]))
            if kind == "regression":
                scores.append(float(r2_score(*(each.astype(np.float64) for each in pair))))
            else:
                scores.append(float(accuracy_score(*(np.asarray(e.tolist()) for e in pair))))
        return float(np.mean(scores))

    @property
    def classes_(self) -> Any:
        """The classes of each classified target; the array itself if ``y`` was one column.

        Raises:
            AttributeError: The estimator is not fitted, or no target is classified.
        """
        if "_targets" not in vars(self) or "classification" not in self.kinds_:
            raise AttributeError(f"{type(self).__name__} has no classes_")
        found = [target.classes for target in self._targets if target.kind == "classification"]
        return found[0] if self._flat else found

    def __sklearn_is_fitted__(self) -> bool:
        return "_targets" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags


class MultiTaskRegressor(RegressorMixin, MultiTaskEstimator):  # type: ignore[misc]
    """A :class:`MultiTaskEstimator` whose targets are all numbers.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> y = X @ [[1, 2], [3, 4]]
        >>> MultiTaskRegressor(max_steps=300, random_state=0).fit(X, y).score(X, y) > 0.9
        True
    """

    _kind: Kind | None = "regression"
    score = MultiTaskEstimator.score


class MultiTaskClassifier(ClassifierMixin, MultiTaskEstimator):  # type: ignore[misc]
    """A :class:`MultiTaskEstimator` whose targets are all classes.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> MultiTaskClassifier(max_steps=300, random_state=0).fit(X, X > 0).score(X, X > 0) > 0.9
        True
    """

    _kind: Kind | None = "classification"
    score = MultiTaskEstimator.score


def _refuse_dates(X: Any) -> None:
    """Refuse inputs that are dates: they are numbers of a unit that may change until predicting.

    Raises:
        TypeError: There are such.
    """
    named = hasattr(X, "columns")
    kinds = zip(X.columns, X.dtypes, strict=True) if named else [("X", getattr(X, "dtype", None))]
    names = [str(name) for name, kind in kinds if getattr(kind, "kind", "") in ("m", "M")]
    if names:
        raise TypeError(
            f"inputs must be numbers, found dates or times in {', '.join(names)}: make numbers of "
            "them, as days since the first one"
        )


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def _batch_size(rows: int) -> int:
    """Return the rows of a step: a power of two of about a sixteenth of all, from 8 to 256."""
    return int(min(256, max(8, 2 ** int(math.log2(max(1, rows / 16))))))
