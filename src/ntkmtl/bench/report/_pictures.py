"""Pictures of samples and of predictions as data URLs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkmtl.errors import imports_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_WIDEST = 220
"""Pixels; larger pictures are thinned."""

_MISSING = (0.6, 0.6, 0.6)

# Atomic numbers of QM9, and colors as chemists draw them.
_COLORS = {1: "#b8bec6", 6: "#555c65", 7: "#2f6fd0", 8: "#d03a2f", 9: "#3f9d4d"}
_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}
_BONDED = 1.3
"""Two atoms are bonded if they are closer than this times the sum of their covalent radii."""


def rgb_picture(values: Array) -> str:
    """Return an image of shape (3, H, W), from 0 to 1."""
    return _png(np.moveaxis(values, 0, -1))


def class_picture(classes: NDArray[np.int64]) -> str:
    """Return a mask of shape (H, W): a color per class, gray where it is -1."""
    colors = _colormap("tab20")(classes % 20)[..., :3]
    colors[classes < 0] = _MISSING
    return _png(colors)


def value_picture(values: Array, low: float, high: float) -> str:
    """Return a map of shape (H, W): dark is ``low``, bright ``high``, gray NaN."""
    known = np.isfinite(values)
    scaled = np.where(known, (values - low) / (high - low if high > low else 1.0), 0.0)
    colors = _colormap("viridis")(np.clip(scaled, 0, 1))[..., :3]
    colors[~known] = _MISSING
    return _png(colors)


def normal_picture(normals: Array) -> str:
    """Return surface normals of shape (3, H, W): x, y, z as red, green, blue."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = normals / np.sqrt((normals**2).sum(0, keepdims=True))
    colors = np.moveaxis((unit + 1) / 2, 0, -1)
    colors[~np.isfinite(colors).all(-1)] = _MISSING
    return _png(colors)


def molecule_picture(numbers: NDArray[np.int64], places: Array) -> str:
    """Return a drawing of a molecule, seen from where it is widest.

    Args:
        numbers: Atomic numbers, shape (a,).
        places: In Angstrom, shape (a, 3).
    """
    centered = places - places.mean(0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    seen = centered @ axes.T
    flat, depth = seen[:, :2], seen[:, 2] if seen.shape[1] > 2 else np.zeros(len(seen))
    low = flat.min(0) - 0.9
    width, height = flat.max(0) + 0.9 - low
    radii = np.array([_RADII.get(int(number), 0.7) for number in numbers])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    bonded = np.argwhere(np.triu(apart < _BONDED * (radii[:, None] + radii[None]), 1))
    at = flat - low
    shapes = [
        f'<line x1="{at[i, 0]:.2f}" y1="{at[i, 1]:.2f}" x2="{at[j, 0]:.2f}" y2="{at[j, 1]:.2f}"/>'
        for i, j in bonded
    ]
    for i in np.argsort(depth):
        fill = _COLORS.get(int(numbers[i]), "#8a5ac2")
        shapes.append(
            f'<circle cx="{at[i, 0]:.2f}" cy="{at[i, 1]:.2f}" r="{0.25 + 0.25 * radii[i]:.2f}" '
            f'fill="{fill}"/>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.2f} {height:.2f}" '
        f'width="{30 * width:.0f}" height="{30 * height:.0f}" stroke="#8b949e" '
        f'stroke-width="0.14">{"".join(shapes)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _png(colors: Array) -> str:
    """Return a picture of shape (H, W, 3), from 0 to 1, as PNG."""
    with imports_for("a gallery of pictures"):
        from matplotlib.image import imsave
    step = max(1, -(-colors.shape[1] // _WIDEST))
    buffer = io.BytesIO()
    imsave(buffer, np.clip(colors[::step, ::step], 0, 1), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _colormap(name: str) -> Any:
    with imports_for("a gallery of pictures"):
        import matplotlib as mpl
    return mpl.colormaps[name]
