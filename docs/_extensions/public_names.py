"""The public names that the site documents, each at the first of the places that hold it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

MODULES = (
    "ntkmtl",
    "ntkmtl.balance",
    "ntkmtl.weighting",
    "ntkmtl.kernel",
    "ntkmtl.graph",
    "ntkmtl.analysis",
    "ntkmtl.metrics",
    "ntkmtl.integrations.torchjd",
    "ntkmtl.errors",
    "ntkmtl.bench.problems",
    "ntkmtl.bench.training",
    "ntkmtl.bench.search",
    "ntkmtl.bench.report",
    "ntkmtl.bench.reinforce",
    "ntkmtl.bench.paper",
)


def public_names() -> dict[str, list[str]]:
    """Return the names of each module in ``MODULES`` that no earlier one of them has."""
    seen: set[int] = set()
    found = {}
    for module_name in MODULES:
        module = import_module(module_name)
        found[module_name] = own = []
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, ModuleType) or name == "__version__" or id(value) in seen:
                continue
            seen.add(id(value))
            own.append(name)
    return found
