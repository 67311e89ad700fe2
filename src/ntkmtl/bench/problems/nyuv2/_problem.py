"""The problem ``nyuv2``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.base import Metric, Recipe
from ntkmtl.bench.problems.dense._labels import metrics_of
from ntkmtl.bench.problems.dense._problem import DenseProblem, Part, parts, recipes
from ntkmtl.bench.problems.dense._store import Layout
from ntkmtl.bench.problems.nyuv2 import _source


class NYUv2(DenseProblem):
    """Semantic classes, depth and surface normals of indoor scenes.

    Losses are cross-entropy, absolute error in meters and one minus the cosine; metrics are those
    of the paper's Table 1, over all labeled pixels.

    Args:
        recipe: ``"paper"``: 795 and 654 frames of 288 x 384 and the network at its published width.
            ``"small"``: at most 199 and 164 of them at 72 x 96, and three stages of 8 to 32
            channels.
        augmentation: ``"geometric"``: random crops, enlarged by 1, 1.2 or 1.5, and mirroring, see
            :func:`ntkmtl.bench.problems.dense._labels.augment`. ``"none"``.

    The other arguments are those of :class:`~ntkmtl.bench.problems.dense._problem.DenseProblem`.

    Raises:
        ValueError: An option is unknown, the data are damaged, or frames are missing.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "nyuv2"
    summary: ClassVar[str] = PROBLEMS["nyuv2"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = recipes(
        table="Table 1",
        batch_sizes=(2, 4),
        minibatches=2,
        small=(
            "About a quarter of the frames at 72 x 96, and three stages of 8 to 32 channels, "
            "where the paper has 795 training frames of 288 x 384 and five stages of 64 to 512."
        ),
    )
    tasks: tuple[str, ...] = ("segmentation", "depth", "normals")
    metrics: tuple[Metric, ...] = metrics_of(("segmentation", "depth", "normals"))
    layout: ClassVar[Layout] = _source.LAYOUT
    parts: ClassVar[Mapping[str, Part]] = parts(factor=4, training=199, testing=164)
    frames_needed: ClassVar[tuple[int, int]] = (_source.FRAMES["train"], _source.FRAMES["test"])
    frames_said: ClassVar[str] = (
        "Indoor frames of NYUv2 with 13 classes, depth in meters and surface normals"
    )
    augmentations: ClassVar[Mapping[str, int | None]] = {"geometric": -1, "none": None}

    def notice(self) -> str:
        """Say where labels are not the released ones, and warn as :class:`DenseProblem` does."""
        facts, early = self._frames.facts, super().notice()
        if facts.get("normals") == "released":
            return early
        derived = (
            f"Surface normals are {facts.get('normals')}, not the released ones; depth is "
            f"{facts.get('depth')}. Numbers cannot be compared with published ones."
        )
        return f"{derived} {early}".rstrip()
