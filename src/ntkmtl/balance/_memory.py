"""State that a Balancer keeps from one step to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Averages", "Memory"]


class Averages:
    """Moving averages of the logarithms of eigenvalues, one for each task.

    Each is a mean of the values so far, weighted by powers of the decay and without bias towards
    the first value. Eigenvalues of zero are left out.

    Args:
        tasks: Number of tasks k.
        decay: In [0, 1).

    Example:
        >>> averages = Averages(2, 0.5)
        >>> averages.add(torch.tensor([1.0, 4.0]), torch.tensor([0, 1]))
        >>> averages.add(torch.tensor([8.0]), torch.tensor([0]))
        >>> averages.values()  # exp of (0.5 * 0 + log 8) / 1.5 and of log 4
        tensor([4., 4.], dtype=torch.float64)
    """

    def __init__(self, tasks: int, decay: float) -> None:
        self.decay = decay
        self.total = torch.zeros(tasks, dtype=torch.float64)
        self.count = torch.zeros(tasks, dtype=torch.float64)

    @property
    def known(self) -> Tensor:
        """Positions of the tasks that have a value."""
        return self.count.nonzero().flatten()

    def add(self, eigenvalues: Tensor, tasks: Tensor) -> None:
        """Add eigenvalues of the tasks at some positions."""
        seen = eigenvalues > 0
        at, logs = tasks[seen], eigenvalues[seen].to(torch.float64).log()
        self.total[at] = self.decay * self.total[at] + logs
        self.count[at] = self.decay * self.count[at] + 1.0

    def values(self, tasks: Tensor | None = None) -> Tensor:
        """Return the averages as geometric means, float64; 0 for a task without a value."""
        total, count = self.total, self.count
        if tasks is not None:
            total, count = total[tasks], count[tasks]
        return torch.where(count > 0, (total / count.clamp_min(1e-300)).exp(), 0.0)

    def clear(self, tasks: Tensor) -> None:
        """Forget the tasks at some positions."""
        self.total[tasks] = 0.0
        self.count[tasks] = 0.0


@dataclass
class Memory:
    """State of a Balancer, without the state of its method.

    Attributes:
        step: Number of calls of ``backward``.
        names: Names of all tasks, once known.
        weights: Weights from the last kernel of each task, NaN for a task without one.
        measured: Number of the step in which each task's kernel was last computed, -1 for never.
        average: Moving average of the eigenvalues, or of the Gramian; NaN for unknown entries.
        logs: Moving averages of the logarithms of eigenvalues, for ``source="auto"``.
        kernels: Number of kernels computed, which decides when to probe.
        length: Length of the combined gradient that ``length="unit"`` keeps.
        due: With ``source="auto"``, the step of each task's next exact kernel.
        gap: Number of steps between each task's last exact kernel and the next.
        ratio: Averaged ratio of exact and representation's eigenvalues; see ``_auto``.
        operations: Name of the operation that returned each task's loss at its last exact kernel.
        signatures: Signature of each task's cut when its averages were started.
        warned: Keys of warnings that were already given.
        verified: Signatures of cuts whose sample dimension was checked.
        shapes: Shapes of the shared parameters in the order of the first step, for methods that
            read gradients entry by entry.
        walks: Places in that order of each task's shared parameters, as a walk from its loss alone
            meets them.
        tensors: Names of the operations that made the representation, for such methods.
    """

    step: int = 0
    names: tuple[str, ...] | None = None
    weights: Tensor | None = None
    measured: Tensor | None = None
    average: Tensor | None = None
    logs: Averages | None = None
    kernels: int = 0
    length: float | None = None
    due: dict[int, int] = field(default_factory=dict)
    gap: dict[int, int] = field(default_factory=dict)
    ratio: Averages | None = None
    operations: dict[int, str] = field(default_factory=dict)
    signatures: dict[int, str] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    verified: set[str] = field(default_factory=set)
    shapes: list[list[int]] | None = None
    walks: dict[int, list[int]] = field(default_factory=dict)
    tensors: str | None = None

    def remember(self, weights: Tensor, tasks: Tensor, step: int) -> None:
        """Store weights of the tasks at some positions for later steps."""
        assert self.names is not None
        if self.weights is None or self.measured is None:
            total = len(self.names)
            self.weights = torch.full((total,), math.nan, dtype=torch.float64)
            self.measured = torch.full((total,), -1, dtype=torch.int64)
        self.weights[tasks] = weights.to("cpu", torch.float64)
        self.measured[tasks] = step

    def known(self, tasks: Sequence[int]) -> Tensor | None:
        """Return the weights of the tasks at some positions; None if one of them has none."""
        if self.weights is None:
            return None
        whole = len(tasks) == len(self.weights)
        found = self.weights.clone() if whole else self.weights[list(tasks)]
        return None if any(map(math.isnan, found.tolist())) else found

    def young(self, tasks: Tensor | slice, step: int, every: int) -> bool:
        """Whether the weights of all these tasks are less than ``every`` steps old."""
        if self.measured is None or every == 1:
            return False
        measured = self.measured[tasks]
        return bool(((measured >= 0) & (step - measured < every)).all())

    def state(self) -> dict[str, Any]:
        """Return the state as a dict of tensors, plain values and None."""
        return {
            "step": self.step,
            "names": None if self.names is None else list(self.names),
            "weights": self.weights,
            "measured": self.measured,
            "log_total": None if self.logs is None else self.logs.total,
            "log_count": None if self.logs is None else self.logs.count,
            "average": self.average,
            "kernels": self.kernels,
            "length": self.length,
            "due": [list(pair) for pair in self.due.items()],
            "gap": [list(pair) for pair in self.gap.items()],
            "ratio_total": None if self.ratio is None else self.ratio.total,
            "ratio_count": None if self.ratio is None else self.ratio.count,
            "operations": [list(pair) for pair in self.operations.items()],
            "signatures": [list(pair) for pair in self.signatures.items()],
            "shapes": self.shapes,
            "walks": [list(pair) for pair in self.walks.items()],
            "tensors": self.tensors,
        }

    def load(self, state: Mapping[str, Any], decay: float) -> None:
        """Restore a state from :meth:`state`."""
        self.step, self.kernels = state["step"], state["kernels"]
        self.due, self.gap = dict(state["due"]), dict(state["gap"])
        self.length = state["length"]
        self.operations = {int(i): name for i, name in state["operations"]}
        self.signatures = {int(i): name for i, name in state["signatures"]}
        self.shapes, self.tensors = state["shapes"], state["tensors"]
        self.walks = {int(i): places for i, places in state["walks"]}
        self.weights, self.measured = state["weights"], state["measured"]
        self.average = state["average"]
        self.logs = _averages(state["log_total"], state["log_count"], decay)
        self.ratio = _averages(state["ratio_total"], state["ratio_count"], decay)


def _averages(total: Tensor | None, count: Tensor | None, decay: float) -> Averages | None:
    if total is None or count is None:
        return None
    found = Averages(len(total), decay)
    found.total, found.count = total, count
    return found
