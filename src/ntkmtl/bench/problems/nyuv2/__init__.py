"""``nyuv2``: classes, depth and surface normals of indoor scenes, as the field trains them."""

from __future__ import annotations

from ntkmtl.bench.problems.dense._labels import ImageBatch
from ntkmtl.bench.problems.nyuv2._problem import NYUv2, normals_from_depth, prepare

__all__ = ["ImageBatch", "NYUv2", "normals_from_depth", "prepare"]
