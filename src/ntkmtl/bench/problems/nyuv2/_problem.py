"""The problem ``nyuv2``, its frames, and surface normals derived from their depth."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.base import Metric, Recipe
from ntkmtl.bench.problems.dense._labels import metrics_of
from ntkmtl.bench.problems.dense._problem import DenseProblem, Part, parts, recipes
from ntkmtl.bench.problems.dense._store import Layout, Source, prepare_frames, released
from ntkmtl.errors import imports_for
from ntkmtl.files import require_regular

# ------------------------------------------------------------------------------------------------
# Surface normals derived from depth

INTRINSICS = (518.857901, 519.469611, 325.582449, 253.736166)
"""Focal lengths and center, fx, fy, cx, cy in pixels, of NYUv2's color camera at 640 x 480."""

WINDOW = 19
"""Side in pixels, at 288 x 384, of the squares that planes are fitted to."""


def _window_sums(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return sums over squares of pixels around each pixel, cut off at the borders."""
    padded = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    high, wide = values.shape
    half = window // 2
    top, bottom = np.clip([np.arange(high) - half, np.arange(high) + half + 1], 0, high)
    left, right = np.clip([np.arange(wide) - half, np.arange(wide) + half + 1], 0, wide)
    sums: NDArray[np.float64] = (
        padded[np.ix_(bottom, right)]
        - padded[np.ix_(top, right)]
        - padded[np.ix_(bottom, left)]
        + padded[np.ix_(top, left)]
    )
    return sums


def _fitted(
    inverse: NDArray[np.float64],
    known: NDArray[np.bool_],
    pixels: tuple[NDArray[np.float64], NDArray[np.float64]],
    place: tuple[float, float],
    window: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Fit ``a u + b v + c`` to the inverse depth around each pixel.

    Returns:
        a, b, the fitted function at ``place``, and where there are enough known pixels; all (H, W).
    """
    u, v = pixels
    weight = known.astype(np.float64)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return _window_sums(values * weight, window)

    count = total(np.ones_like(inverse))
    n = np.maximum(count, 1)
    mu, mv, mi = total(u) / n, total(v) / n, total(inverse) / n
    uu, vv, uv = total(u * u) / n - mu * mu, total(v * v) / n - mv * mv, total(u * v) / n - mu * mv
    ui, vi = total(u * inverse) / n - mu * mi, total(v * inverse) / n - mv * mi
    determinant = uu * vv - uv * uv
    whole = _window_sums(np.ones_like(inverse), window)
    enough = known & (2 * count >= whole) & (determinant > 1e-6)
    safe = np.where(enough, determinant, 1.0)
    a, b = (vv * ui - uv * vi) / safe, (uu * vi - uv * ui) / safe
    return a, b, mi + a * (place[0] - mu) + b * (place[1] - mv), enough


def normals_from_depth(
    depth: NDArray[Any],
    window: int = WINDOW,
    intrinsics: tuple[float, float, float, float] = INTRINSICS,
) -> NDArray[np.float64]:
    """Return the normals of planes fitted to the surroundings of each pixel.

    A pixel (u, v) at depth z shows the point ``X = z K^-1 (u, v, 1)``. For the points of a plane
    ``n . X = d`` the inverse depth ``1 / z = (K^-T n / d) . (u, v, 1)`` is linear in u and v. So a
    linear function ``a u + b v + c`` is fitted to the inverse depth by least squares in a square of
    pixels, and n is ``K^T (a, b, c)`` brought to length 1 and turned to the camera. For a plane
    this is exact, at borders too.

    Args:
        depth: In meters, shape (H, W), with 0 where there is none.
        window: Side of the square, an odd number of pixels.
        intrinsics: fx, fy, cx, cy in pixels at 640 x 480.

    Returns:
        float64 of shape (H, W, 3), x to the right, y down, z away from the camera; 0 where there
        is no depth or fewer than half of the square's pixels have one.

    Raises:
        ValueError: A depth is negative or not finite, or ``window`` is not odd and at least 3.

    Example:
        >>> import numpy as np
        >>> (normals_from_depth(np.full((4, 6), 2.0), window=3)[0, 0].round(6) + 0.0).tolist()
        [0.0, 0.0, -1.0]
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of at least 3. Found {window}.")
    z = np.asarray(depth, dtype=np.float64)
    if not np.isfinite(z).all() or (z < 0).any():
        raise ValueError("depths must be finite and not negative")
    high, wide = z.shape
    sx, sy = wide / 640, high / 480
    fx, fy, cx, cy = intrinsics[0] * sx, intrinsics[1] * sy, intrinsics[2] * sx, intrinsics[3] * sy
    known = z > 0
    inverse = np.divide(1.0, z, out=np.zeros_like(z), where=known)
    # From the middle of the image, so that little is lost where sums of squares are subtracted.
    u, v = np.meshgrid(np.arange(wide) - (wide - 1) / 2, np.arange(high) - (high - 1) / 2)
    middle_x, middle_y = cx - (wide - 1) / 2, cy - (high - 1) / 2
    # At the camera's center the fitted function is cx a + cy b + c.
    a, b, at_center, enough = _fitted(inverse, known, (u, v), (middle_x, middle_y), window)
    normals = np.stack([fx * a, fy * b, at_center], axis=-1)
    # n . X = d with d > 0 as made; turned to the camera, n . X is negative.
    side = normals[..., 0] * (u - middle_x) / fx + normals[..., 1] * (v - middle_y) / fy
    side += normals[..., 2]
    normals *= np.where(side > 0, -1.0, 1.0)[..., None]
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    found: NDArray[np.float64] = np.where(
        enough[..., None], normals / np.where(length > 0, length, 1), 0.0
    )
    return found


# ------------------------------------------------------------------------------------------------
# Frames

SIZE = (288, 384)
CLASSES = 13
FRAMES = {"train": 795, "test": 654}
"""Frames of the official split."""

DEPTH_STEPS = 25.5
"""Steps of an 8-bit depth per meter: v stands for (v + 0.5) / 25.5 m."""

IGNORED_8_BIT = 255
"""A pixel without a class in 8-bit labels."""

LAYOUT = Layout(
    kind="nyuv2 1",
    size=SIZE,
    classes=CLASSES,
    normals=True,
    folders={
        "images": ("image",),
        "labels": ("label",),
        "depths": ("depth",),
        "normals": ("normal",),
    },
    least=0.0,
    most=20.0,
    # Rooms of any kind lie within; depths in other units do not.
    typical=(0.6, 9.0),
    unit="depths must be in meters",
    how=(
        "`ntkmtl data nyuv2 --source PATH` prepares the data, from the folder with train and val "
        "that MTAN released (https://github.com/lorenmt/mtan names the place), or from an archive "
        "with the pictures; --data or NTKMTL_DATA say where prepared data are."
    ),
)

_PARTS = {"image": ".jpg", "label13": ".png", "depth8": ".png"}


def prepare(
    source: Path | None,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    accept_implausible: bool = False,
) -> str:
    """Decode NYUv2, or a part of it, into prepared arrays.

    Images are stored as 8-bit numbers, depths as float32, normals as float16 (within 0.03 degrees).
    If it is stopped, the next call continues from there.

    ``source`` is the released folder with ``train`` and ``val``, in each ``image``, ``label``,
    ``depth`` and ``normal`` with ``0.npy`` and so on; or a ``.tar``, or a folder with one whose
    name begins with ``nyuv2``, that holds ``train`` and ``val``, in each ``image/*.jpg``,
    ``label13/*.png`` and ``depth8/*.png``. From these, normals are derived from depth. The other
    arguments and the return value are those of :attr:`ntkmtl.bench.problems.ProblemSpec.prepare`.

    Raises:
        FileNotFoundError: There are no frames.
        ValueError: A frame is damaged.
        MissingExtraError: Pillow is not installed and pictures have to be read.
    """
    if source is None:
        raise FileNotFoundError(f"the released folder or an archive must be named. {LAYOUT.how}")
    layout = LAYOUT.tolerant() if accept_implausible else LAYOUT
    if source.is_dir():
        arrays = released(source, layout)
        if arrays is not None:
            return prepare_frames(arrays, layout, folder, progress, accept_implausible)
        archives = sorted(source.glob("nyuv2*.tar"))
        if len(archives) != 1:
            said = ", ".join(path.name for path in archives) or "none"
            raise FileNotFoundError(
                f"{source} must hold train/image/0.npy and so on, or one archive nyuv2*.tar. "
                f"Found archives: {said}. {LAYOUT.how}"
            )
        source = archives[0]
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there. {LAYOUT.how}")
    with ExitStack() as stack:
        try:
            require_regular(source)
            tar = stack.enter_context(tarfile.open(source))
            pictures = _pictures(source, tar)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{source} cannot be read: {error}") from error
        return prepare_frames(pictures, layout, folder, progress, accept_implausible)


def _pictures(path: Path, tar: tarfile.TarFile) -> Source:
    members: dict[tuple[str, str, str], tarfile.TarInfo] = {}
    for member in tar.getmembers():
        parts = PurePosixPath(member.name).parts[-3:]
        if not member.isfile() or len(parts) != 3 or parts[1] not in _PARTS:
            continue
        split, part, name = parts
        if split in ("train", "val") and name.endswith(_PARTS[part]):
            members[split, part, name.rpartition(".")[0]] = member
    names: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        found = {
            part: {name for s, p, name in members if (s, p) == (split, part)} for part in _PARTS
        }
        every = set().union(*found.values())
        for part, own in found.items():
            if own != every:
                raise ValueError(
                    f"{path} has no {split}/{part}/{min(every - own)}{_PARTS[part]}, though other "
                    "pictures of that frame are there"
                )
        names[split] = tuple(f"{split}/{name}" for name in sorted(every))

    def picture(split: str, part: str, name: str) -> NDArray[np.uint8]:
        member = members[split, part, name]
        try:
            file = tar.extractfile(member)
            assert file is not None  # only regular files are kept
            content = file.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path} cannot be read at {member.name}: {error}") from error
        if len(content) != member.size:
            raise ValueError(f"{path} is cut off at {member.name}")
        return _decoded(content, f"{member.name} in {path}", part == "image")

    def read(name: str) -> dict[str, Any]:
        split, _, number = name.partition("/")
        label = picture(split, "label13", number)
        known = label != IGNORED_8_BIT
        if label[known].size and label[known].max() >= CLASSES:
            raise ValueError(
                f"the label of {name} in {path} must hold 0 to {CLASSES - 1}, or "
                f"{IGNORED_8_BIT} for none. Found {label[known].max()}."
            )
        depth = (picture(split, "depth8", number) + 0.5) / DEPTH_STEPS
        return {
            "images": picture(split, "image", number),
            "labels": np.where(known, label, -1).astype(np.int8),
            "depths": depth.astype(np.float32),
            "normals": normals_from_depth(depth).astype(np.float16),
        }

    facts = {
        "layout": "pictures",
        "normals": f"derived from depth (planes in {WINDOW} x {WINDOW} pixels)",
        "depth": "8 bit, steps of 4 cm",
    }
    sizes = ",".join(str(member.size) for _, member in sorted(members.items()))
    return Source(path, names["train"], names["val"], read, sizes, facts)


def _decoded(content: bytes, name: str, color: bool) -> NDArray[np.uint8]:
    with imports_for("decoding images"):
        from PIL import Image
    mode = "RGB" if color else "L"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode != mode or image.size != SIZE[::-1]:
                raise ValueError(
                    f"it is {image.mode} of {image.size[1]} x {image.size[0]}, not {mode} of "
                    f"{SIZE[0]} x {SIZE[1]}"
                )
            decoded: NDArray[np.uint8] = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be used: {error}") from error
    return decoded


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
    layout: ClassVar[Layout] = LAYOUT
    parts: ClassVar[Mapping[str, Part]] = parts(factor=4, training=199, testing=164)
    frames_needed: ClassVar[tuple[int, int]] = (FRAMES["train"], FRAMES["test"])
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
