"""CelebA as it is released: attributes, partition and aligned images."""

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
