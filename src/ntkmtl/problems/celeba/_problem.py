"""The problem ``celeba``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.problems._prepared import data_folder
from ntkmtl.problems._registry import PROBLEMS
from ntkmtl.problems._supervised import (
    chosen_recipe,
    evaluating,
    one_output_per_task,
    positions,
)
from ntkmtl.problems.base import Metric, MultiTaskModel, Problem, Recipe, Split
from ntkmtl.problems.celeba._source import ATTRIBUTES, IMAGES
from ntkmtl.problems.celeba._store import HOW, SIDE, Faces, load
from ntkmtl.problems.networks import CelebANetwork

__all__ = ["Batch", "CelebA", "f1_scores"]

MODEL_VERSION = "nine-layer 1"
"""Changes with everything in inputs, network and losses that changes a trained network."""

EVALUATED = 256
"""Images in a batch of an evaluation."""

SMALL_IMAGES = 4_000
SMALL = (
    *("Attractive", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Smiling"),
    *("Wavy_Hair", "Wearing_Lipstick"),
)
"""The eight attributes whose two values are nearest to equally frequent in the first 4,000 images.

Few of these images have a rarer attribute, and an F1 score on some hundred of them says little.
"""


@dataclass(frozen=True)
class _Part:
    """The part of the data and the network that a recipe takes."""

    attributes: tuple[str, ...]
    side: int
    width: int


_PARTS = {
    "paper": _Part(ATTRIBUTES, side=SIDE, width=64),
    "small": _Part(SMALL, side=SIDE // 2, width=16),
}
_SMALL_SPLIT: dict[Split, slice] = {
    "test": slice(0, 800),
    "val": slice(800, 1_200),
    "train": slice(1_200, SMALL_IMAGES),
}
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Batch(NamedTuple):
    """b images.

    Attributes:
        images: From 0 to 1, float32 of shape (b, 3, side, side).
        labels: 0 or 1, float32 of shape (b, k).
    """

    images: Tensor
    labels: Tensor


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


class CelebA(Problem):
    """Attributes of faces, with the field's nine-layer convolutional network.

    Losses are binary cross-entropies; metrics are F1 scores.

    Args:
        recipe: ``"paper"``: all 202,599 images at 64 x 64 in the official partition, 40 attributes,
            and the network at its published width. ``"small"``: the first 4,000 images at 32 x 32,
            split at random, eight attributes, and a quarter of the width.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/celeba``, or in the user's cache.

    Raises:
        ValueError: The recipe is unknown, the data are damaged, or images are missing.
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

    def __init__(self, recipe: str = "paper", data: str | None = None) -> None:
        self.recipe = chosen_recipe(self.recipes, recipe)
        self._part = _PARTS[recipe]
        self.tasks = self._part.attributes
        self.metrics = tuple(metric for metric in type(self).metrics if metric.task in self.tasks)
        folder = data_folder("celeba", data)
        manifest = folder / "manifest.json"
        changed = manifest.stat().st_mtime_ns if manifest.is_file() else 0
        self._faces, self._sha256 = _load(folder, changed)
        needed = IMAGES if recipe == "paper" else SMALL_IMAGES
        if len(self._faces) < needed:
            raise ValueError(
                f"the recipe {recipe} takes {needed:,} images, and {folder} holds "
                f"{len(self._faces):,}. {HOW}"
            )
        if recipe == "paper":
            self._rows = {
                split: torch.from_numpy(np.flatnonzero(self._faces.partition == number))
                for number, split in enumerate(_SPLITS)
            }
        else:
            numbers = self._faces.numbers[:SMALL_IMAGES].tolist()
            keys = [hashlib.sha256(f"celeba split {n}".encode()).digest() for n in numbers]
            order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
            self._rows = {split: order[part] for split, part in _SMALL_SPLIT.items()}
        columns = [ATTRIBUTES.index(task) for task in self.tasks]
        self._labels = torch.from_numpy(self._faces.labels[:, columns].copy())

    @property
    def options(self) -> dict[str, Any]:
        """Data, split, attributes, network and loss."""
        return {
            "data_sha256": self._sha256,
            "split": "official" if self._part.side == SIDE else "SHA-256 of the image's number",
            "attributes": list(self.tasks),
            "model": MODEL_VERSION,
            "side": self._part.side,
            "width": self._part.width,
            "loss": "bce",
        }

    def size(self, split: Split) -> int:
        """Return the number of images in a split."""
        return len(self._rows[split])

    def batch(self, split: Split, indices: Tensor) -> Batch:
        """Return the images of a split at ``indices``."""
        return self._take(self._rows[split][indices])

    def _take(self, rows: Tensor) -> Batch:
        pixels = torch.from_numpy(self._faces.images[rows.numpy()])
        images = pixels.permute(0, 3, 1, 2).float() / 255
        if self._part.side != SIDE:
            images = functional.avg_pool2d(images, SIDE // self._part.side)
        return Batch(images.contiguous(), self._labels[rows].float())

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialised network.

        See :class:`~ntkmtl.problems.networks.CelebANetwork`.

        Raises:
            ValueError: A task is unknown or named twice.
        """
        return _Network(len(positions(self.tasks, tasks)), self._part.width)

    def losses(
        self, outputs: Sequence[Tensor], batch: Batch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return the binary cross-entropy of each task.

        Raises:
            ValueError: There are not as many outputs as tasks, or a task is unknown.
        """
        columns = positions(self.tasks, tasks)
        one_output_per_task(outputs, columns)
        labels = batch.labels.unbind(dim=1)
        return {
            self.tasks[column]: functional.binary_cross_entropy_with_logits(output, labels[column])
            for column, output in zip(columns, outputs, strict=True)
        }

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the F1 score of each task; an attribute is predicted where its logit is above 0.

        Raises:
            ValueError: The network has not as many heads as there are tasks.
        """
        columns = positions(self.tasks, tasks)
        # Metrics stand in the order of the problem's tasks, heads in that of `tasks`.
        order = sorted(range(len(columns)), key=columns.__getitem__)
        columns = [columns[position] for position in order]
        rows = self._rows[split]
        predicted = []
        with evaluating(model):
            for some in rows.split(EVALUATED):
                outputs = model.predict(model.represent(self._take(some)))
                one_output_per_task(outputs, columns)
                predicted.append(torch.stack([outputs[i] for i in order], dim=1) > 0)
        return f1_scores(torch.cat(predicted), self._labels[rows][:, columns] > 0)

    def describe(self) -> str:
        """Return one paragraph on data and network."""
        sizes = [f"{self.size(split):,}" for split in _SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        side, width = self._part.side, self._part.width
        return (
            f"Aligned faces of CelebA at {side} x {side} pixels ({sizes[0]} for training, "
            f"{sizes[1]} for validation, {sizes[2]} for testing) and {len(self.tasks)} attributes. "
            f"Seven convolutions of {width} to {8 * width} channels, two linear layers of "
            f"{8 * width}, batch norm and ReLU after each, and one linear head per attribute; "
            f"{parameters:,} parameters. F1 scores on the test images."
        )


class _Network(CelebANetwork):
    """The network on batches of the problem."""

    def represent(self, batch: Batch | Tensor) -> Tensor:
        """Return z of a batch, or of its images."""
        return super().represent(batch.images if isinstance(batch, Batch) else batch)
