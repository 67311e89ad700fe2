"""``qm9-mini``: 11 properties of 4,000 real organic molecules.

A subset of QM9 that is shipped with the package, and a small message-passing network that learns it
in seconds on one CPU core.
"""

from __future__ import annotations

from ntkmtl.bench.problems.qm9_mini._data import (
    Inputs,
    Invariants,
    MiniMolecules,
    Scaling,
    invariants,
    read,
)
from ntkmtl.bench.problems.qm9_mini._problem import FeatureBatch, MoleculeNet, QM9Mini

__all__ = [
    "FeatureBatch",
    "Inputs",
    "Invariants",
    "MiniMolecules",
    "MoleculeNet",
    "QM9Mini",
    "Scaling",
    "invariants",
    "read",
]
