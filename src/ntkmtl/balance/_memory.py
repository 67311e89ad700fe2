"""What lasts from one step of a Balancer to the next, and its state as flat tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Averages", "Memory", "pack", "unpack"]

_TEXT = "json"
_TENSOR = "tensor"


class Averages:
    """Moving averages of the logarithms of eigenvalues, a task at a time.

    The mean of the last steps, weighted by powers of the decay; a task's first value counts no more
    than its others. Eigenvalues of zero have no logarithm and are left out.

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
        """Take in eigenvalues of the tasks at some positions."""
        seen = eigenvalues > 0
        at, logs = tasks[seen], eigenvalues[seen].to(torch.float64).log()
        self.total[at] = self.decay * self.total[at] + logs
        self.count[at] = self.decay * self.count[at] + 1.0

    def values(self, tasks: Tensor | None = None) -> Tensor:
        """Return the geometric means, float64; 0 for a task that has none."""
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
    """State of a Balancer besides its method's.

    Attributes:
        step: Number of calls of ``backward``.
        names: Names of all tasks, once known.
        weights: Weights of the last kernel, NaN for a task without.
        measured: Number of the step in which each task's kernel was last made.
        average: Moving average of the eigenvalues, or of the Gramian, NaN for a task without.
        logs: Moving averages of the logarithms of eigenvalues, for ``source="auto"``.
        kernels: Number of kernels made, which decides when to probe.
        length: What ``length="unit"`` keeps the combined gradient at.
        due: Step in which ``source="auto"`` next looks at each task by an exact kernel.
        gap: Steps between its last two looks at each task.
        ratio: Exact over representation, for tasks whose representation is looked at in between.
        operations: The operation that each task's loss came out of when it was last looked at.
        signatures: What each task's cut looked like when its averages were started.
        warned: What the user was told already.
        verified: Cuts whose samples were looked at.
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

    def remember(self, weights: Tensor, tasks: Tensor, step: int) -> None:
        """Keep weights of the tasks at some positions for later steps."""
        assert self.names is not None
        if self.weights is None or self.measured is None:
            total = len(self.names)
            self.weights = torch.full((total,), math.nan, dtype=torch.float64)
            self.measured = torch.full((total,), -1, dtype=torch.int64)
        self.weights[tasks] = weights.to("cpu", torch.float64)
        self.measured[tasks] = step

    def known(self, tasks: Sequence[int]) -> Tensor | None:
        """Return the weights of the tasks at some positions, None if one was never looked at."""
        if self.weights is None:
            return None
        whole = len(tasks) == len(self.weights)
        found = self.weights.clone() if whole else self.weights[list(tasks)]
        return None if any(map(math.isnan, found.tolist())) else found

    def young(self, tasks: Tensor | slice, step: int, every: int) -> bool:
        """Whether all these tasks have weights of the last ``every`` steps."""
        if self.measured is None or every == 1:
            return False
        measured = self.measured[tasks]
        return bool(((measured >= 0) & (step - measured < every)).all())

    def state(self) -> dict[str, Any]:
        """Return tensors, plain values and None by name."""
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
        }

    def load(self, state: Mapping[str, Any], decay: float) -> None:
        """Take over what :meth:`state` returned."""
        self.step, self.kernels = state["step"], state["kernels"]
        self.due, self.gap = dict(state["due"]), dict(state["gap"])
        self.length = state["length"]
        self.operations = {int(i): name for i, name in state["operations"]}
        self.signatures = {int(i): name for i, name in state["signatures"]}
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


def pack(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring a nested state into one flat dict of tensors, as safetensors takes it.

    Tensors keep their values under names joined by dots; the structure and all else become one JSON
    text, kept as bytes.

    Raises:
        TypeError: The state holds something that cannot be kept so.

    Example:
        >>> packed = pack({"step": 3, "method": {"scores": torch.ones(2), "last": None}})
        >>> sorted(packed), unpack(packed)["method"]["last"]
        (['json', 'method.scores'], None)
    """
    tensors: dict[str, Tensor] = {}

    def visit(prefix: str, value: Any) -> Any:
        start = f"{prefix}." if prefix else ""
        if isinstance(value, Tensor):
            while prefix in tensors or prefix == _TEXT:  # keys may hold dots themselves
                prefix += "_"
            tensors[prefix] = value.detach().clone().contiguous()
            return {_TENSOR: prefix}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"keys of a state must be strings, found {list(value)} in {prefix}")
            if set(value) == {_TENSOR} and isinstance(value[_TENSOR], str):
                raise TypeError(f"a string cannot stand alone under the key {_TENSOR!r}: {prefix}")
            return {key: visit(f"{start}{key}", inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [visit(f"{start}{i}", inner) for i, inner in enumerate(value)]
        if not isinstance(value, str | int | float | None):
            raise TypeError(
                f"a state holds tensors, numbers, strings, None, and lists and dicts of them; "
                f"found {type(value)} in {prefix}"
            )
        return value

    text = json.dumps(visit("", state), sort_keys=True).encode()
    tensors[_TEXT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors


def unpack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the nested state that :func:`pack` made flat, its tensors copied.

    Raises:
        TypeError: It is no dict.
        ValueError: It is no such state.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a state of a Balancer is a dict of tensors, found {type(state)}")
    if _TEXT not in state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"this is no state of a Balancer: it holds {sorted(map(str, state))}, expected tensors "
            f"and the entry {_TEXT!r}"
        )
    try:
        whole = json.loads(bytes(state[_TEXT].cpu().tolist()).decode())
    except (ValueError, TypeError) as error:
        raise ValueError(f"the entry {_TEXT!r} of the state cannot be read: {error}") from error
    left = set(state) - {_TEXT}

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [visit(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if set(value) != {_TENSOR} or not isinstance(value[_TENSOR], str):
            return {key: visit(inner) for key, inner in value.items()}
        name = value[_TENSOR]
        if name not in left:
            raise ValueError(f"this is no whole state of a Balancer: it lacks {name!r}")
        left.remove(name)
        return state[name].detach().clone()

    nested = visit(whole)
    if left or not isinstance(nested, dict):
        raise ValueError(f"this is no state of a Balancer: nothing reads {sorted(left)}")
    return nested
