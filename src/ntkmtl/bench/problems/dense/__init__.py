"""Dense prediction: what the problems share whose labels every pixel has."""

from __future__ import annotations

from ntkmtl.bench.problems.dense._network import MTANNetwork, SegNetNetwork

__all__ = ["MTANNetwork", "SegNetNetwork"]
