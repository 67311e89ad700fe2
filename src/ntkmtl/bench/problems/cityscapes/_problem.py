"""The problem ``cityscapes``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.base import Metric, Recipe
from ntkmtl.bench.problems.cityscapes import _source
from ntkmtl.bench.problems.dense._labels import metrics_of
from ntkmtl.bench.problems.dense._problem import DenseProblem, Part, parts, recipes
from ntkmtl.bench.problems.dense._store import Layout


class Cityscapes(DenseProblem):
    """Seven classes and disparity of street scenes.

    Losses are cross-entropy and the absolute error of the disparity; metrics are those of the
    paper's Table 7, over all labeled pixels.

    Args:
        recipe: ``"paper"``: 2,975 and 500 frames of 128 x 256 and the network at its published
            width. ``"small"``: at most 400 and 100 of them at 64 x 128, and three stages of 8 to
            32 channels.
        augmentation: ``"published"``: random crops, enlarged by s of 1, 1.2 or 1.5, whose
            disparity is divided by s, and mirroring. ``"geometric"``: disparity is multiplied by s
            instead, as it grows where things come nearer. ``"none"``.

    The other arguments are those of :class:`~ntkmtl.bench.problems.dense._problem.DenseProblem`.

    Raises:
        ValueError: An option is unknown, the data are damaged, or frames are missing.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "cityscapes"
    summary: ClassVar[str] = PROBLEMS["cityscapes"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = recipes(
        table="Table 7",
        batch_sizes=(8, 8),
        minibatches=4,
        small=(
            "At most 400 training frames at 64 x 128, and three stages of 8 to 32 channels, "
            "where the paper has 2,975 of 128 x 256 and five stages of 64 to 512."
        ),
    )
    tasks: tuple[str, ...] = ("segmentation", "depth")
    metrics: tuple[Metric, ...] = metrics_of(("segmentation", "depth"))
    layout: ClassVar[Layout] = _source.LAYOUT
    parts: ClassVar[Mapping[str, Part]] = parts(factor=2, training=400, testing=100)
    frames_needed: ClassVar[tuple[int, int]] = (_source.FRAMES["train"], _source.FRAMES["test"])
    frames_said: ClassVar[str] = "Street scenes of CityScapes with 7 classes and disparity"
    augmentations: ClassVar[Mapping[str, int | None]] = {
        "published": -1,
        "geometric": 1,
        "none": None,
    }
