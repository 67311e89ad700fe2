"""``qm9``: 11 properties of QM9's 130,831 molecules, as the multi-task literature trains them."""

from __future__ import annotations

from ntkmtl.bench.problems.qm9._molecules import Molecules
from ntkmtl.bench.problems.qm9._network import MessagePassingNetwork, random_molecules
from ntkmtl.bench.problems.qm9._problem import QM9, Graphs, MoleculeBatch
from ntkmtl.bench.problems.qm9._store import load, prepare, read_source

__all__ = [
    "QM9",
    "Graphs",
    "MessagePassingNetwork",
    "MoleculeBatch",
    "Molecules",
    "load",
    "prepare",
    "random_molecules",
    "read_source",
]
