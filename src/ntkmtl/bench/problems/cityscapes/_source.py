"""The frames of CityScapes in the layout that MTAN released."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
