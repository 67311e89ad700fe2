"""Frames of NYUv2 and CityScapes in the layout that is released."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_released(folder: Path, split: str, number: int, arrays: Mapping[str, Any]) -> None:
    """Write one frame in the released layout, one array for each folder's name."""
    for name, array in arrays.items():
        place = folder / split / name
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", np.asarray(array))
