"""The problem ``nyuv2``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ntkmtl.problems._dense import METRICS
from ntkmtl.problems._dense_problem import DenseProblem, Part
from ntkmtl.problems._registry import PROBLEMS
from ntkmtl.problems.base import Metric, Recipe
from ntkmtl.problems.nyuv2._source import FRAMES, LAYOUT, load

if TYPE_CHECKING:
    from ntkmtl.problems._dense_store import Frames, Layout

__all__ = ["NYUv2"]

TASKS = ("segmentation", "depth", "normals")


class NYUv2(DenseProblem):
    """Semantic classes, depth and surface normals of indoor scenes.

    Losses are cross-entropy, absolute error in metres and one minus the cosine; metrics are those
    of the paper's Table 1, over all labelled pixels.

    Args:
        recipe: ``"paper"``: 795 and 654 frames of 288 x 384 and the network at its published width.
            ``"small"``: at most 199 and 164 of them at 72 x 96, and three stages of 8 to 32
            channels.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/nyuv2``, or in the user's cache.
        architecture: ``"mtan"`` or ``"segnet"``.
        protocol: ``"paper"``: trained on all training frames, test metrics averaged over the last
            10 epochs, no validation split. ``"clean"``: a tenth of the training frames is kept for
            validation, and the network of the last epoch is tested. The recipe's own if None.
        augmentation: ``"geometric"``: random crops, enlarged by 1, 1.2 or 1.5, and mirroring, see
            :func:`ntkmtl.problems._dense.augment`. ``"none"``.

    Raises:
        ValueError: An option is unknown, the data are damaged, or frames are missing.
        DataMissingError: The data have not been prepared.
    """

    name: ClassVar[str] = "nyuv2"
    summary: ClassVar[str] = PROBLEMS["nyuv2"].summary
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "paper": Recipe(
            epochs=200,
            batch_size=2,
            learning_rate=1e-4,
            minibatches=2,
            description="The settings of the paper's Table 1 and Appendix C.2.",
            schedule="halved",
        ),
        "small": Recipe(
            epochs=10,
            batch_size=4,
            learning_rate=3e-3,
            minibatches=2,
            reduced=True,
            description=(
                "About a quarter of the frames at 72 x 96, and three stages of 8 to 32 channels, "
                "where the paper has 795 training frames of 288 x 384 and five stages of 64 to 512."
            ),
        ),
    }
    tasks: tuple[str, ...] = TASKS
    metrics: tuple[Metric, ...] = (
        *METRICS["segmentation"],
        *METRICS["depth"],
        *METRICS["normals"],
    )
    layout: ClassVar[Layout] = LAYOUT
    parts: ClassVar[Mapping[str, Part]] = {
        "paper": Part("paper"),
        "small": Part(
            "clean",
            factor=4,
            widths=(8, 16, 32),
            depths=(2, 2, 2),
            training=199,
            testing=164,
        ),
    }
    frames_needed: ClassVar[tuple[int, int]] = (FRAMES["train"], FRAMES["test"])
    augmentations: ClassVar[Mapping[str, int | None]] = {"geometric": -1, "none": None}

    def __init__(
        self,
        recipe: str = "paper",
        data: str | None = None,
        architecture: str = "mtan",
        protocol: str | None = None,
        augmentation: str = "geometric",
    ) -> None:
        super().__init__(recipe, data, architecture, protocol, augmentation)

    @staticmethod
    def load(folder: Path) -> Frames:
        """Map the prepared data into memory."""
        return load(folder)

    @property
    def frames_said(self) -> str:
        """What the frames are."""
        return "Indoor frames of NYUv2 with 13 classes, depth in metres and surface normals"

    def notice(self) -> str:
        """Say where labels are not those that were released."""
        facts = self._frames.facts
        if facts.get("normals") == "released":
            return ""
        return (
            f"Surface normals are {facts.get('normals')}, not the released ones; depth is "
            f"{facts.get('depth')}. Numbers cannot be compared with published ones."
        )
