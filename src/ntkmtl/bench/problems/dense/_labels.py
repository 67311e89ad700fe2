"""Dense prediction: losses, metrics and augmentation of labels that every pixel has.

Classes are int64 of shape (B, H, W), -1 where a pixel has none; depths (in meters) or disparities
are floats of shape (B, 1, H, W), 0 where there is none; normals are unit vectors of shape
(B, 3, H, W), all 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ntkmtl.bench.problems.base import Metric

Kind = Literal["segmentation", "depth", "normals"]

IGNORED = -1
"""The class of a pixel that has none."""

SCALES = (1.0, 1.2, 1.5)
"""What a crop may be enlarged by."""

BIN = 0.01
"""Width in degrees of the bins that the median angle is read off."""

METRICS: Mapping[Kind, tuple[Metric, ...]] = {
    "segmentation": (
        Metric("miou", "segmentation", "%", higher_is_better=True, label="mIoU"),
        Metric("pixel_accuracy", "segmentation", "%", higher_is_better=True, label="Pix Acc"),
    ),
    "depth": (
        Metric("abs_error", "depth", label="Abs Err"),
        Metric("rel_error", "depth", label="Rel Err"),
    ),
    "normals": (
        Metric("normal_mean", "normals", "°", label="Mean"),
        Metric("normal_median", "normals", "°", label="Median"),
        Metric("within_11_25", "normals", "%", higher_is_better=True, label="11.25"),
        Metric("within_22_5", "normals", "%", higher_is_better=True, label="22.5"),
        Metric("within_30", "normals", "%", higher_is_better=True, label="30"),
    ),
}
"""Metrics of each kind of task, by the names and in the units of the paper's tables."""


def metrics_of(kinds: Sequence[Kind]) -> tuple[Metric, ...]:
    """Return the metrics of tasks in the order of the paper's tables.

    Example:
        >>> [metric.name for metric in metrics_of(["segmentation", "depth"])]
        ['miou', 'pixel_accuracy', 'abs_error', 'rel_error']
    """
    return tuple(metric for kind in kinds for metric in METRICS[kind])


class ImageBatch(NamedTuple):
    """b images and the labels of their pixels.

    Attributes:
        images: From 0 to 1, float32 of shape (b, 3, H, W).
        segmentation: Classes.
        depth: Depths or disparities.
        normals: Unit normals; None where the data have none.
    """

    images: Tensor
    segmentation: Tensor
    depth: Tensor
    normals: Tensor | None = None

    def labels(self, kind: Kind) -> Tensor:
        """Return the labels of a kind of task."""
        found: Tensor | None = getattr(self, kind)
        if found is None:
            raise ValueError(f"the data have no {kind}")
        return found


def valid(kind: Kind, labels: Tensor) -> Tensor:
    """Return which pixels have a label, bool of shape (B, H, W).

    Example:
        >>> import torch
        >>> valid("depth", torch.tensor([[[[0.0, 2.5]]]]))
        tensor([[[False,  True]]])
    """
    return labels != IGNORED if kind == "segmentation" else (labels != 0).any(dim=1)


def loss(kind: Kind, outputs: Tensor, labels: Tensor) -> Tensor | None:
    """Return the mean loss of the pixels with a label, None where there is no such pixel.

    Cross-entropy for classes, absolute error for depth, one minus the cosine for normals.

    Args:
        kind: Kind of the task.
        outputs: Class scores (B, C, H, W), depths (B, 1, H, W) or unit normals (B, 3, H, W).
        labels: Labels of the batch.

    Example:
        >>> import torch
        >>> loss("depth", torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 2.5]]]]))
        tensor(1.5000)
    """
    known = valid(kind, labels)
    count = known.sum()
    if not count:
        return None
    if kind == "segmentation":
        return functional.cross_entropy(outputs, labels, ignore_index=IGNORED)
    if kind == "depth":
        error = (outputs - labels).abs().squeeze(1)
    else:
        error = 1.0 - (outputs * labels).sum(dim=1)
    return (error * known).sum() / count


# ------------------------------------------------------------------------------------------------
# Metrics


class Meter(Protocol):
    """Gathers pixels batch by batch; numbers are over all pixels, not means over batches."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add the pixels of a batch.

        Raises:
            ValueError: A prediction is NaN or infinite.
        """

    def values(self) -> list[float]:
        """Return one number for each of the task's :data:`METRICS`.

        Raises:
            ValueError: No pixel had a label.
        """


class SegmentationMeter:
    """Mean intersection over union and pixel accuracy, in percent, from a confusion matrix.

    The mean is over the classes that occur among labels or predictions.

    Example:
        >>> import torch
        >>> meter = SegmentationMeter(3)
        >>> scores = torch.eye(3)[:2].T.reshape(1, 3, 1, 2)  # predicts 0 and 1
        >>> meter.update(scores, torch.tensor([[[0, 0]]]))
        >>> meter.values()
        [25.0, 50.0]
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        """``[label, prediction]``, numbers of pixels."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add scores (B, C, H, W) and classes (B, H, W)."""
        known = valid("segmentation", labels)
        _require_finite("segmentation", outputs, known)
        cells = labels[known] * self.classes + outputs.argmax(dim=1)[known]
        counts = torch.bincount(cells, minlength=self.classes**2)
        self.confusion += counts.reshape(self.confusion.shape).to(self.confusion.device)

    def values(self) -> list[float]:
        """Return mean intersection over union and accuracy."""
        right = self.confusion.diagonal().double()
        total = self.confusion.sum()
        _require_pixels(int(total), "class")
        union = (self.confusion.sum(0) + self.confusion.sum(1)).double() - right
        shares = right[union > 0] / union[union > 0]
        return [100 * float(shares.mean()), 100 * float(right.sum() / total)]


class DepthMeter:
    """Absolute error in the labels' unit and relative error, means over pixels.

    Example:
        >>> import torch
        >>> meter = DepthMeter()
        >>> meter.update(torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[2.0, 0.0]]]]))
        >>> meter.values()
        [1.0, 0.5]
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.pixels = 0

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add depths, both (B, 1, H, W)."""
        known = valid("depth", labels)
        _require_finite("depth", outputs, known)
        # Moved to the CPU before they become float64, which not every accelerator has.
        home = self.sums.device
        truth = labels.squeeze(1)[known].to(home).double()
        error = (outputs.squeeze(1)[known].to(home).double() - truth).abs()
        self.sums += torch.stack([error.sum(), (error / truth.abs()).sum()])
        self.pixels += len(truth)

    def values(self) -> list[float]:
        """Return absolute and relative error."""
        _require_pixels(self.pixels, "depth")
        return [float(value) for value in (self.sums / self.pixels).tolist()]


class NormalsMeter:
    """Angle between normals: mean and median in degrees, percentages within 11.25, 22.5 and 30.

    A prediction of zero length has no direction and counts as 90 degrees.

    The mean and the percentages are exact. The median, for an even number of pixels the mean of the
    middle two, is read off a histogram with bins of 0.01 degrees: it is off by half a bin at most.

    Example:
        >>> import torch
        >>> up, side = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> found = torch.stack([up, up, side], dim=-1).reshape(1, 3, 1, 3)
        >>> meter = NormalsMeter()
        >>> meter.update(found, up.reshape(1, 3, 1, 1).expand(1, 3, 1, 3))
        >>> [round(value, 2) for value in meter.values()]
        [30.0, 0.01, 66.67, 66.67, 66.67]
    """

    THRESHOLDS = (11.25, 22.5, 30.0)

    def __init__(self) -> None:
        self.histogram = torch.zeros(round(180 / BIN) + 1, dtype=torch.int64)
        self.within = torch.zeros(len(self.THRESHOLDS), dtype=torch.int64)
        self.total = 0.0
        self.pixels = 0

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add normals, both (B, 3, H, W), predictions of any length."""
        known = valid("normals", labels)
        _require_finite("normals", outputs, known)
        home = self.histogram.device
        found = outputs.movedim(1, -1)[known].to(home).double()
        truth = labels.movedim(1, -1)[known].to(home).double()
        # An arc cosine would be off by hundredths of a degree near 0.
        sine = torch.linalg.cross(found, truth).norm(dim=-1)
        angles = torch.atan2(sine, (found * truth).sum(dim=-1)).rad2deg()
        angles[(found == 0).all(dim=-1)] = 90.0
        bins = (angles / BIN).long()
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        self.within += torch.stack([(angles < limit).sum() for limit in self.THRESHOLDS])
        self.total += float(angles.sum())
        self.pixels += len(angles)

    def values(self) -> list[float]:
        """Return mean, median, and the three percentages."""
        _require_pixels(self.pixels, "normal")
        middle = torch.tensor([(self.pixels + 1) // 2, self.pixels // 2 + 1])
        bins = torch.searchsorted(self.histogram.cumsum(0), middle)
        median = (float(bins.double().mean()) + 0.5) * BIN
        shares = (100 * self.within.double() / self.pixels).tolist()
        return [self.total / self.pixels, median, *shares]


def _require_pixels(count: int, label: str) -> None:
    if not count:
        raise ValueError(f"no pixel of the split has a {label}, so nothing can be measured")


def _require_finite(task: Kind, outputs: Tensor, known: Tensor) -> None:
    """Raise an error if the prediction at a labeled pixel is NaN or infinite."""
    bad = int((~outputs.isfinite().all(dim=1) & known).sum())
    if bad:
        raise ValueError(
            f"the network's predictions of {task} must be finite to be measured, found NaN or "
            f"infinity at {bad:,} of {int(known.sum()):,} labeled pixels: its parameters or "
            "running means have diverged. Lower the learning rate, or clip the gradient"
        )


def meter(kind: Kind, classes: int) -> Meter:
    """Return a new meter for a kind of task."""
    if kind == "segmentation":
        return SegmentationMeter(classes)
    return DepthMeter() if kind == "depth" else NormalsMeter()


# ------------------------------------------------------------------------------------------------
# Augmentation


def augment(batch: ImageBatch, power: int = -1, scales: Sequence[float] = SCALES) -> ImageBatch:
    """Enlarge a random crop of each image, and mirror half of them, from torch's random state.

    A crop that is enlarged by s shows what a camera s times nearer sees: depths are divided by s,
    normals stay. A mirrored image has its normals' x negated. Images are interpolated linearly,
    labels are those of the nearest pixel, as a mean of labels is none.

    Args:
        batch: The images.
        power: What depth is multiplied by is s to this: -1 for depths, 1 for disparities.
        scales: What s is drawn from, each equally likely.

    Example:
        >>> import torch
        >>> depth = torch.ones(1, 1, 4, 4)
        >>> flat = ImageBatch(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4).long(), depth)
        >>> augment(flat, scales=(2.0,)).depth.unique()
        tensor([0.5000])
    """
    count, _, height, width = batch.images.shape
    device = batch.images.device
    images, classes, depths, normals = [], [], [], []
    for place in range(count):
        scale = scales[int(torch.randint(len(scales), (1,)))]
        high, wide = int(height / scale), int(width / scale)
        top = int(torch.randint(height - high + 1, (1,)))
        left = int(torch.randint(width - wide + 1, (1,)))
        mirrored = bool(torch.rand(1) < 0.5)
        window = (slice(place, place + 1), ..., slice(top, top + high), slice(left, left + wide))
        # Rows and columns of the nearest pixels, where linear interpolation has their centers.
        rows = (torch.arange(height, device=device) + 0.5).mul(high / height).long()
        rows = rows.clamp(max=high - 1)
        columns = (torch.arange(width, device=device) + 0.5).mul(wide / width).long()
        columns = columns.clamp(max=wide - 1)
        image = functional.interpolate(
            batch.images[window], size=(height, width), mode="bilinear", align_corners=False
        )
        if mirrored:
            image = image.flip(-1)
            columns = columns.flip(0)
        images.append(image)
        classes.append(batch.segmentation[window][..., rows[:, None], columns])
        depths.append(batch.depth[window][..., rows[:, None], columns] * scale**power)
        if batch.normals is not None:
            normal = batch.normals[window][..., rows[:, None], columns]
            if mirrored:
                normal = normal * normal.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
            normals.append(normal)
    return ImageBatch(
        torch.cat(images),
        torch.cat(classes),
        torch.cat(depths),
        torch.cat(normals) if normals else None,
    )
