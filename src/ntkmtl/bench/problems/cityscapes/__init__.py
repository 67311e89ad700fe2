"""``cityscapes``: classes and disparity of street scenes, as the field trains them."""

from __future__ import annotations

from ntkmtl.bench.problems.cityscapes._problem import Cityscapes, prepare
from ntkmtl.bench.problems.dense._labels import ImageBatch

__all__ = ["Cityscapes", "ImageBatch", "prepare"]
