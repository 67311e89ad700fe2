"""The problem ``xtb``: energy, forces, dipole and partial charges of small molecules."""

from __future__ import annotations

from ntkmtl.bench.problems.xtb._problem import XTB

__all__ = ["XTB"]
