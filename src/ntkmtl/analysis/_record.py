"""A recorder of training: summaries of the extended NTK at regular steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ntkmtl.analysis.kernels import (
    condition_number,
    effective_rank,
    extended_spectrum,
    numerical_rank,
    participation_ratio,
    task_spectra,
)
from ntkmtl.balance._snapshot import Snapshot
from ntkmtl.files import parse_json, read_bytes, write_text
from ntkmtl.kernel._pooling import POOLINGS, Pooling

if TYPE_CHECKING:
    import os

    from ntkmtl.analysis.residuals import ResidualNTK

__all__ = ["RecordFileError", "Recorder", "Snapshot"]

SCHEMA = 1
"""Version of the file format."""

_RESIDUALS = ("residual_traces", "residual_eigenvalues")
"""Columns from :meth:`Recorder.add_residuals`, for losses that are mean squares of residuals."""

_VECTORS = (
    *("losses", "weights", "max_eigenvalues", "effective_ranks", "participation_ratios"),
    *_RESIDUALS,
)
_NUMBERS = ("condition", "condition_weighted", "rank", "rank_weighted", "kernel_minibatches")
_COLUMNS = (*_VECTORS, *_NUMBERS, "affinity")


class RecordFileError(ValueError):
    """A file is not a saved :class:`Recorder`, or is damaged."""


class Recorder:
    """Records summaries of the kernel at regular steps of a run.

    Pass it to a Balancer: ``Balancer(..., record=recorder)``. Only summaries are stored, about
    ``8 k (k + 5)`` bytes per recorded step. Recording does not change the training.

    Args:
        every: Record every ``every``-th step, from step 0.
        source: Source of the recorded kernel, ``"representation"`` or ``"exact"``. None for the
            Balancer's source, but ``"representation"`` if that is ``"probe"`` or ``"auto"``, or if
            the method reads losses only. ``"exact"`` costs one backward pass through the trunk per
            task and mini-batch at each recorded step.
        minibatches: The recorded kernel's n; None for the Balancer's.
        pooling: For ``source="representation"``: see :class:`ntkmtl.Balancer`. None for the
            Balancer's.

    Attributes:
        tasks: Names of the k tasks, empty before the first snapshot.

    Raises:
        ValueError: ``every`` or ``minibatches`` is below 1, or ``source`` or ``pooling`` unknown.
        TypeError: ``every`` or ``minibatches`` is not a whole number.

    Example:
        >>> import torch
        >>> from ntkmtl.kernel import ExtendedNTK
        >>> recorder = Recorder(every=10)
        >>> recorder.wants(0), recorder.wants(5)
        (True, False)
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> kernel = ExtendedNTK((J @ J.T).reshape(2, 1, 2, 1))
        >>> ones = torch.ones(2, dtype=torch.float64)
        >>> recorder(Snapshot(0, ("a", "b"), (0, 1), losses=ones, weights=ones, kernel=kernel))
        >>> recorder["max_eigenvalues"]
        tensor([[9., 1.]], dtype=torch.float64)
        >>> recorder["condition"]
        tensor([9.], dtype=torch.float64)
    """

    def __init__(
        self,
        every: int = 50,
        *,
        source: str | None = None,
        minibatches: int | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        given: tuple[tuple[str, Any], ...] = (("every", every), ("minibatches", minibatches))
        for name, value in given:
            if name == "minibatches" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number, found {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if source not in (None, "representation", "exact"):
            raise ValueError(f"source must be 'representation' or 'exact', found {source!r}")
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
        self.every = every
        self.source = source
        self.minibatches = minibatches
        self.pooling = pooling
        self.tasks: tuple[str, ...] = ()
        self._steps: list[int] = []
        self._columns: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}

    def __repr__(self) -> str:
        return f"Recorder(every={self.every}, snapshots={len(self)})"

    def __len__(self) -> int:
        """Return the number T of recorded steps."""
        return len(self._steps)

    def wants(self, step: int) -> bool:
        """Return whether ``step`` is to be recorded: every :attr:`every`-th one is."""
        return step % self.every == 0

    def __call__(self, snapshot: Snapshot) -> None:
        """Store the summaries of one step.

        Args:
            snapshot: The step. No reference to it is kept.

        Raises:
            ValueError: The tasks differ from those of earlier steps, the step is not after them, or
                shapes do not match.
        """
        tasks = tuple(snapshot.tasks)
        if self.tasks and tasks != self.tasks:
            raise ValueError(
                f"this recorder has tasks {list(self.tasks)}, found {list(tasks)}; use one "
                "recorder per training"
            )
        if self._steps and snapshot.step <= self._steps[-1]:
            raise ValueError(
                f"step {self._steps[-1]} is recorded already, found step {snapshot.step} after it; "
                "use one recorder per training"
            )
        row = _summary(snapshot)
        self.tasks = tasks
        self._steps.append(int(snapshot.step))
        for name, value in row.items():
            self._columns[name].append(value)

    def add_residuals(self, kernels: ResidualNTK) -> None:
        """Add traces and eigenvalues of residuals' kernels, per point, to the last recorded step.

        Args:
            kernels: Kernels of conditions with the names of tasks. Other tasks have NaN.

        Raises:
            ValueError: Nothing is recorded yet, or a condition has not the name of a task.

        Example:
            >>> import torch
            >>> from ntkmtl.analysis import residual_ntk
            >>> w = torch.ones(1, requires_grad=True)
            >>> recorder = Recorder()
            >>> ones = torch.ones(2)
            >>> recorder(Snapshot(0, ("a", "b"), (0, 1), ones, ones, None))
            >>> recorder.add_residuals(residual_ntk({"b": w * torch.tensor([1.0, 3.0])}, [w]))
            >>> recorder["residual_traces"]
            tensor([[nan, 5.]], dtype=torch.float64)
        """
        if not self._steps:
            raise ValueError("residuals belong to a recorded step, and none is recorded yet")
        if unknown := [name for name in kernels.names if name not in self.tasks]:
            raise ValueError(
                f"residual {unknown[0]} is not a task; there are {', '.join(self.tasks)}"
            )
        at = torch.tensor([self.tasks.index(name) for name in kernels.names])
        points = torch.tensor(kernels.points, dtype=torch.float64)
        self._columns["residual_traces"][-1][at] = kernels.traces / points
        self._columns["residual_eigenvalues"][-1][at] = kernels.max_eigenvalues / points

    # ------------------------------------------------------------------ what was recorded

    @property
    def steps(self) -> Tensor:
        """Numbers of the recorded steps, int64 of shape (T,)."""
        return torch.tensor(self._steps, dtype=torch.int64)

    def __getitem__(self, name: str) -> Tensor:
        """Return one quantity at all recorded steps, float64, with NaN for unknown values.

        Args:
            name: One of the following. Shape (T, k): ``losses``; ``weights``; for each task's block
                ``max_eigenvalues``, ``effective_ranks`` and ``participation_ratios``;
                ``residual_traces`` and ``residual_eigenvalues`` of :meth:`add_residuals`. Shape
                (T,): ``condition`` and ``rank`` of the extended kernel; ``condition_weighted`` and
                ``rank_weighted`` of the kernel under the step's weights (Eq. 13);
                ``kernel_minibatches``, the kernel's n. Shape (T, k, k): ``affinity``, the cosines
                between the tasks' gradients.

        Raises:
            KeyError: There is no such quantity.
        """
        if name not in self._columns:
            raise KeyError(f"{name!r} is not recorded; there are {', '.join(_COLUMNS)}")
        rows = self._columns[name]
        if rows:
            return torch.stack(rows)
        k = len(self.tasks)
        shape = (0, k) if name in _VECTORS else (0, k, k) if name == "affinity" else (0,)
        return torch.zeros(shape, dtype=torch.float64)

    def mean_affinity(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return the affinity averaged over recorded steps, float64 of shape (k, k).

        Each pair is averaged over the steps with a known affinity of the two tasks; NaN for a pair
        without such a step.

        Args:
            first: First step of the range.
            last: Last step of the range, included; None for no limit.

        Raises:
            ValueError: No recorded step is in that range.
        """
        steps = self.steps
        chosen = steps >= first
        if last is not None:
            chosen &= steps <= last
        if not bool(chosen.any()):
            raise ValueError(
                f"no step from {first} to {'the end' if last is None else last} is recorded; "
                f"recorded: {steps.tolist()}"
            )
        return self["affinity"][chosen].nanmean(dim=0)

    # ------------------------------------------------------------------ state and files

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, as strings, numbers and tensors."""
        return {
            "every": self.every,
            "tasks": list(self.tasks),
            "step": self.steps,
            **{name: self[name] for name in _COLUMNS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from :meth:`state_dict`, replacing everything recorded.

        Args:
            state: What :meth:`state_dict` of a recorder with the same ``every`` returned.

        Raises:
            TypeError: The state is not a dict.
            ValueError: It is not the state of a recorder, or of one with another ``every``.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"a state of a Recorder is a dict, found {type(state)}")
        expected = {"every", "tasks", "step", *_COLUMNS}
        if set(state) != expected:
            raise ValueError(
                f"this is not a state of a Recorder: it holds {sorted(state)}, expected "
                f"{sorted(expected)}"
            )
        if state["every"] != self.every:
            raise ValueError(
                f"the state was recorded every {state['every']} steps, this every {self.every}"
            )
        self.tasks = tuple(state["tasks"])
        self._steps = state["step"].tolist()
        self._columns = {name: [row.clone() for row in state[name]] for name in _COLUMNS}

    def to_json(self) -> dict[str, Any]:
        """Return everything recorded as JSON values, with null for NaN and infinity."""
        return {
            "schema": SCHEMA,
            "every": self.every,
            "source": self.source,
            "minibatches": self.minibatches,
            "pooling": self.pooling,
            "tasks": list(self.tasks),
            "step": list(self._steps),
            **{
                name: _plain(self[name].tolist())
                for name in _COLUMNS
                if name not in _RESIDUALS or bool(self[name].isfinite().any())
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything recorded to a JSON file, atomically.

        Args:
            path: The file; one that exists is replaced.

        Raises:
            OSError: The file cannot be written.
        """
        text = json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recorder:
        """Read a file written by :meth:`save`.

        Args:
            path: The file.

        Returns:
            A recorder that holds what was recorded.

        Raises:
            FileNotFoundError: There is no such file.
            RecordFileError: The file is damaged, of another kind, or of another version.
        """
        path = Path(path)
        try:
            found = parse_json(read_bytes(path))
        except ValueError as error:
            raise RecordFileError(f"{path}: is not valid JSON ({error})") from error
        if not isinstance(found, dict):
            raise RecordFileError(f"{path}: must hold an object, found {type(found).__name__}")
        if found.get("schema") != SCHEMA:
            raise RecordFileError(
                f"{path}: has schema {_brief(found.get('schema'))}, this version of ntkmtl reads "
                f"schema {SCHEMA}; record again"
            )
        try:
            return cls._from_json(found)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise RecordFileError(f"{path}: is damaged ({_brief(error)})") from error

    @classmethod
    def _from_json(cls, found: Mapping[str, Any]) -> Recorder:
        recorder = cls(
            _whole(found["every"]),
            source=found["source"],
            minibatches=found["minibatches"],
            pooling=found["pooling"],
        )
        recorder.tasks = tuple(found["tasks"])
        if not all(isinstance(task, str) for task in recorder.tasks):
            raise ValueError("tasks must be texts")
        recorder._steps = [_whole(step) for step in found["step"]]
        for before, after in zip(recorder._steps, recorder._steps[1:], strict=False):
            if after <= before:
                raise ValueError(f"step {after} stands after step {before}")
        count, k = len(recorder._steps), len(recorder.tasks)
        for name in _COLUMNS:
            if name in _RESIDUALS and name not in found:
                unknown = torch.full((count, k), math.nan, dtype=torch.float64)
                recorder._columns[name] = list(unknown)
                continue
            tail = [k] if name in _VECTORS else [k, k] if name == "affinity" else []
            shape = [count, *tail]
            values = torch.tensor(_known(found[name]), dtype=torch.float64)
            # An empty list has no other axes than the first.
            if list(values.shape) != shape and (count or values.numel()):
                raise ValueError(f"{name} has shape {list(values.shape)}, expected {shape}")
            recorder._columns[name] = list(values) if count else []
        return recorder


def _summary(snapshot: Snapshot) -> dict[str, Tensor]:
    """Return one row per quantity, with NaN for tasks without labels."""
    k, present = len(snapshot.tasks), list(snapshot.present)
    p = len(present)
    if sorted(set(present)) != present or (p and not 0 <= present[0] <= present[-1] < k):
        raise ValueError(f"present must be rising positions below {k}, found {present}")
    if snapshot.losses.shape != (p,):
        raise ValueError(
            f"losses must have shape ({p},), one per task with labels, "
            f"found {tuple(snapshot.losses.shape)}"
        )
    if snapshot.weights.shape != (k,):
        raise ValueError(f"weights must have shape ({k},), found {tuple(snapshot.weights.shape)}")
    kernel = snapshot.kernel
    if kernel is not None and kernel.tasks != p:
        raise ValueError(f"the kernel is of {kernel.tasks} tasks, {p} have labels")

    weights = snapshot.weights.detach().to("cpu", torch.float64).clone()
    index = torch.tensor(present, dtype=torch.int64)

    def spread(values: Tensor | None) -> Tensor:
        full = torch.full((k,), math.nan, dtype=torch.float64)
        if values is not None:
            full[index] = values.detach().to("cpu", torch.float64)
        return full

    def number(value: float | None) -> Tensor:
        return torch.tensor(math.nan if value is None else float(value), dtype=torch.float64)

    eigenvalues = None if kernel is None else task_spectra(kernel)
    row = {
        "losses": spread(snapshot.losses),
        "weights": weights,
        "max_eigenvalues": spread(None if eigenvalues is None else eigenvalues[:, 0]),
        "effective_ranks": spread(None if eigenvalues is None else effective_rank(eigenvalues)),
        "participation_ratios": spread(
            None if eigenvalues is None else participation_ratio(eigenvalues)
        ),
        **{name: spread(None) for name in _RESIDUALS},
        "kernel_minibatches": number(None if kernel is None else kernel.minibatches),
        "affinity": torch.full((k, k), math.nan, dtype=torch.float64),
    }
    before = after = None
    if kernel is not None and kernel.has_all_blocks:
        row["affinity"][index[:, None], index[None, :]] = kernel.affinity().cpu()
        before = extended_spectrum(kernel)
        own = weights[index]
        # Equal weights, as in plain training, change neither condition number nor rank.
        equal = bool((own == own[0]).all() & (own[0] != 0))
        after = before if equal else extended_spectrum(kernel.weighted(own))
    for name, values in (("", before), ("_weighted", after)):
        row["condition" + name] = number(None if values is None else condition_number(values))
        row["rank" + name] = number(None if values is None else numerical_rank(values))
    return row


def _brief(value: object) -> str:
    """Return a value for an error message, shortened: a file may hold megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(entry) for entry in value]
    return math.nan if value is None else value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value
