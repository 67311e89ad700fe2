"""Training: one trainer for all supervised problems, run directories, and sweeps over methods.

* :func:`train` trains one network with one method and one seed, and leaves a run directory.
* :func:`compare` trains every (method, seed) of a comparison in worker processes.
* :func:`load_run` and :func:`load_runs` read run directories back; they need no torch.

The names are loaded on first use, so that reading runs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkmtl.bench.training.locks import RunBusyError
    from ntkmtl.bench.training.lookup import ProblemNotFoundError, find_problem
    from ntkmtl.bench.training.runs import (
        Epoch,
        IncompleteRun,
        Run,
        RunConfig,
        RunFileError,
        RunResult,
        Steps,
        load_run,
        load_runs,
    )
    from ntkmtl.bench.training.sweep import (
        Comparison,
        Failure,
        Plan,
        Sweep,
        SweepError,
        compare,
        plan,
    )
    from ntkmtl.bench.training.trainer import RunConflictError, RunInterrupted, train

_HOMES = {
    "Comparison": "sweep",
    "Failure": "sweep",
    "Plan": "sweep",
    "Sweep": "sweep",
    "SweepError": "sweep",
    "compare": "sweep",
    "plan": "sweep",
    "RunBusyError": "locks",
    "ProblemNotFoundError": "lookup",
    "find_problem": "lookup",
    "Epoch": "runs",
    "IncompleteRun": "runs",
    "Run": "runs",
    "RunConfig": "runs",
    "RunFileError": "runs",
    "RunResult": "runs",
    "Steps": "runs",
    "load_run": "runs",
    "load_runs": "runs",
    "RunConflictError": "trainer",
    "RunInterrupted": "trainer",
    "train": "trainer",
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
    "RunInterrupted",
    "RunResult",
    "Steps",
    "Sweep",
    "SweepError",
    "compare",
    "find_problem",
    "load_run",
    "load_runs",
    "plan",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(f"ntkmtl.bench.training.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ntkmtl.bench.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
