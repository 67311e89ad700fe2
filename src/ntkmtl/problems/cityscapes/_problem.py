"""The problem ``cityscapes``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ntkmtl.problems._dense import METRICS
from ntkmtl.problems._dense_problem import DenseProblem, Part
from ntkmtl.problems._registry import PROBLEMS
from ntkmtl.problems.base import Metric, Recipe
from ntkmtl.problems.cityscapes._source import FRAMES, LAYOUT, load

if TYPE_CHECKING:
    from ntkmtl.problems._dense_store import Frames, Layout

__all__ = ["Cityscapes"]

TASKS = ("segmentation", "depth")


class Cityscapes(DenseProblem):
    """Seven classes and disparity of street scenes.

    Losses are cross-entropy and the absolute error of the disparity; metrics are those of the
    paper's Table 7, over all labelled pixels.

    Args:
        recipe: ``"paper"``: 2,975 and 500 frames of 128 x 256 and the network at its published
            width. ``"small"``: at most 400 and 100 of them at 64 x 128, and three stages of 8 to
            32 channels.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/cityscapes``, or in the user's
            cache.
        architecture: ``"mtan"`` or ``"segnet"``.
        protocol: ``"paper"`` or ``"clean"``, as for ``nyuv2``. The recipe's own if None.
        augmentation: ``"published"``: random crops, enlarged by s of 1, 1.2 or 1.5, whose
            disparity is divided by s, and mirroring. ``"geometric"``: disparity is multiplied by s
            instead, as it grows where things come nearer. ``"none"``.

    Raises:
        ValueError: An option is unknown, the data are damaged, or frames are missing.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "cityscapes"
    summary: ClassVar[str] = PROBLEMS["cityscapes"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "paper": Recipe(
            epochs=200,
            batch_size=8,
            learning_rate=1e-4,
            minibatches=4,
            description="The settings of the paper's Table 7 and Appendix C.2.",
            schedule="halved",
        ),
        "small": Recipe(
            epochs=10,
            batch_size=8,
            learning_rate=3e-3,
            minibatches=4,
            reduced=True,
            description=(
                "At most 400 training frames at 64 x 128, and three stages of 8 to 32 channels, "
                "where the paper has 2,975 of 128 x 256 and five stages of 64 to 512."
            ),
        ),
    }
    tasks: tuple[str, ...] = TASKS
    metrics: tuple[Metric, ...] = (*METRICS["segmentation"], *METRICS["depth"])
    layout: ClassVar[Layout] = LAYOUT
    parts: ClassVar[Mapping[str, Part]] = {
        "paper": Part("paper"),
        "small": Part(
            "clean",
            factor=2,
            widths=(8, 16, 32),
            depths=(2, 2, 2),
            training=400,
            testing=100,
        ),
    }
    frames_needed: ClassVar[tuple[int, int]] = (FRAMES["train"], FRAMES["test"])
    augmentations: ClassVar[Mapping[str, int | None]] = {
        "published": -1,
        "geometric": 1,
        "none": None,
    }

    def __init__(
        self,
        recipe: str = "paper",
        data: str | None = None,
        architecture: str = "mtan",
        protocol: str | None = None,
        augmentation: str = "published",
    ) -> None:
        super().__init__(recipe, data, architecture, protocol, augmentation)

    @staticmethod
    def load(folder: Path) -> Frames:
        """Map the prepared data into memory."""
        return load(folder)

    @property
    def frames_said(self) -> str:
        """What the frames are."""
        return "Street scenes of CityScapes with 7 classes and disparity"
