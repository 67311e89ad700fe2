"""The bench: problems, training, comparisons and reports for the methods of :mod:`ntkmtl`.

It needs the extra ``bench``. The bench imports the library, never the other way round. Its parts
are loaded on first use.

Example:
    >>> from ntkmtl import bench
    >>> "qm9-mini" in bench.problems.names()
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkmtl.bench import paper, problems, reinforce, report, trained, training
    from ntkmtl.bench.estimator import (
        MultiTaskClassifier,
        MultiTaskEstimator,
        MultiTaskRegressor,
    )
    from ntkmtl.bench.trained import load

_HOMES = {
    "load": "trained",
    "MultiTaskClassifier": "estimator",
    "MultiTaskEstimator": "estimator",
    "MultiTaskRegressor": "estimator",
}

__all__ = [
    "MultiTaskClassifier",
    "MultiTaskEstimator",
    "MultiTaskRegressor",
    "load",
    "paper",
    "problems",
    "reinforce",
    "report",
    "trained",
    "training",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"ntkmtl.bench.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"ntkmtl.bench.{name}")
    raise AttributeError(f"module 'ntkmtl.bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
