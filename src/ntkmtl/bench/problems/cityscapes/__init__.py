"""``cityscapes``: classes and disparity of street scenes, as the field trains them."""

from __future__ import annotations

from ntkmtl.bench.problems._dense import Batch
from ntkmtl.bench.problems.cityscapes._problem import Cityscapes
from ntkmtl.bench.problems.cityscapes._source import load, prepare

__all__ = ["Batch", "Cityscapes", "load", "prepare"]
