"""The problem ``celeba``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems._arrays import data_folder, last_change
from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems._supervised import (
    LEAST,
    SPLITS,
    ColumnsProblem,
    chosen_recipe,
    enough,
    fitted,
    paired,
    positions,
    refuse_unfit,
    shuffled,
)
from ntkmtl.bench.problems.architectures import choose
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Prediction, Recipe, Sample, Split
from ntkmtl.bench.problems.celeba._network import CelebANetwork, FaceBatch, backbone, head
from ntkmtl.bench.problems.celeba._store import ATTRIBUTES, HOW, IMAGES, SIDE, Faces, load

__all__ = ["CelebA", "FaceBatch", "f1_scores"]

MODEL_VERSION = "nine-layer 1"
"""Changes with everything in inputs, network and losses that changes a trained network."""

EVALUATED = 256
"""Images in a batch of an evaluation."""

SMALL = (
    *("Attractive", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Smiling"),
    *("Wavy_Hair", "Wearing_Lipstick"),
)
"""The eight attributes whose two values are nearest to equally frequent in the first 4,000 images.

Few of these images have a rarer attribute, and an F1 score on some hundred of them says little.
"""


@dataclass(frozen=True)
class _ImagePart:
    """The part of the data and the network that a recipe takes."""

    attributes: tuple[str, ...]
    side: int
    width: int


PARTS = {
    "paper": _ImagePart(ATTRIBUTES, side=SIDE, width=64),
    "small": _ImagePart(SMALL, side=SIDE // 2, width=16),
}
SMALL_SIZES = (800, 400, 2_800)
"""Images for testing, validation and training."""


def f1_scores(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the F1 score of each of k binary tasks, 0 where nothing is predicted rightly.

    Args:
        predicted: True where an attribute is predicted, shape (b, k).
        labels: True where it is there, shape (b, k).

    Returns:
        ``2 TP / (2 TP + FP + FN)``, float64 of shape (k,).

    Example:
        >>> import torch
        >>> yes = torch.tensor([[True, False], [True, False], [False, False]])
        >>> f1_scores(yes, torch.tensor([[True, True], [False, False], [False, False]]))
        tensor([0.6667, 0.0000], dtype=torch.float64)
    """
    right = (predicted & labels).sum(0).double()
    said, there = predicted.sum(0).double(), labels.sum(0).double()
    return 2 * right / (said + there).clamp_min(1)


@lru_cache(maxsize=2)
def _load(folder: Path, changed: int) -> tuple[Faces, str]:
    """Return the data. ``changed`` is the time at which they were made."""
    return load(folder)


class CelebA(ColumnsProblem):
    """Attributes of faces, with the field's nine-layer convolutional network.

    Losses are binary cross-entropies; metrics are F1 scores.

    Args:
        recipe: ``"paper"``: all 202,599 images at 64 x 64 in the official partition, 40 attributes,
            and the network at its published width. ``"small"``: the first 4,000 images at 32 x 32,
            split at random, eight attributes, and a quarter of the width; where there are fewer
            images, all of them in the same shares.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/celeba``, or in the user's cache.
        architecture: How much the tasks share: ``hard``, ``cross-stitch``, ``mmoe``, ``cgc``,
            ``ple`` or ``dselect-k``. See :mod:`ntkmtl.bench.problems.architectures`.
        architecture_options: Settings of the architecture, as a mapping.
        split: A JSON or CSV file with the images of the three splits, as ``"000001.jpg"`` or 1,
            instead of the recipe's; see
            :func:`~ntkmtl.bench.problems._supervised.custom_split`. All images may then be of
            any number.

    Raises:
        ValueError: The recipe, the architecture or one of its settings is unknown or out of range,
            the data are damaged, the split cannot be used, or images are missing.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "celeba"
    summary: ClassVar[str] = PROBLEMS["celeba"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "paper": Recipe(
            epochs=15,
            batch_size=256,
            learning_rate=3e-4,
            minibatches=4,
            description="The settings of the paper's Table 2 and Appendix C.2.",
            schedule="constant",
        ),
        "small": Recipe(
            epochs=10,
            batch_size=64,
            learning_rate=2e-3,
            minibatches=4,
            reduced=True,
            description=(
                "8 of 40 attributes, 2,800 training images of 32 x 32 and a quarter of the "
                "network's width, where the paper has 162,770 images of 64 x 64. All images are "
                "from the official training partition, split here."
            ),
        ),
    }
    tasks: tuple[str, ...] = ATTRIBUTES
    metrics: tuple[Metric, ...] = tuple(
        Metric(name, task=name, higher_is_better=True, label=name.replace("_", " "))
        for name in ATTRIBUTES
    )

    def __init__(
        self,
        recipe: str = "paper",
        data: str | None = None,
        architecture: str = "hard",
        architecture_options: Mapping[str, Any] | None = None,
        split: str | None = None,
    ) -> None:
        self.recipe = chosen_recipe(self.recipes, recipe)
        self._architecture = choose(architecture, architecture_options)
        self._part = PARTS[recipe]
        self.tasks = self._part.attributes
        self.metrics = tuple(metric for metric in type(self).metrics if metric.task in self.tasks)
        folder = data_folder("celeba", data)
        self._faces, self._sha256 = _load(folder, last_change(folder))
        self._accepted = self._faces.accepted
        if split is None:
            self._rows, self._split_said = self._split(recipe, folder)
        else:
            self._use_names(split)
        self.recipe = fitted(self.recipe, self.size("train"), self._sizes_said)
        columns = [ATTRIBUTES.index(task) for task in self.tasks]
        self._labels = torch.from_numpy(self._faces.labels[:, columns].copy())
        refuse_unfit(self)

    def _split(self, recipe: str, folder: Path) -> tuple[dict[Split, Tensor], str]:
        """Return the rows of each split, and what the split is called in a run's identity."""
        numbers = self._faces.numbers.tolist()
        if recipe == "paper":
            enough(recipe, IMAGES, len(numbers), "images", folder, HOW)
            official = torch.from_numpy(np.array(self._faces.partition))
            rows = {name: (official == k).nonzero()[:, 0] for k, name in enumerate(SPLITS)}
            return rows, "official"
        order = shuffled("celeba split", numbers[: sum(SMALL_SIZES)])
        enough(recipe, sum(SMALL_SIZES), len(order), "images", folder, HOW, LEAST)
        return self._share_out(order, SMALL_SIZES, "images"), "SHA-256 of the image's number"

    def _use_names(self, path: str) -> None:
        """Take the splits from a file of the user, which names images by name or number."""
        known = {
            name: row
            for row, number in enumerate(self._faces.numbers.tolist())
            for name in (str(number), f"{number:06d}.jpg")
        }
        self._use_lists(path, known, "images", "they are called 000001.jpg or 1")

    @property
    def options(self) -> dict[str, Any]:
        """Data, split, attributes, network and loss."""
        return {
            "data_sha256": self._sha256,
            "split": self._split_said,
            "attributes": list(self.tasks),
            "model": MODEL_VERSION,
            "side": self._part.side,
            "width": self._part.width,
            "loss": "bce",
            **self._architecture.options,
        }

    def _take(self, rows: Tensor) -> FaceBatch:
        pixels = torch.from_numpy(self._faces.images[rows.numpy()])
        images = pixels.permute(0, 3, 1, 2).float() / 255
        if self._part.side != SIDE:
            images = functional.avg_pool2d(images, SIDE // self._part.side)
        return FaceBatch(images.contiguous(), self._labels[rows].float())

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized network.

        See :class:`~ntkmtl.bench.problems.celeba.CelebANetwork`; other architectures are over its
        trunk.
        """
        count, width = len(positions(self.tasks, tasks)), self._part.width
        if self._architecture.name == "hard":
            return CelebANetwork(count, width)
        return self._architecture.build(backbone(width), [partial(head, width)] * count)

    @staticmethod
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the binary cross-entropy of a task."""
        return functional.binary_cross_entropy_with_logits(outputs, labels)

    @staticmethod
    def labels(batch: FaceBatch) -> Tensor:
        """Return the labels of a batch, shape (b, k)."""
        return batch.labels

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return each task's F1 score; an attribute is predicted where its logit is above 0."""
        rows = self._rows[split]
        columns, logits = self._predicted(model, rows, EVALUATED, tasks)
        return f1_scores(torch.cat(logits) > 0, self._labels[rows][:, columns] > 0)

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return whether each attribute is there, and the probabilities of no and yes."""
        found = {}
        for column, output in paired(self.tasks, outputs, tasks):
            yes = output.double().sigmoid()
            shares = torch.stack([1 - yes, yes], dim=1)
            found[self.tasks[column]] = Prediction((output > 0).long(), ("no", "yes"), shares)
        return found

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return 1 where an attribute is there, else 0."""
        rows = (self._labels[self._rows[split][indices]] > 0).long()
        return {self.tasks[column]: rows[:, column] for column in positions(self.tasks, tasks)}

    def sample(self, split: Split, index: int) -> Sample:
        """Return an image."""
        image = self.evaluation_batch(split, torch.tensor([index])).images[0]
        return super().sample(split, index)._replace(image=image)

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        sizes = [f"{self.size(split):,}" for split in SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        side, width = self._part.side, self._part.width
        said = self._architecture.sentence
        return (
            f"Aligned faces of CelebA at {side} x {side} pixels ({sizes[0]} for training, "
            f"{sizes[1]} for validation, {sizes[2]} for testing) and {len(self.tasks)} attributes. "
            f"Seven convolutions of {width} to {8 * width} channels, two linear layers of "
            f"{8 * width}, batch norm and ReLU after each, and one linear head per attribute; "
            f"{parameters:,} parameters. {said}F1 scores on the test images."
        )
