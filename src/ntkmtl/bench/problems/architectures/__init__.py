"""Architectures: how much tasks share, as choices of a problem.

Each is generic over an encoder and heads, and any weighting balances it. Where tasks have
their own representations, ``represent`` returns one per task.

Example:
    >>> from ntkmtl.bench.problems import architectures
    >>> architectures.names()
    ('hard', 'cross-stitch', 'mmoe', 'cgc', 'ple', 'dselect-k')
"""

from __future__ import annotations

from ntkmtl.bench.problems.architectures._backbone import (
    Architecture,
    Backbone,
    HardSharing,
    Head,
    Represent,
    pooled,
)
from ntkmtl.bench.problems.architectures._choice import ARCHITECTURES, Choice, choose, names
from ntkmtl.bench.problems.architectures._cross_stitch import CrossStitch
from ntkmtl.bench.problems.architectures._experts import (
    CGC,
    PLE,
    DSelectK,
    DSelectKGate,
    MMoE,
    SoftmaxGate,
    mixed,
    smooth_step,
)

__all__ = [
    "ARCHITECTURES",
    "CGC",
    "PLE",
    "Architecture",
    "Backbone",
    "Choice",
    "CrossStitch",
    "DSelectK",
    "DSelectKGate",
    "HardSharing",
    "Head",
    "MMoE",
    "Represent",
    "SoftmaxGate",
    "choose",
    "mixed",
    "names",
    "pooled",
    "smooth_step",
]
