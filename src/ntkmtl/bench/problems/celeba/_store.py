"""CelebA as it is released, and as prepared arrays: every image decoded once."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._arrays import (
    OVERRULE,
    ArrayLayout,
    PreparedData,
    accepted_notice,
    beside,
    dark,
    decode_samples,
    finish,
    refuse_implausible,
    require_layout,
    write_array,
)
from ntkmtl.errors import imports_for
from ntkmtl.files import read_bytes, require_regular

IMAGES = 202_599
PARTITION = {"train": 162_770, "val": 19_867, "test": 19_962}
"""Images of the official partition, whose file says 0, 1 and 2."""

# fmt: off
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair",
    "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair",
    "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline",
    "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings",
    "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on
"""The 40 attributes in the order of ``list_attr_celeba.txt``."""

PERCENT = (
    *(11, 27, 51, 20, 2, 15, 24, 23, 24, 15, 5, 21, 14, 6, 5, 7, 6, 4, 39, 46),
    *(42, 48, 4, 12, 83, 28, 4, 28, 8, 7, 6, 48, 21, 32, 19, 5, 47, 12, 7, 77),
)
"""How many of 100 images of CelebA have each of the attributes, rounded."""

_RELEASED = "img_align_celeba"


@dataclass(frozen=True)
class Annotations:
    """Labels and partition of m images.

    Attributes:
        names: Names of their files, rising.
        labels: 1 where an image has an attribute, else 0, uint8 of shape (m, 40).
        partition: 0 for training, 1 for validation, 2 for testing, uint8 of shape (m,).
    """

    names: tuple[str, ...]
    labels: NDArray[np.uint8]
    partition: NDArray[np.uint8]


def _find(folder: Path, names: tuple[str, ...]) -> Path:
    for below in ("", "Anno", "Eval", "Img"):
        for name in names:
            path = folder / below / name
            if path.exists():
                return path
    raise FileNotFoundError(f"{folder} has no {names[0]}, nor {' or '.join(names[1:])}")


def _text(path: Path) -> str:
    try:
        content = read_bytes(path)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".zip":
            require_regular(path)
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = archive.namelist()
                if len(members) != 1:
                    raise ValueError(f"it holds {len(members)} files, not one")
                content = archive.read(members[0])
        return content.decode("ascii")
    except (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_annotations(folder: Path) -> Annotations:
    """Read attributes and partition.

    Args:
        folder: The folder with ``list_attr_celeba.txt`` (or a zip of it) and
            ``list_eval_partition.txt`` (or that with ``.gz``), or with the folders ``Anno`` and
            ``Eval`` of the release around them.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the two are of different images.
    """
    path = _find(folder, ("list_attr_celeba.txt", "list_attr_celeba.zip"))
    lines = _text(path).splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise ValueError(f"{path} must begin with the number of images")
    count = int(lines[0])
    if tuple(lines[1].split()) != ATTRIBUTES:
        raise ValueError(f"{path} has not the 40 attributes of CelebA in its second line")
    if len(lines) - 2 != count:
        raise ValueError(f"{path} says {count:,} images and has lines for {len(lines) - 2:,}")
    names: list[str] = []
    labels = np.zeros((count, len(ATTRIBUTES)), dtype=np.uint8)
    for row, line in enumerate(lines[2:]):
        name, *values = line.split() or [""]
        others = [value for value in values if value not in ("1", "-1")]
        if others or len(values) != len(ATTRIBUTES):
            found = repr(others[0]) if others else f"{len(values)} values"
            raise ValueError(
                f"line {row + 3} of {path} must be a name and 40 times 1 or -1, found {found}"
            )
        names.append(name)
        labels[row] = [value == "1" for value in values]
    if names != sorted(set(names)):
        raise ValueError(f"the names in {path} must rise, each once")

    path = _find(folder, ("list_eval_partition.txt", "list_eval_partition.txt.gz"))
    rows = [line.split() for line in _text(path).splitlines() if line.strip()]
    if any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise ValueError(f"a line of {path} must be a name and 0, 1 or 2")
    if [row[0] for row in rows] != names:
        raise ValueError(
            f"{path} names {len(rows):,} images and the attributes {count:,}, or others"
        )
    partition = np.array([int(row[1]) for row in rows], dtype=np.uint8)
    if count == IMAGES:
        found = np.bincount(partition, minlength=3).tolist()
        if found != list(PARTITION.values()):
            raise ValueError(f"{path} has {found} images, not {list(PARTITION.values())}")
    return Annotations(tuple(names), labels, partition)


@dataclass(frozen=True)
class Images:
    """The images of a folder or an archive.

    Attributes:
        path: The folder or archive.
        names: Names of the files, rising.
        read: Gives the bytes of a file by name.
        whole: Whether it has the released name, and so must hold every image.
    """

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    whole: bool


@contextmanager
def open_images(source: Path) -> Iterator[Images]:
    """Open the images beside the annotations, or those that are named.

    Args:
        source: The folder of CelebA, with ``img_align_celeba`` as a folder, ``.zip`` or ``.tar`` in
            it (or in ``Img``), or, for a part of CelebA, one archive whose name begins so.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The archive is damaged, or two of its files have one name.
    """
    path = _images_path(source)
    try:
        if path.is_dir():
            inside = {file.name: file for file in path.iterdir() if file.suffix == ".jpg"}
            yield _images(path, list(inside), lambda name: read_bytes(inside[name]))
        elif path.suffix == ".zip":
            require_regular(path)
            with zipfile.ZipFile(path) as archive:
                members = [n for n in archive.namelist() if n.endswith(".jpg")]
                names = [PurePosixPath(member).name for member in members]
                member_of = dict(zip(names, members, strict=True))
                yield _images(path, names, lambda name: archive.read(member_of[name]))
        else:
            require_regular(path)
            with tarfile.open(path) as tar:
                files = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".jpg")]
                entries = {PurePosixPath(m.name).name: m for m in files}

                def read(name: str) -> bytes:
                    file = tar.extractfile(entries[name])
                    assert file is not None  # only regular files are kept
                    with file:
                        content = file.read()
                    if len(content) != entries[name].size:
                        raise ValueError(f"{path} is cut off at {name}")
                    return content

                yield _images(path, [PurePosixPath(m.name).name for m in files], read)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _images(path: Path, names: list[str], read: Callable[[str], bytes]) -> Images:
    if not names:
        raise ValueError(f"{path} holds no .jpg file")
    if len(set(names)) != len(names):
        raise ValueError(f"{path} holds files of the same name")
    return Images(path, tuple(sorted(names)), read, path.stem == _RELEASED)


def _images_path(source: Path) -> Path:
    for below in ("", "Img"):
        for suffix in ("", ".zip", ".tar"):
            path = source / below / f"{_RELEASED}{suffix}"
            if path.exists():
                return path
    parts = sorted(p for p in source.glob(f"{_RELEASED}*") if p.suffix in (".zip", ".tar"))
    if len(parts) != 1:
        found = ", ".join(p.name for p in parts) or "none"
        raise FileNotFoundError(
            f"{source} must have {_RELEASED} as a folder, .zip or .tar, or one archive whose name "
            f"begins so. Found {found}."
        )
    return parts[0]


# ------------------------------------------------------------------------------------------------
# As prepared arrays

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
        names = ("images", "labels", "partition", "numbers")
        facts = {"source": images.path.name, "images": len(rows), **accepted}
        finish(partial, folder, KIND, names, facts)
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
        raise ValueError(f"{name} in {images.path} is not a whole image: {error}") from error
    if not any_shape and (min(wide, high) < SMALLEST_SIDE or max(wide, high) > 2 * min(wide, high)):
        raise ValueError(
            f"{name} in {images.path} must be a face of about 178 x 218 pixels, with sides from "
            f"{SMALLEST_SIDE} of which none is twice the other, found {wide} x {high}. {OVERRULE}"
        )
    return np.asarray(small)
