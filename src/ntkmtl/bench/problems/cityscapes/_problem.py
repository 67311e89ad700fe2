"""The problem ``cityscapes``, and its frames in the layout that MTAN released."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.base import Metric, Recipe
from ntkmtl.bench.problems.dense._labels import metrics_of
from ntkmtl.bench.problems.dense._problem import DenseProblem, Part, parts, recipes
from ntkmtl.bench.problems.dense._store import Layout, prepare_frames, released

SIZE = (128, 256)
CLASSES = 7
FRAMES = {"train": 2975, "test": 500}
"""Frames of the official training and validation splits; the field tests on the latter."""

LAYOUT = Layout(
    kind="cityscapes 1",
    size=SIZE,
    classes=CLASSES,
    normals=False,
    folders={"images": ("image",), "labels": ("label_7", "label"), "depths": ("depth",)},
    # CityScapes decodes p as (p - 1) / 256, which is below 0 where p is 0.
    least=-1.0,
    most=256.0,
    # Published absolute errors are about 0.015 and relative ones about 0.3, so the released numbers
    # are of the size of 0.05. Disparities in pixels, or depths, are far above.
    typical=(0.01, 1.0),
    unit="disparities must be in the released scale, in which published errors are about 0.015",
    nearer_is_larger=True,
    how=(
        "`ntkmtl data cityscapes --source DIR` prepares the data, from the folder with train and "
        "val that MTAN released (https://github.com/lorenmt/mtan names the place); --data or "
        "NTKMTL_DATA say where prepared data are."
    ),
)


def prepare(
    source: Path | None,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    accept_implausible: bool = False,
) -> str:
    """Bring the released files of CityScapes into prepared arrays.

    Images are stored as 8-bit numbers, disparities as float32. If it is stopped, the next call
    continues from there.

    ``source`` is the released folder with ``train`` and ``val``, in each ``image``, ``label_7`` and
    ``depth`` with ``0.npy`` and so on. The other arguments and the return value are those of
    :attr:`ntkmtl.bench.problems.ProblemSpec.prepare`.

    Raises:
        FileNotFoundError: There are no frames.
        ValueError: A frame is damaged.
    """
    if source is None:
        raise FileNotFoundError(f"the released folder must be named. {LAYOUT.how}")
    layout = LAYOUT.tolerant() if accept_implausible else LAYOUT
    arrays = released(source, layout) if source.is_dir() else None
    if arrays is None:
        raise FileNotFoundError(
            f"{source} must be a folder with train/image/0.npy and so on. {LAYOUT.how}"
        )
    return prepare_frames(arrays, layout, folder, progress, accept_implausible)


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
    layout: ClassVar[Layout] = LAYOUT
    parts: ClassVar[Mapping[str, Part]] = parts(factor=2, training=400, testing=100)
    frames_needed: ClassVar[tuple[int, int]] = (FRAMES["train"], FRAMES["test"])
    frames_said: ClassVar[str] = "Street scenes of CityScapes with 7 classes and disparity"
    augmentations: ClassVar[Mapping[str, int | None]] = {
        "published": -1,
        "geometric": 1,
        "none": None,
    }
