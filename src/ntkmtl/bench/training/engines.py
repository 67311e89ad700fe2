"""Engines: who trains the runs of a comparison.

Without one, :func:`ntkmtl.bench.training.compare` trains in processes on this machine. Another
engine is an object that :func:`~ntkmtl.bench.training.compare` is given; what it leaves in the
folder of the runs is the same, bit for bit, as long as a run has the same number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ntkmtl.bench.training.workers import Runner

__all__ = ["Engine", "EngineError"]


class EngineError(ValueError):
    """An engine cannot be started, or has no room for a run; nothing was trained."""


class Engine(Protocol):
    """Who trains the runs of a comparison."""

    @property
    def threads(self) -> int:
        """Threads that each run computes with; the rounding of sums depends on it."""

    def start(self, out: Path, say: Callable[[str], None]) -> AbstractContextManager[Runner]:
        """Return what starts the engine, and ends it when its block is left.

        Args:
            out: Folder of the comparison, which is there.
            say: Given lines for the user.

        Raises:
            EngineError: It cannot be started.
        """
