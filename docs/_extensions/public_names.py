"""The public names that the site documents, each at the first of the places that hold it."""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ["KERAS_BACKEND"] = "torch"  # before Keras is first imported

MODULES = (
    "ntkmtl",
    "ntkmtl.balance",
    "ntkmtl.weighting",
    "ntkmtl.kernel",
    "ntkmtl.graph",
    "ntkmtl.analysis",
    "ntkmtl.watch",
    "ntkmtl.metrics",
    "ntkmtl.integrations.accelerate",
    "ntkmtl.integrations.keras",
    "ntkmtl.integrations.lightning",
    "ntkmtl.integrations.transformers",
    "ntkmtl.integrations.torchjd",
    "ntkmtl.errors",
    "ntkmtl.bench",
    "ntkmtl.bench.problems",
    "ntkmtl.bench.training",
    "ntkmtl.bench.trained",
    "ntkmtl.bench.estimator",
    "ntkmtl.bench.study",
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


def source_of(module: str, name: str) -> tuple[str, int] | None:
    """Return the file, from the repository's root, and the line of an object that has one."""
    value: Any = import_module(module)
    for part in name.split("."):
        value = inspect.getattr_static(value, part, None) or getattr(value, part, None)
    value = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
    try:
        file, (_, line) = inspect.getsourcefile(value), inspect.getsourcelines(value)
    except (OSError, TypeError):
        return None
    path = Path(file or "").resolve()
    return (path.relative_to(ROOT).as_posix(), line) if path.is_relative_to(ROOT) else None


def source_files() -> set[str]:
    """Return the files that hold public names or what they inherit."""
    found = set()
    for module, names in public_names().items():
        for name in names:
            value = getattr(import_module(module), name)
            kinds = value.__mro__ if inspect.isclass(value) else (value,)
            sources = [
                source_of(kind.__module__, kind.__qualname__)
                for kind in kinds
                if getattr(kind, "__module__", "").startswith("ntkmtl.")
            ]
            found |= {source[0] for source in sources if source is not None}
    return found
