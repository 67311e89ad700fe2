"""The interface between a Balancer and a recorder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ntkmtl.kernel import ExtendedNTK
    from ntkmtl.kernel._pooling import Pooling

__all__ = ["Snapshot", "StepRecorder"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One training step, as :class:`ntkmtl.Balancer` passes it to a recorder.

    Attributes:
        step: Number of the step, from 0.
        tasks: Names of all k tasks.
        present: Positions of the p tasks with labels in this batch.
        losses: Their losses, shape (p,).
        weights: The reported weights of all tasks, shape (k,).
        kernel: The extended NTK of the tasks with labels; None if it cannot be computed.
    """

    step: int
    tasks: tuple[str, ...]
    present: tuple[int, ...]
    losses: Tensor
    weights: Tensor
    kernel: ExtendedNTK | None


class StepRecorder(Protocol):
    """Protocol for ``Balancer(record=...)``; :class:`ntkmtl.analysis.Recorder` implements it.

    Attributes:
        source: Source of the recorded kernel, ``"representation"`` or ``"exact"``; None for the
            Balancer's.
        minibatches: The recorded kernel's n; None for the Balancer's.
        pooling: For ``source="representation"``; None for the Balancer's.
    """

    source: str | None
    minibatches: int | None
    pooling: Pooling | None

    def wants(self, step: int) -> bool:
        """Return whether this step is to be recorded."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Record one step."""
