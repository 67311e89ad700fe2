"""``celeba``: 40 attributes of 202,599 faces, as the multi-task literature trains them."""

from __future__ import annotations

from ntkmtl.bench.problems.celeba._network import CelebANetwork
from ntkmtl.bench.problems.celeba._problem import CelebA, FaceBatch, f1_scores
from ntkmtl.bench.problems.celeba._store import (
    ATTRIBUTES,
    Annotations,
    Faces,
    load,
    prepare,
    read_annotations,
)

__all__ = [
    "ATTRIBUTES",
    "Annotations",
    "CelebA",
    "CelebANetwork",
    "FaceBatch",
    "Faces",
    "f1_scores",
    "load",
    "prepare",
    "read_annotations",
]
