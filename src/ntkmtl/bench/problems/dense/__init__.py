"""Dense prediction: what the problems share whose labels every pixel has."""

from __future__ import annotations

from ntkmtl.bench.problems.dense._labels import (
    ImageBatch,
    Kind,
    Meter,
    augment,
    loss,
    meter,
    metrics_of,
)
from ntkmtl.bench.problems.dense._network import MTANNetwork, SegNetNetwork
from ntkmtl.bench.problems.dense._problem import DenseProblem, Part, parts, recipes
from ntkmtl.bench.problems.dense._store import Frames, Layout

__all__ = [
    "DenseProblem",
    "Frames",
    "ImageBatch",
    "Kind",
    "Layout",
    "MTANNetwork",
    "Meter",
    "Part",
    "SegNetNetwork",
    "augment",
    "loss",
    "meter",
    "metrics_of",
    "parts",
    "recipes",
]
