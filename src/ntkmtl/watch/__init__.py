"""Constant loss weights, measured during the first percent of a training."""

from __future__ import annotations

from ntkmtl.watch._result import FORMATS, ConstantWeights
from ntkmtl.watch._watch import Watch, weigh

__all__ = ["FORMATS", "ConstantWeights", "Watch", "weigh"]
