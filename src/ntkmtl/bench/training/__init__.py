"""Training: one trainer for all supervised problems, and sweeps over methods.

* :func:`train` trains one network with one method and one seed, and leaves a run folder.
* :func:`compare` trains every (method, seed) of a comparison in worker processes.
* :func:`load_run` and :func:`load_runs` read runs back; they need no torch.

The names are loaded on first use, so that reading runs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkmtl.bench.runs import (
        Epoch,
        IncompleteRun,
        Run,
        RunBusyError,
        RunConfig,
        RunConflictError,
        RunFileError,
        RunFolderLostError,
        RunInterrupted,
        RunResult,
        Steps,
        load_run,
        load_runs,
    )
    from ntkmtl.bench.training.lookup import ProblemNotFoundError, find_problem
    from ntkmtl.bench.training.spec import RunSpec
    from ntkmtl.bench.training.sweep import (
        Comparison,
        Failure,
        Plan,
        Sweep,
        SweepError,
        compare,
        plan,
    )
    from ntkmtl.bench.training.trainer import train, train_spec

_HOMES = {
    "Comparison": "training.sweep",
    "Failure": "training.sweep",
    "Plan": "training.sweep",
    "Sweep": "training.sweep",
    "SweepError": "training.sweep",
    "compare": "training.sweep",
    "plan": "training.sweep",
    "ProblemNotFoundError": "training.lookup",
    "find_problem": "training.lookup",
    "Epoch": "runs",
    "IncompleteRun": "runs",
    "Run": "runs",
    "RunBusyError": "runs",
    "RunConfig": "runs",
    "RunConflictError": "runs",
    "RunFileError": "runs",
    "RunFolderLostError": "runs",
    "RunInterrupted": "runs",
    "RunResult": "runs",
    "Steps": "runs",
    "load_run": "runs",
    "load_runs": "runs",
    "RunSpec": "training.spec",
    "train": "training.trainer",
    "train_spec": "training.trainer",
}

__all__ = [
    "Comparison",
    "Epoch",
    "Failure",
    "IncompleteRun",
    "Plan",
    "ProblemNotFoundError",
    "Run",
    "RunBusyError",
    "RunConfig",
    "RunConflictError",
    "RunFileError",
    "RunFolderLostError",
    "RunInterrupted",
    "RunResult",
    "RunSpec",
    "Steps",
    "Sweep",
    "SweepError",
    "compare",
    "find_problem",
    "load_run",
    "load_runs",
    "plan",
    "train",
    "train_spec",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(f"ntkmtl.bench.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ntkmtl.bench.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
