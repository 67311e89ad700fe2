"""One step of a training as a recorder is shown it, and what a recorder must have."""

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
    """One step of a training, as :class:`ntkmtl.Balancer` shows it to a recorder.

    Attributes:
        step: Number of the step, from 0.
        tasks: Names of all k tasks.
        present: Positions of the p tasks with labels in this batch.
        losses: Their losses, shape (p,).
        weights: The weights of all tasks as reported, shape (k,).
        kernel: The extended NTK of the tasks with labels; None where there was none to be had.
    """

    step: int
    tasks: tuple[str, ...]
    present: tuple[int, ...]
    losses: Tensor
    weights: Tensor
    kernel: ExtendedNTK | None


class StepRecorder(Protocol):
    """What ``Balancer(record=...)`` takes; :class:`ntkmtl.analysis.Recorder` is one.

    Attributes:
        source: Where the recorded kernel comes from, ``"representation"`` or ``"exact"``; the
            Balancer's own if None.
        minibatches: The recorded kernel's n; the Balancer's own if None.
        pooling: For ``source="representation"``; the Balancer's own if None.
    """

    source: str | None
    minibatches: int | None
    pooling: Pooling | None

    def wants(self, step: int) -> bool:
        """Return whether this step is to be recorded."""

    def __call__(self, snapshot: Snapshot) -> None:
        """Take one step."""
