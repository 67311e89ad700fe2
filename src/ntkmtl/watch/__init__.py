"""Constant loss weights, measured on the first percent of a run."""

from __future__ import annotations

from ntkmtl.watch._result import FORMATS, ConstantWeights
from ntkmtl.watch._watch import Watch, weigh

__all__ = ["FORMATS", "ConstantWeights", "Watch", "weigh"]
