"""Multi-task learning balanced by the neural tangent kernel.

The public names are loaded on first use, so that ``import ntkmtl`` and ``ntkmtl --help`` do not
import torch.

Example:
    >>> import ntkmtl
    >>> "ntkmtl-sr" in ntkmtl.weighting.names()
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ntkmtl._version import __version__

if TYPE_CHECKING:
    from ntkmtl import (
        analysis,
        bench,
        integrations,
        kernel,
        metrics,
        weighting,
    )
    from ntkmtl.balance import Balancer, BalanceResult, advise
    from ntkmtl.errors import NonFiniteError
    from ntkmtl.kernel import ExtendedNTK, Probe, branch, extended_ntk
    from ntkmtl.watch import weigh

_SUBMODULES = frozenset(
    {
        "analysis",
        "balance",
        "bench",
        "errors",
        "integrations",
        "kernel",
        "metrics",
        "watch",
        "weighting",
    }
)
_HOMES = {
    "advise": "ntkmtl.balance",
    "Balancer": "ntkmtl.balance",
    "BalanceResult": "ntkmtl.balance",
    "NonFiniteError": "ntkmtl.errors",
    "Probe": "ntkmtl.kernel",
    "ExtendedNTK": "ntkmtl.kernel",
    "branch": "ntkmtl.kernel",
    "extended_ntk": "ntkmtl.kernel",
    "weigh": "ntkmtl.watch",
}

__all__ = [
    "BalanceResult",
    "Balancer",
    "ExtendedNTK",
    "NonFiniteError",
    "Probe",
    "__version__",
    "advise",
    "analysis",
    "bench",
    "branch",
    "extended_ntk",
    "integrations",
    "kernel",
    "metrics",
    "weigh",
    "weighting",
]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f"ntkmtl.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ntkmtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(__all__) | _SUBMODULES)
