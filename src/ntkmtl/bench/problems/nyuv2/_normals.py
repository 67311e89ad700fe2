"""Surface normals derived from depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
