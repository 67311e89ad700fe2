"""CelebA as prepared arrays: every image decoded once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._arrays import (
    NOTE,
    OVERRULE,
    ArrayLayout,
    PreparedData,
    accepted_notice,
    beside,
    dark,
    decode_samples,
    publish,
    refuse_implausible,
    require_layout,
    write_array,
    write_manifest,
)
from ntkmtl.bench.problems.celeba._source import (
    ATTRIBUTES,
    IMAGES,
    PERCENT,
    Annotations,
    Images,
    open_images,
    read_annotations,
)
from ntkmtl.errors import imports_for

KIND = "celeba 1"
SIDE = 64
SMALLEST_SIDE = 32
"""Pixels; the released faces have 178 x 218."""

UNLIKELY = 1e-6
"""Chance below which an attribute with one value only is refused."""

EVERY = 2_000
"""Images between two notes of how far the decoding has come."""

HOW = (
    "`ntkmtl data celeba --source DIR` prepares the data from the released files "
    "(img_align_celeba.zip, list_attr_celeba.txt, list_eval_partition.txt), which are at "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html for non-commercial research; --data or "
    "NTKMTL_DATA say where prepared data are."
)


@dataclass(frozen=True)
class Faces:
    """m images and their attributes, mapped into memory.

    Attributes:
        images: uint8 of shape (m, 64, 64, 3).
        labels: 1 where an image has an attribute, else 0, uint8 of shape (m, 40).
        partition: 0 for training, 1 for validation, 2 for testing, uint8 of shape (m,).
        numbers: Number of each image, from 1, rising, int32 of shape (m,).
        accepted: A sentence on values that were accepted though implausible, "" for none.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    partition: NDArray[np.uint8]
    numbers: NDArray[np.int32]
    accepted: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def check(self) -> None:
        """Refuse arrays with wrong shapes or values out of range."""
        m = len(self)
        layout: ArrayLayout = {
            "images": (np.uint8, (m, SIDE, SIDE, 3)),
            "labels": (np.uint8, (m, len(ATTRIBUTES))),
            "partition": (np.uint8, (m,)),
            "numbers": (np.int32, (m,)),
        }
        require_layout(vars(self), layout)
        if m == 0 or (np.diff(self.numbers) <= 0).any():
            raise ValueError("the numbers of the images must rise, at least one")
        if self.labels.max() > 1 or self.partition.max() > 2:
            raise ValueError("a label is not 0 or 1, or a partition not 0, 1 or 2")


def load(folder: Path) -> tuple[Faces, str]:
    """Map prepared data into memory.

    Returns:
        The images, and one digest of all arrays.

    Raises:
        DataMissingError: There are none.
        ValueError: They are damaged.
    """
    prepared = PreparedData(folder, KIND, HOW)
    faces = Faces(
        prepared["images"],
        prepared["labels"],
        prepared["partition"],
        prepared["numbers"],
        accepted_notice(prepared.facts),
    )
    try:
        faces.check()
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}. {HOW}") from error
    return faces, prepared.sha256


def prepare(
    source: Path | None,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    accept_implausible: bool = False,
) -> str:
    """Decode CelebA, or a part of it, into prepared arrays.

    Images are brought to 64 x 64 with Pillow's bilinear filter, whatever their sides, and stored as
    8-bit numbers (2.5 GB for all of them), never held in memory at once. If it is stopped, the next
    call continues from there.

    ``source`` is the folder of CelebA as released, with all images in ``img_align_celeba``, or a
    part of them in an archive whose name only begins with that. The other arguments and the return
    value are those of :attr:`ntkmtl.bench.problems.ProblemSpec.prepare`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or there are not as many images as annotations.
        MissingExtraError: Pillow is not installed.
    """
    if source is None:
        raise FileNotFoundError(f"the folder of CelebA as released must be named. {HOW}")
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder. {HOW}")
    partial = beside(folder, "partial")
    annotations = read_annotations(source)
    with open_images(source) as images:
        rows = _rows(annotations, images)
        partial.mkdir(exist_ok=True)
        size = images.path.stat().st_size if images.path.is_file() else 0
        decode_samples(
            partial,
            [str(images.path.resolve()), size],
            images.names,
            {"images": (np.uint8, (SIDE, SIDE, 3))},
            lambda name: {"images": decode(images, name, accept_implausible)},
            progress,
            "images",
            EVERY,
        )
        numbers = [int(Path(name).stem) for name in images.names]
        labels = annotations.labels[rows]
        pixels = np.load(partial / "images.npy", mmap_mode="r", allow_pickle=False)
        accepted = refuse_implausible(source, implausible(labels, pixels), accept_implausible)
        write_array(partial / "labels.npy", labels)
        write_array(partial / "partition.npy", annotations.partition[rows])
        write_array(partial / "numbers.npy", np.array(numbers, dtype=np.int32))
        write_manifest(
            partial,
            KIND,
            ["images", "labels", "partition", "numbers"],
            {"source": images.path.name, "images": len(rows), **accepted},
        )
        (partial / NOTE).unlink(missing_ok=True)
        publish(partial, folder)
    whole = "all of CelebA" if len(rows) == IMAGES else f"of CelebA's {IMAGES:,}"
    return f"{len(rows):,} images ({whole}) in {folder}"


def _rows(annotations: Annotations, images: Images) -> NDArray[np.int64]:
    """Return the row of each image in the annotations."""
    place = {name: row for row, name in enumerate(annotations.names)}
    unknown = [name for name in images.names if name not in place]
    if unknown:
        raise ValueError(
            f"{images.path} holds {unknown[0]} ({len(unknown):,} such files), which the attributes "
            "do not name"
        )
    if images.whole and len(images.names) != len(place):
        missing = sorted(place.keys() - set(images.names))
        raise ValueError(
            f"{images.path} holds {len(images.names):,} images, and the attributes name "
            f"{len(place):,}: {missing[0]} is missing. Fetch it again; a part of CelebA must be an "
            "archive of another name."
        )
    return np.array([place[name] for name in images.names], dtype=np.int64)


def implausible(labels: NDArray[np.uint8], images: NDArray[np.uint8]) -> list[str]:
    """Return what is implausible in attributes and images.

    An attribute that all of m images have, or none, is plausible where m is small: it is refused
    where the chance is below a millionth, by the attribute's share of all of CelebA.

    Args:
        labels: 0 or 1, shape (m, 40).
        images: uint8 of shape (m, 64, 64, 3).
    """
    said = []
    always, never = labels.min(axis=0) == 1, labels.max(axis=0) == 0
    share = np.array(PERCENT) / 100
    chance = np.where(always, share, np.where(never, 1 - share, 1)) ** float(len(labels))
    constant = [ATTRIBUTES[k] for k in np.flatnonzero(chance < UNLIKELY)]
    if constant:
        said.append(
            f"attributes must differ between {len(labels):,} images, found {len(constant)} of "
            f"{len(ATTRIBUTES)} with one value only, as {constant[0]}"
        )
    some = images[:: max(1, len(images) // 100)]
    if len(some) > 1 and (some == some[0]).all():
        said.append(f"images must differ, found {len(some)} equal ones of {len(images):,}")
    return said + dark(some, "images must show faces")


def decode(images: Images, name: str, any_shape: bool = False) -> NDArray[np.uint8]:
    """Return an image as uint8 of shape (64, 64, 3).

    Raises:
        ValueError: It is damaged, or of a shape that no face of CelebA has.
    """
    with imports_for("decoding images"):
        from PIL import Image
    content = images.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            wide, high = image.size
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} in {images.path} is no whole image: {error}") from error
    if not any_shape and (min(wide, high) < SMALLEST_SIDE or max(wide, high) > 2 * min(wide, high)):
        raise ValueError(
            f"{name} in {images.path} must be a face of about 178 x 218 pixels, with sides from "
            f"{SMALLEST_SIDE} of which none is twice the other, found {wide} x {high}. {OVERRULE}"
        )
    return np.asarray(small)
