"""What the problems of dense prediction share: data, network, losses, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems._arrays import accepted_notice, data_folder, last_change
from ntkmtl.bench.problems._supervised import (
    SPLITS,
    RowsProblem,
    chosen_recipe,
    evaluating,
    fewer,
    fitted,
    moved,
    one_output_per_task,
    paired,
    positions,
    refuse_unfit,
)
from ntkmtl.bench.problems.architectures import Choice, choose, names
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Prediction, Recipe, Sample, Split
from ntkmtl.bench.problems.dense import _labels
from ntkmtl.bench.problems.dense._labels import ImageBatch, Kind
from ntkmtl.bench.problems.dense._network import ARCHITECTURES, DEPTHS, WIDTHS, backbone, heads
from ntkmtl.bench.problems.dense._store import Frames, Layout, load_frames

MODEL_VERSION = "dense 1"
"""Changes with everything in inputs, network and losses that changes a trained network."""

PROTOCOLS = ("paper", "clean")
TESTED_EPOCHS = 10
"""Epochs over which the paper's protocol averages."""

BLOCK = 8
"""Neighboring training frames that stay together when a validation split is taken."""

EVALUATED_PIXELS = 1 << 20
"""Pixels in a batch of an evaluation."""

PLAIN = "segnet"
"""The name of hard sharing in a run's identity."""


@dataclass(frozen=True)
class Part:
    """The part of the data and the network that a recipe takes.

    Attributes:
        protocol: Protocol unless another is asked for.
        factor: What height and width are divided by.
        widths: Channels of the network's stages.
        depths: Convolutions of the network's stages.
        training: Most training frames, 0 for all; where there are more they are taken evenly.
        testing: The same of test frames.
    """

    protocol: str
    factor: int = 1
    widths: tuple[int, ...] = WIDTHS
    depths: tuple[int, ...] = DEPTHS
    training: int = 0
    testing: int = 0


def parts(*, factor: int, training: int, testing: int) -> Mapping[str, Part]:
    """Return the parts of the recipes ``paper`` and ``small``.

    Args:
        factor: What ``small`` divides height and width by.
        training: Most training frames of ``small``.
        testing: Most test frames of ``small``.
    """
    return {
        "paper": Part("paper"),
        "small": Part(
            "clean",
            factor=factor,
            widths=(8, 16, 32),
            depths=(2, 2, 2),
            training=training,
            testing=testing,
        ),
    }


def recipes(
    *, table: str, batch_sizes: tuple[int, int], minibatches: int, small: str
) -> Mapping[str, Recipe]:
    """Return the recipes ``paper`` and ``small``.

    Args:
        table: Where the paper has its numbers.
        batch_sizes: Frames per step, of ``paper`` and of ``small``.
        minibatches: The paper's n.
        small: One sentence on how ``small`` is smaller.
    """
    return {
        "paper": Recipe(
            epochs=200,
            batch_size=batch_sizes[0],
            learning_rate=1e-4,
            minibatches=minibatches,
            description=f"The settings of the paper's {table} and Appendix C.2.",
            schedule="halved",
        ),
        "small": Recipe(
            epochs=10,
            batch_size=batch_sizes[1],
            learning_rate=3e-3,
            minibatches=minibatches,
            reduced=True,
            description=small,
        ),
    }


def _choice(name: str, settings: Mapping[str, Any] | None) -> Choice | None:
    """Return an architecture over SegNet, or None for one of ARCHITECTURES."""
    known = (*ARCHITECTURES, *names())
    if name not in known:
        raise ValueError(f"architecture must be one of {', '.join(known)}. Found {name!r}.")
    if name in ARCHITECTURES:
        if settings:
            raise ValueError(f"{name} has no settings. Found architecture_options={settings!r}.")
        return None
    chosen = choose(name, settings)
    return None if chosen.name == "hard" else chosen


def clean_split(count: int) -> tuple[Tensor, Tensor]:
    """Return positions of the training and of the validation frames among ``count`` frames.

    Every tenth block of eight neighbors is for validation: neighbors show the same scene, which
    is so in one of the two, but for the ends of blocks. Of fewer than 80 frames the last tenth is
    for validation.

    Raises:
        ValueError: There are fewer than 2.

    Example:
        >>> train, val = clean_split(90)
        >>> len(train), val.tolist()
        (82, [72, 73, 74, 75, 76, 77, 78, 79])
        >>> clean_split(24)[1].tolist()
        [22, 23]
    """
    if count < 2:
        raise ValueError(
            "protocol='clean' takes validation frames from at least 2 training frames. "
            f"Found {count}."
        )
    if count < 10 * BLOCK:
        taken = torch.arange(count) >= count - max(1, count // 10)
    else:
        taken = torch.arange(count) // BLOCK % 10 == 9
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()


def _some(count: int, most: int) -> Tensor:
    """Return the positions of at most so many of ``count`` frames, evenly; all of them for 0."""
    if not most or count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def _reduced(frames: Frames, factor: int) -> Frames:
    """Return smaller frames: means of pixels for images, the middle pixel's labels.

    Frame by frame, so that no more than the result is held in memory.
    """
    step = (slice(factor // 2, None, factor), slice(factor // 2, None, factor))

    def picked(array: Any) -> Any:
        return None if array is None else np.stack([frame[step] for frame in array])

    def smaller(frame: Any) -> Any:
        pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
        mean = functional.avg_pool2d(pixels, factor)[0].permute(1, 2, 0)
        return mean.round().to(torch.uint8).numpy()

    return replace(
        frames,
        images=np.stack([smaller(frame) for frame in frames.images]),
        labels=picked(frames.labels),
        depths=picked(frames.depths),
        normals=picked(frames.normals),
    )


@lru_cache(maxsize=2)
def _load(layout: Layout, folder: Path, changed: int, factor: int) -> Frames:
    """Return the data. ``changed`` is the time at which they were made."""
    frames = load_frames(folder, layout)
    return frames if factor == 1 else _reduced(frames, factor)


class DenseProblem(RowsProblem):
    """A problem whose labels are images.

    Args:
        recipe: Name of a recipe.
        data: Folder of the prepared data. If None: ``$NTKMTL_DATA/NAME``, or in the user's cache.
        architecture: ``"mtan"``, the multi-task attention network on SegNet; ``"segnet"``, or
            ``"hard"`` by another name, SegNet with one head per task; or ``"cross-stitch"``,
            ``"mmoe"``, ``"cgc"``, ``"ple"`` or ``"dselect-k"`` over SegNet, see
            :mod:`ntkmtl.bench.problems.architectures`.
        protocol: ``"paper"``: trained on all training frames, test metrics averaged over the last
            10 epochs, no validation split. ``"clean"``: a tenth of the training frames is kept for
            validation, and the network of the last epoch is tested. The recipe's own if None. With
            ``split`` it only says which epochs are tested.
        augmentation: Whether and how training images are changed at random, one of
            ``augmentations``; their first if None.
        architecture_options: Settings of the architecture, as a mapping.
        split: A JSON or CSV file with the frames of the three splits, instead of the recipe's; see
            :func:`~ntkmtl.bench.problems._supervised.custom_split`. Frames are called as they
            were prepared, ``"train/0"``, or by their row, from 0, the training frames first.

    Attributes:
        layout: What the frames are like.
        parts: What each recipe takes of data and network.
        frames_needed: Training and test frames of all data.
        augmentations: By name, the exponent of the scale that depth is multiplied by in an enlarged
            crop; None for no crops.
        frames_said: What the frames are, for :meth:`describe`.

    Raises:
        ValueError: An option is unknown or out of range, the data are damaged, or frames are
            missing.
        DataMissingError: The data have not been prepared.
    """

    layout: ClassVar[Layout]
    parts: ClassVar[Mapping[str, Part]]
    frames_needed: ClassVar[tuple[int, int]]
    augmentations: ClassVar[Mapping[str, int | None]]
    frames_said: ClassVar[str]
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]

    def __init__(
        self,
        recipe: str = "paper",
        data: str | None = None,
        architecture: str = "mtan",
        protocol: str | None = None,
        augmentation: str | None = None,
        architecture_options: Mapping[str, Any] | None = None,
        split: str | None = None,
    ) -> None:
        chosen = chosen_recipe(self.recipes, recipe)
        self._part = self.parts[recipe]
        self.protocol = self._part.protocol if protocol is None else protocol
        augmentations = tuple(self.augmentations)
        self.augmentation = augmentations[0] if augmentation is None else augmentation
        for name, value, known in (
            ("protocol", self.protocol, PROTOCOLS),
            ("augmentation", self.augmentation, augmentations),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}. Found {value!r}.")
        self._choice = _choice(architecture, architecture_options)
        self.architecture = PLAIN if architecture == "hard" else architecture
        self.recipe = replace(
            chosen, tested_epochs=TESTED_EPOCHS if self.protocol == "paper" else 1
        )
        folder = data_folder(self.name, data)
        self._frames = _load(self.layout, folder, last_change(folder), self._part.factor)
        self._accepted = accepted_notice(self._frames.facts)
        if split is None:
            self._rows = self._split(recipe, folder)
        else:
            self._use_names(split)
        self.recipe = fitted(self.recipe, self.size("train"), self._sizes_said)
        self._kinds: dict[Kind, int] = {"segmentation": self.layout.classes, "depth": 1}
        if self.layout.normals:
            self._kinds["normals"] = 3
        if self._choice is not None:
            refuse_unfit(self)

    def _split(self, recipe: str, folder: Path) -> dict[Split, Tensor]:
        """Return the rows of the recipe's splits, all frames where it takes more."""
        training = self._frames.training
        testing = len(self._frames) - training
        if recipe == "paper" and (training, testing) != self.frames_needed:
            raise ValueError(
                f"the recipe paper takes {self.frames_needed[0]:,} training and "
                f"{self.frames_needed[1]:,} test frames, and {folder} holds {training:,} and "
                f"{testing:,}. Use --recipe small, or prepare all frames. {self.layout.how}"
            )
        part = self._part
        train = _some(training, part.training)
        held = train[:0]
        if self.protocol == "clean":
            kept, taken = clean_split(len(train))
            train, held = train[kept], train[taken]
        test = training + _some(testing, part.testing)
        if training < part.training or testing < part.testing:
            sizes = (len(train), len(held), len(test))
            self._sizes_said = fewer(part.training + part.testing, sizes, "frames")
        return {"train": train, "val": held, "test": test}

    def _use_names(self, path: str) -> None:
        """Take the splits from a file of the user, which names frames by name or row."""
        known = {str(row): row for row in range(len(self._frames))}
        names = self._frames.facts.get("names", [])
        known.update({name: row for row, name in enumerate(names)})
        called = f"they are called by their row, 0 to {len(known) - len(names) - 1}"
        if names:
            called += f", or as {names[0]!r} and {names[-1]!r}"
        self._use_lists(path, known, "frames", called)

    @property
    def options(self) -> dict[str, Any]:
        """Data, split, protocol, network, augmentation and losses."""
        part = self._part
        return {
            "data_sha256": self._frames.sha256,
            "protocol": self.protocol,
            "frames": [part.training, part.testing],
            "model": MODEL_VERSION,
            "architecture": self.architecture,
            **({} if self._choice is None else self._choice.options),
            "widths": list(part.widths),
            "depths": list(part.depths),
            "factor": part.factor,
            "augmentation": self.augmentation,
            **({} if self._split_said is None else {"split": self._split_said}),
        }

    def batch(self, split: Split, indices: Tensor) -> ImageBatch:
        """Return the frames of a split at ``indices``, those for training augmented."""
        batch = self._take(self._rows[split][indices])
        power = self.augmentations[self.augmentation]
        if split != "train" or power is None:
            return batch
        return _labels.augment(batch, power)

    def evaluation_batch(self, split: Split, indices: Tensor) -> ImageBatch:
        """Return the frames of a split at ``indices`` as they are."""
        return self._take(self._rows[split][indices])

    def _take(self, rows: Tensor) -> ImageBatch:
        at, frames = rows.numpy(), self._frames
        images = torch.from_numpy(frames.images[at]).permute(0, 3, 1, 2).float() / 255
        normals = None
        if frames.normals is not None:
            normals = torch.from_numpy(frames.normals[at]).permute(0, 3, 1, 2).float().contiguous()
        return ImageBatch(
            images.contiguous(),
            torch.from_numpy(frames.labels[at]).long(),
            torch.from_numpy(frames.depths[at]).unsqueeze(1),
            normals,
        )

    def _chosen(self, tasks: Sequence[str] | None) -> list[Kind]:
        kinds = list(self._kinds)
        return [kinds[position] for position in positions(self.tasks, tasks)]

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized network."""
        outputs = {kind: self._kinds[kind] for kind in self._chosen(tasks)}
        widths, depths = self._part.widths, self._part.depths
        if self._choice is None:
            return ARCHITECTURES[self.architecture](outputs, widths, depths)
        return self._choice.build(backbone(widths, depths), heads(outputs, widths[0]))

    def losses(
        self, outputs: Sequence[Tensor], batch: ImageBatch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return cross-entropy, absolute error and one minus the cosine, over labeled pixels."""
        kinds = list(self._kinds)
        return {
            kinds[place]: _labels.loss(kinds[place], output, batch.labels(kinds[place]))
            for place, output in paired(self.tasks, outputs, tasks)
        }

    def counts(self, batch: ImageBatch, tasks: Sequence[str] | None = None) -> Tensor:
        """Return the number of labeled pixels per task and frame, int64 of shape (k, b)."""
        return torch.stack(
            [
                _labels.valid(kind, batch.labels(kind)).flatten(1).sum(dim=1)
                for kind in self._chosen(tasks)
            ]
        )

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the metrics over all pixels of a split, without augmentation.

        Raises:
            ValueError: The network has not as many heads as there are tasks, or no pixel has a
                label.
        """
        chosen = self._chosen(tasks)
        meters = {kind: _labels.meter(kind, self.layout.classes) for kind in chosen}
        height, width = self.image_size
        with evaluating(model):
            for some in self._rows[split].split(max(1, EVALUATED_PIXELS // (height * width) // 4)):
                batch = self._take(some)
                outputs = model.predict(model.represent(moved(batch, model)))
                one_output_per_task(outputs, range(len(chosen)))
                for kind, output in zip(chosen, outputs, strict=True):
                    labels = batch.labels(kind)
                    meters[kind].update(output.to(labels.device), labels)
        # Metrics are in the order of the problem's tasks, heads in that of `tasks`.
        ordered = [meters[kind] for kind in self._kinds if kind in meters]
        values = [value for meter in ordered for value in meter.values()]
        return torch.tensor(values, dtype=torch.float64)

    def predictions(
        self, outputs: Sequence[Tensor], tasks: Sequence[str] | None = None
    ) -> dict[str, Prediction]:
        """Return classes, depths or disparities (b, H, W), and normals (b, 3, H, W).

        Probabilities are left out: one per class and pixel would fill gigabytes.
        """
        names = tuple(f"class {number}" for number in range(self.layout.classes))
        return {
            kind: Prediction(output.argmax(1), names)
            if kind == "segmentation"
            else Prediction(output.squeeze(1) if kind == "depth" else output)
            for kind, output in zip(self._chosen(tasks), outputs, strict=True)
        }

    def truth(
        self, split: Split, indices: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return labels of pixels; what is missing is -1 for classes, NaN for the others."""
        batch = self.evaluation_batch(split, indices)
        found: dict[str, Tensor] = {}
        for kind in self._chosen(tasks):
            labels = batch.labels(kind)
            if kind != "segmentation":
                labels = labels.masked_fill(~_labels.valid(kind, labels).unsqueeze(1), torch.nan)
            found[kind] = labels.squeeze(1) if kind == "depth" else labels
        return found

    def sample(self, split: Split, index: int) -> Sample:
        """Return the image of a frame."""
        image = self.evaluation_batch(split, torch.tensor([index])).images[0]
        return super().sample(split, index)._replace(image=image)

    def notice(self) -> str:
        """Say where the splits are other ones, and warn where early epochs are averaged in."""
        averaged, epochs = self.recipe.tested_epochs, self.recipe.epochs
        said = super().notice()
        if averaged == 1 or 2 * averaged <= epochs:
            return said
        return (
            f"{said} "
            f"Protocol paper averages test metrics over the last {averaged} epochs, and the recipe "
            f"has {epochs} epochs: networks that are hardly trained are averaged in, unless "
            f"--epochs is {2 * averaged} or more, or --problem-option protocol=clean is given."
        ).lstrip()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.layout.size
        return height // self._part.factor, width // self._part.factor

    def describe(self) -> str:
        """Return one paragraph on data, network and protocol."""
        sizes = [f"{self.size(split):,}" for split in SPLITS]
        parameters = sum(parameter.numel() for parameter in self.model().parameters())
        network = (
            {
                "mtan": "MTAN on SegNet, each task with its own features",
                "segnet": "SegNet with one head per task",
            }[self.architecture]
            if self._choice is None
            else f"Architecture {self._choice.describe()}, SegNet as the encoder"
        )
        height, width = self.image_size
        averaged = min(self.recipe.tested_epochs, self.recipe.epochs)
        validated = (
            f"{sizes[1]} are for validation" if self.size("val") else "there is no validation split"
        )
        tested = (
            f"tested after each of the last {averaged} epochs, of which the means are given, "
            f"as in the paper; {validated}"
            if self.protocol == "paper"
            else f"{sizes[1]} frames for validation; the network of the last epoch is tested"
            if self._split_said
            else f"{sizes[1]} of the training frames kept for validation; the network of the last "
            "epoch is tested"
        )
        return (
            f"{self.frames_said} at {height} x {width} pixels, {sizes[0]} for training and "
            f"{sizes[2]} for testing. Protocol {self.protocol}: {tested}. {network}, "
            f"{len(self._part.widths)} stages of {self._part.widths[0]} to "
            f"{self._part.widths[-1]} channels, {parameters:,} parameters; a single-task baseline "
            "is the same network with one task. Metrics are over all labeled pixels. "
            f"{self.notice()}"
        ).rstrip()
