"""What a problem is: tasks, metrics, data, a network, losses and a recipe.

A problem is what :mod:`ntkmtl.bench.training` trains and what ``ntkmtl compare NAME`` names. Its
parts are small protocols, so that a custom problem is one class in a module of the user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "ChosenEpoch",
    "Metric",
    "MultiTaskModel",
    "OnNonFinite",
    "Precision",
    "Prediction",
    "Problem",
    "Recipe",
    "Sample",
    "Schedule",
    "Split",
    "WholeModel",
    "linear_outputs",
]

Split = Literal["train", "val", "test"]

Schedule = Literal["one-cycle", "constant", "plateau", "halved"]
"""How the learning rate changes during a run. See :attr:`Recipe.schedule`."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Precision of a run's forward passes. See :attr:`Recipe.precision`."""

OnNonFinite = Literal["stop", "skip"]
"""What a run does at a NaN or an infinity. See :attr:`Recipe.on_nonfinite`."""

ChosenEpoch = Literal["last", "validation"]
"""Which epoch's network is tested. See :attr:`Recipe.chosen_epoch`."""


@dataclass(frozen=True)
class Metric:
    """One number that a trained network is judged by.

    Attributes:
        name: Short name, the column's head in tables.
        task: Name of the task that it judges.
        unit: Physical unit as printed, ``""`` for none.
        higher_is_better: Direction.
        label: Name as shown to people (may hold Greek letters); ``name`` if empty.
    """

    name: str
    task: str
    unit: str = ""
    higher_is_better: bool = False
    label: str = ""


@dataclass(frozen=True)
class Recipe:
    """How long and how a problem's network is trained.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Peak learning rate of Adam.
        minibatches: The paper's n for methods that read a kernel of mini-batches.
        reduced: True if it is smaller than what the literature uses; tables then say so.
        description: One sentence for tables and reports.
        schedule: ``"one-cycle"``: a rise over the first tenth of the steps, then half a cosine to
            almost 0. ``"constant"``: the learning rate as it is. ``"plateau"``: times
            ``plateau_factor`` whenever the validation split has got no better for more than
            ``plateau_patience`` epochs, judged by Delta-m against :attr:`Problem.reference`, or by
            the metric itself in a single-task run. ``"halved"``: as it is in the first half of
            the epochs, half of it in the second.
        plateau_factor: Above.
        plateau_patience: Above, in epochs.
        min_learning_rate: Where ``"plateau"`` ends.
        tested_epochs: A run's test metrics are means over its last epochs, this number of them, or
            all if there are fewer.
        precision: What forward passes compute in: ``"fp32"``; or, by autocast with parameters and
            losses in fp32, ``"bf16"`` or ``"fp16"``, the latter with a gradient scaler.
        accumulate: Parts that the samples of a step pass through the network in, one after
            another, so that memory is needed for one part only. Each part has its own task weights.
        clip: The gradient's norm over the network's parameters is brought down to it; 0 for none.
        compile: Whether the trunk and each head are compiled by ``torch.compile``.
        on_nonfinite: ``"stop"`` ends the run at a NaN or an infinity; ``"skip"`` leaves the
            step out and counts it.
        weight_decay: Decoupled weight decay of the optimizer (AdamW); 0 for plain Adam.
        chosen_epoch: ``"last"``: the network after the last epoch is tested. ``"validation"``: that
            of the epoch with the least :meth:`Problem.selection`, a loss on the validation split.
        lbfgs_steps: Steps of L-BFGS after these epochs, each over all training samples at once: up
            to 20 iterations with the weights of its first evaluation. Each counts as an epoch.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    minibatches: int = 4
    reduced: bool = False
    description: str = ""
    schedule: Schedule = "one-cycle"
    plateau_factor: float = 0.7
    plateau_patience: int = 10
    min_learning_rate: float = 1e-5
    tested_epochs: int = 1
    precision: Precision = "fp32"
    accumulate: int = 1
    clip: float = 0.0
    compile: bool = False
    on_nonfinite: OnNonFinite = "stop"
    weight_decay: float = 0.0
    chosen_epoch: ChosenEpoch = "last"
    lbfgs_steps: int = 0

    @property
    def total_epochs(self) -> int:
        """Number of epochs, steps of L-BFGS included."""
        return self.epochs + self.lbfgs_steps

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values.

        Those that came later are left out where they have their defaults, so that a run from
        before has the same identity as one of today.

        Example:
            >>> sorted(set(Recipe(1, 2, 0.1, clip=1.0).to_json()) & _LATER)
            ['clip']
        """
        usual = {field.name: field.default for field in fields(self)}
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in _LATER or value != usual[key]
        }


_LATER = frozenset(
    {
        "precision",
        "accumulate",
        "clip",
        "compile",
        "on_nonfinite",
        "weight_decay",
        "chosen_epoch",
        "lbfgs_steps",
    }
)


class Prediction(NamedTuple):
    """The predictions of one task, in the units of its metrics or as classes.

    Attributes:
        values: In the units of the task's metrics for regression, as floats; class numbers (int64)
            for classification. Samples along dimension 0.
        classes: Names of the classes, empty for regression.
        probabilities: Of each class, shape (b, classes); None for regression, and for classes of
            pixels.
        dates: Whether the values are days since 1970-01-01, which are shown as dates.
    """

    values: Tensor
    classes: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    dates: bool = False


class Sample(NamedTuple):
    """One sample, for display.

    Attributes:
        name: What it is called.
        image: Red, green and blue from 0 to 1, shape (3, H, W); None if it is not an image.
        atoms: Atomic numbers (a,) and places in Angstrom (a, 3); None if it is not a molecule.
    """

    name: str
    image: Tensor | None = None
    atoms: tuple[Tensor, Tensor] | None = None


class MultiTaskModel(nn.Module, ABC):
    """A network with a shared trunk and one head per task.

    Attributes:
        private_below: Whether parameters of single tasks lie below the representations, as gates of
            mixtures of experts do. The exact kernel is then that of :meth:`shared_parameters`, not
            of all that the representations depend on.
        has_representation: Whether the losses depend on shared parameters through the
            representation alone. It is False for :class:`WholeModel`.
    """

    private_below: ClassVar[bool] = False
    has_representation: ClassVar[bool] = True

    @abstractmethod
    def represent(self, batch: Any) -> Tensor | list[Tensor]:
        """Return the shared representation z of a batch, samples along dimension 0.

        A network whose tasks read separate features, as attention networks do, returns a list
        with one tensor per task.

        Args:
            batch: What :meth:`Problem.batch` returned, on the network's device.
        """

    @abstractmethod
    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one output per head.

        Args:
            features: z, or one view of z per head, from :func:`ntkmtl.branch`; one tensor per task
                where :meth:`represent` returned that.
        """

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the trunk."""


class WholeModel(MultiTaskModel):
    """A network whose outputs include its own derivatives: forces, residuals of equations.

    Their losses reach every parameter around any representation, so none is named: the Balancer
    finds what the losses share. :meth:`predict` is given the batch itself. Methods that read the
    kernel at a representation refuse such a network.
    """

    has_representation: ClassVar[bool] = False

    def represent(self, batch: Any) -> Any:
        """Return the batch."""
        return batch

    @abstractmethod
    def predict(self, features: Any) -> list[Tensor]:
        """Return one output per task."""

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters."""
        return self.parameters()


class Problem(ABC):
    """A multi-task learning problem.

    Subclasses are registered by name in :mod:`ntkmtl.bench.problems`. In methods, ``outputs`` is
    what :meth:`MultiTaskModel.predict` returned, ``batch`` what :meth:`batch` returned,
    ``indices`` are samples of a split, int64 of shape (b,), and ``tasks`` are those that the
    network was built for, all of them if None.

    Attributes:
        name: Name on the command line.
        summary: One line for ``ntkmtl problems``.
        tasks: Names of the k tasks.
        metrics: What a trained network is judged by, in the order of the table's columns.
        recipe: The training recipe used unless the caller changes it.
        recipes: All its recipes by name, where it has several; it is then created with an option
            ``recipe``, as a recipe may come with its own part of the data and its own network.
        reference: One number per metric that ``"plateau"`` schedules measure Delta-m against.
        reference_words: What each of :meth:`references` is.
        created_with: The options that :func:`ntkmtl.bench.problems.create` was given, with which
            the problem of a run is created again; None where the class was called directly.
        residual_samples: Training samples whose :meth:`task_residuals` are recorded.
        has_baselines: Whether a task can be trained alone, so that Delta-m against such networks
            makes sense. It does not for the conditions of one equation.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    recipes: ClassVar[Mapping[str, Recipe]] = {}
    reference_words: ClassVar[Mapping[str, str]] = {}
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    recipe: Recipe
    reference: tuple[float, ...] | None = None
    created_with: Mapping[str, Any] | None = None
    residual_samples: ClassVar[int] = 32
    has_baselines: ClassVar[bool] = True

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Everything that determines data, network and losses, as JSON values.

        Two problems of equal name and options train the same network on the same numbers: the key
        under which single-task baselines are cached is made of these.
        """

    @abstractmethod
    def size(self, split: Split) -> int:
        """Return the number of samples in a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """

    @abstractmethod
    def batch(self, split: Split, indices: Tensor) -> Any:
        """Return samples of a split as one batch.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            indices: Positions in the split, from 0; int64 of shape (b,).

        Returns:
            In any form that the network and the losses accept.
        """

    @abstractmethod
    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized network from torch's global random state.

        Args:
            tasks: Tasks to build heads for, all of them if None. One task makes the single-task
                baseline.

        Returns:
            A network with one head per task, in the order of ``tasks``.

        Raises:
            ValueError: A task is unknown or named twice.
        """

    @abstractmethod
    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return one scalar training loss per task, None where the batch has no label for it.

        Args:
            outputs: What :meth:`MultiTaskModel.predict` returned, one tensor per task.
            batch: What :meth:`batch` returned.
            tasks: Those that the network was built for, in the order of its heads; all if None.

        Raises:
            ValueError: The number of outputs is not that of tasks, or a task is unknown.
        """

    @abstractmethod
    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the metrics of a network on a split, float64 of shape (number of metrics,).

        The network is left in the mode (train or eval) it was in. With ``tasks``, only the metrics
        of those tasks are returned, in the order of :attr:`metrics`.

        Args:
            model: The network.
            split: ``"train"``, ``"val"`` or ``"test"``, as a whole and without augmentation.
            tasks: Those that the network was built for, in the order of its heads; all if None.

        Raises:
            ValueError: The number of heads is not that of tasks.
        """

    def counts(self, batch: Any, tasks: Sequence[str] | None = None) -> Tensor | None:
        """Return the number of labels per task and sample of a batch, None where each has one.

        A problem whose losses are means over labels of which samples have different numbers, as
        valid pixels, says so here: a mini-batch's share of the batch's loss depends on it.

        Args:
            batch: What :meth:`batch` returned.
            tasks: Those that the network was built for, in the order of its heads; all if None.

        Returns:
            Shape (k, b), or None.
        """
        return None

    def task_residuals(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the residuals of tasks whose loss is a mean of squares, before they are squared.

        ``ntkmtl analyze`` shows their kernels (:func:`ntkmtl.analysis.residual_ntk`).

        Args:
            outputs: What :meth:`MultiTaskModel.predict` returned, one tensor per task.
            batch: What :meth:`batch` returned.
            tasks: Those that the network was built for, in the order of its heads; all if None.

        Returns:
            By task, in any shape, each entry a point; here of no task.
        """
        return {}

    def evaluation_batch(self, split: Split, indices: Tensor) -> Any:
        """Return the batch that networks are evaluated on: :meth:`batch` without augmentation.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            indices: Positions in the split, from 0; int64 of shape (b,).
        """
        return self.batch(split, indices)

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return what a network's outputs say, by task; here the outputs as they are.

        Args:
            outputs: What :meth:`MultiTaskModel.predict` returned, one tensor per task.
            tasks: Those that the network was built for, in the order of its heads; all if None.

        Raises:
            ValueError: The number of outputs is not that of tasks.
        """
        names = self.tasks if tasks is None else tasks
        return {task: Prediction(out) for task, out in zip(names, outputs, strict=True)}

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the labels in the terms of :meth:`predictions`, by task.

        A missing label is NaN, or -1 for a class. Tasks may be left out; here all are.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            indices: Positions in the split, from 0; int64 of shape (b,).
            tasks: Tasks to return the labels of, all if None.
        """
        return {}

    def sample(self, split: Split, index: int) -> Sample:
        """Return a sample for display; here only its number in the split, from 1.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            index: Position in the split, from 0.
        """
        return Sample(f"{split} sample {index + 1:,}")

    def fitted(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what new inputs are encoded with, as JSON values and as tensors by name.

        A run keeps it beside its network, for :meth:`from_fitted`. Here there is nothing.
        """
        return {}, {}

    @classmethod
    def from_fitted(
        cls, arguments: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Problem:
        """Return the problem without its data, to predict new inputs.

        Args:
            arguments: :attr:`created_with` of the problem that was trained.
            values: JSON values of :meth:`fitted`.
            tensors: Tensors of :meth:`fitted`.

        Raises:
            ValueError: The problem cannot be used without its data.
        """
        raise ValueError(f"{cls.__name__} cannot be used without its data")

    def selection(self, model: MultiTaskModel, tasks: Sequence[str] | None = None) -> float:
        """Return what an epoch is chosen by, lower is better.

        Here the mean over metrics of the logarithm on the validation split, with the sign of its
        direction, so that it does not depend on units.

        Args:
            model: The network after the epoch.
            tasks: Those that the network was built for, in the order of its heads; all if None.
        """
        chosen = self.tasks if tasks is None else tasks
        values = self.evaluate(model, "val", tasks).clamp(min=1e-30).log()
        signs = [-1.0 if m.higher_is_better else 1.0 for m in self.metrics if m.task in chosen]
        return float((values * torch.tensor(signs, dtype=values.dtype)).mean())

    def references(self) -> dict[str, Tensor]:
        """Return the test metrics of models to compare with that are not networks, by name.

        Returns:
            float64 of shape (number of metrics,) each; here there are none.
        """
        return {}

    def describe(self) -> str:
        """Return one paragraph on data and network for reports."""
        return self.summary

    def notice(self) -> str:
        """Return what to show before training, as how data was read; ``""`` for nothing."""
        return ""


def batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of one shuffled epoch, leaving out a last incomplete batch.

    Args:
        size: Number of samples.
        batch_size: Samples per batch.
        generator: Source of the order.

    Yields:
        int64 tensors of shape (batch_size,), on the generator's device.

    Example:
        >>> import torch
        >>> [b.shape[0] for b in batches(10, 4, torch.Generator().manual_seed(0))]
        [4, 4]
    """
    order = torch.randperm(size, generator=generator, device=generator.device)
    for start in range(0, size - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def linear_outputs(heads: nn.ModuleList, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Apply linear heads of one output each.

    Args:
        heads: The k heads.
        features: z, or one view of it per head.

    Returns:
        k tensors of shape (b,).
    """
    views = [features] * len(heads) if isinstance(features, Tensor) else features
    return [head(view).squeeze(1) for head, view in zip(heads, views, strict=True)]
