"""Dense labels as prepared arrays: every frame decoded once and mapped into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._arrays import (
    OVERRULE,
    ArrayLayout,
    PreparedData,
    beside,
    dark,
    decode_samples,
    finish,
    refuse_implausible,
    require_layout,
)

EVERY = 50
"""Frames between two notes of how far the decoding has come."""

FARTHER = 0.8
"""Least ratio of the disparities in the lower and in the upper half of a street's frames."""

SLACK = 0.02
"""How far resized images may leave the range from 0 to 1."""


@dataclass(frozen=True)
class Layout:
    """What the frames of a data set are like.

    Attributes:
        kind: Name and version of the prepared arrays.
        size: Height and width.
        classes: Number of classes.
        normals: Whether frames have normals.
        folders: Folders of the released layout that may hold an array, by the array's name.
        least: Smallest depth or disparity that makes sense.
        most: Largest.
        how: What a user types to prepare the data, for errors.
        typical: Where the median depth or disparity of all frames lies; None if not checked.
        unit: What depths must be, for errors.
        nearer_is_larger: Whether the numbers are disparities, which are larger in the lower half
            of a street's frames, where the road is near.
        longest: How long normals may be.
        shortest: How long half of a frame's normals must be at least.
    """

    kind: str
    size: tuple[int, int]
    classes: int
    normals: bool
    folders: Mapping[str, tuple[str, ...]] = field(hash=False)
    least: float
    most: float
    how: str
    typical: tuple[float, float] | None = None
    unit: str = ""
    nearer_is_larger: bool = False
    longest: float = 1.5
    shortest: float = 0.75

    def tolerant(self) -> Layout:
        """Return the layout for values of any size, which a user says are right."""
        return replace(self, least=-math.inf, most=math.inf, longest=math.inf, shortest=0.0)

    @property
    def arrays(self) -> ArrayLayout:
        """Type of each array and its shape without the frames."""
        found: ArrayLayout = {
            "images": (np.uint8, (*self.size, 3)),
            "labels": (np.int8, self.size),
            "depths": (np.float32, self.size),
        }
        if self.normals:
            found["normals"] = (np.float16, (*self.size, 3))
        return found


@dataclass(frozen=True)
class Source:
    """Frames to be prepared.

    Attributes:
        path: Where they are.
        training: Names of the training frames, in order.
        testing: Names of the test frames, in order.
        read: Reads a frame by name: its part of each of :attr:`Layout.arrays`.
        key: A text that changes with the frames.
        facts: For people: where the frames came from, what was derived.
    """

    path: Path
    training: tuple[str, ...]
    testing: tuple[str, ...]
    read: Callable[[str], Mapping[str, Any]]
    key: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Frames:
    """m frames, mapped into memory.

    Attributes:
        images: uint8 of shape (m, H, W, 3).
        labels: int8 of shape (m, H, W), -1 where there is no class.
        depths: float32 of shape (m, H, W), 0 where there is none.
        normals: float16 of shape (m, H, W, 3), 0 where there is none; None if there are none.
        training: Number of training frames, which come first.
        facts: Where the frames came from, what was derived.
        sha256: One digest of all arrays.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int8]
    depths: NDArray[np.float32]
    normals: NDArray[np.float16] | None
    training: int
    facts: Mapping[str, Any]
    sha256: str

    def __len__(self) -> int:
        return len(self.images)


def load_frames(folder: Path, layout: Layout) -> Frames:
    """Map prepared frames into memory.

    Raises:
        DataMissingError: There are none.
        ValueError: They are damaged.
    """
    prepared = PreparedData(folder, layout.kind, layout.how)
    found = {name: prepared[name] for name in layout.arrays}
    training = prepared.facts.get("training")
    count = len(found["images"])
    try:
        require_layout(
            found, {name: (dtype, (count, *s)) for name, (dtype, s) in layout.arrays.items()}
        )
        if not isinstance(training, int) or not 0 < training < count:
            raise ValueError(f"{training!r} of {count} frames are said to be for training")
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}. {layout.how}") from error
    return Frames(
        found["images"],
        found["labels"],
        found["depths"],
        found.get("normals"),
        training,
        prepared.facts,
        prepared.sha256,
    )


def prepare_frames(
    source: Source,
    layout: Layout,
    folder: Path,
    progress: Callable[[str], None],
    accept_implausible: bool = False,
) -> str:
    """Decode frames into prepared arrays, one at a time.

    If it is stopped, the next call continues from there.

    Returns:
        One line on what was made.

    Raises:
        ValueError: A frame is damaged, labels are implausible, or ``folder`` holds other things.
    """
    partial = beside(folder, "partial")
    names = (*source.training, *source.testing)
    if not source.training or not source.testing:
        raise ValueError(
            f"{source.path} holds {len(source.training)} training and {len(source.testing)} test "
            "frames; there must be some of both"
        )
    partial.mkdir(exist_ok=True)
    decode_samples(
        partial,
        [layout.kind, str(source.path.resolve()), source.key],
        names,
        layout.arrays,
        source.read,
        progress,
        "frames",
        EVERY,
    )
    found = _implausible(layout, partial, source.path)
    facts = {
        **source.facts,
        **refuse_implausible(source.path, found, accept_implausible),
        "source": source.path.name,
        "training": len(source.training),
        "testing": len(source.testing),
        "names": list(names),
    }
    finish(partial, folder, layout.kind, list(layout.arrays), facts)
    return (
        f"{len(source.training):,} training and {len(source.testing):,} test frames in {folder}"
        + (f"; normals are {facts['normals']}" if layout.normals else "")
    )


MANY = 20
"""Frames of which some must differ in what they show."""


def _implausible(layout: Layout, folder: Path, source: Path) -> list[str]:
    """Return what is implausible, judged by every eighth pixel of all frames."""
    found = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[:, ::8, ::8]
        for name in layout.arrays
    }
    labels, depths = found["labels"], found["depths"]
    labeled = {"labels": labels >= 0, "depths": depths != 0}
    if layout.normals:
        labeled["normals"] = (found["normals"] != 0).any(axis=-1)
    for name, known in labeled.items():
        if not known.any():
            raise ValueError(f"{source}: some pixels must have {name}, found none in any frame")
    said = dark(found["images"], "images must show something")
    classes = np.unique(labels[labeled["labels"]])
    if len(labels) >= MANY and len(classes) == 1:
        said.append(f"labels must be of several classes, found class {classes[0]} only")
    said += _implausible_depths(layout, depths, labeled["depths"])
    if layout.normals and not (found["normals"] < 0).any():
        said.append(
            "normals must point to both sides, found no component below 0: are they colors?"
        )
    return said


def _implausible_depths(layout: Layout, depths: Any, known: Any) -> list[str]:
    said = []
    values = depths[known]
    middle = float(np.median(values))
    if values.min() == values.max():
        said.append(f"depths must differ from pixel to pixel, found {middle:.4g} everywhere")
    if layout.typical is not None and not layout.typical[0] <= middle <= layout.typical[1]:
        low, high = layout.typical
        said.append(
            f"{layout.unit}, with a median from {low:g} to {high:g}, "
            f"found a median of {middle:.4g}: are they in another unit?"
        )
    half = depths.shape[1] // 2
    upper, lower = depths[:, :half][known[:, :half]], depths[:, half:][known[:, half:]]
    if layout.nearer_is_larger and upper.size and lower.size:
        above, below = float(np.median(upper)), float(np.median(lower))
        if below < FARTHER * above:
            said.append(
                "disparities must be larger where the road is near, found a median of "
                f"{below:.4g} in the lower half and {above:.4g} in the upper: are they depths?"
            )
    return said


# ------------------------------------------------------------------------------------------------
# The released layout


def released(path: Path, layout: Layout) -> Source | None:
    """Return the frames of a folder as the field's code reads them; None if it has none.

    ``train`` and ``val`` with one folder per kind of label and ``0.npy``, ``1.npy``, ... in each;
    ``val`` holds the test frames.

    Raises:
        ValueError: Files are missing.
    """
    folders: dict[tuple[str, str], Path] = {}
    if not any((path / split / "image").is_dir() for split in ("train", "val")):
        return None
    if (path / "train" / "image").is_dir() and not any((path / "train" / "image").glob("*.npy")):
        return None
    names: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        counts = {}
        for array, choices in layout.folders.items():
            places = [path / split / choice for choice in choices]
            place = next((p for p in places if p.is_dir()), None)
            if place is None:
                raise ValueError(
                    f"{path / split} must have a folder {' or '.join(choices)}. {layout.how}"
                )
            folders[split, array] = place
            found = {file.name for file in place.glob("*.npy")}
            counts[array] = len(found)
            missing = [n for n in range(len(found)) if f"{n}.npy" not in found]
            if missing:
                raise ValueError(
                    f"{place} must hold 0.npy to {len(found) - 1}.npy: {missing[0]}.npy is missing"
                )
        if len(set(counts.values())) != 1:
            said = ", ".join(f"{count} of {array}" for array, count in counts.items())
            raise ValueError(f"{path / split} holds different numbers of files: {said}")
        names[split] = tuple(f"{split}/{number}" for number in range(counts["images"]))

    def read(name: str) -> dict[str, Any]:
        split, _, number = name.partition("/")
        return {
            array: _read_array(folders[split, array] / f"{number}.npy", layout, array)
            for array in layout.folders
        }

    facts = {"layout": "released"}
    if layout.normals:
        facts["normals"] = "released"
    return Source(path, names["train"], names["val"], read, "released", facts)


def _read_array(path: Path, layout: Layout, array: str) -> Any:
    """Read one file of the released layout and bring it into the prepared form."""
    dtype, shape = layout.arrays[array]
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if array in ("labels", "depths") and found.shape == (*shape, 1):
        found = found[..., 0]
    if found.shape != shape or found.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {found.dtype} {found.shape}, not numbers {shape}")
    values = np.asarray(found, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds a number that is not finite")
    low, high = float(values.min()), float(values.max())
    if array == "images":
        if low < -SLACK or high > 1 + SLACK:
            raise ValueError(f"{path} must be from 0 to 1. Found {low:g} to {high:g}.")
        return np.round(values.clip(0, 1) * 255).astype(dtype)
    if array == "labels":
        if low < -1 or high >= layout.classes or (values != np.round(values)).any():
            raise ValueError(
                f"{path} must hold classes from 0 to {layout.classes - 1}, or -1. "
                f"Found {low:g} to {high:g}."
            )
    elif array == "depths":
        if low < layout.least or high > layout.most:
            raise ValueError(
                f"{path} must be from {layout.least:g} to {layout.most:g}. "
                f"Found {low:g} to {high:g}. {OVERRULE}"
            )
    else:
        length = np.linalg.norm(values, axis=-1)
        # Released normals were resized, and are not unit vectors any more.
        if length.max() > layout.longest:
            raise ValueError(
                f"{path} must hold unit vectors or 0. Found a length of {length.max():g}. "
                f"{OVERRULE}"
            )
        usual = float(np.median(length[length > 0])) if length.any() else 1.0
        if usual < layout.shortest:
            raise ValueError(
                f"{path} must hold unit vectors or 0. Found a median length of {usual:g}. "
                f"{OVERRULE}"
            )
        values = values / np.where(length > 0, length, 1)[..., None]
    return values.astype(dtype)
