"""Task weightings: NTKMTL, its relatives and the methods they are compared with.

:func:`names` lists them, :func:`create` makes one. Listing does not import torch.

Example:
    >>> import torch, ntkmtl
    >>> weighting = ntkmtl.weighting.create("si")
    >>> weighting(losses=torch.tensor([0.5, 4.0]))
    tensor([2.0000, 0.2500], dtype=torch.float64)
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntkmtl.errors import missing_extra
from ntkmtl.weighting._registry import MethodSpec, names, spec, specs

if TYPE_CHECKING:
    from ntkmtl.weighting._base import GramianWeighting, LossWeighting, Weighting

__all__ = [
    "GramianWeighting",
    "LossWeighting",
    "MethodSpec",
    "Weighting",
    "create",
    "names",
    "spec",
    "specs",
]


def __getattr__(name: str) -> Any:
    if name in ("GramianWeighting", "LossWeighting", "Weighting"):
        return getattr(import_module("ntkmtl.weighting._base"), name)
    raise AttributeError(f"module 'ntkmtl.weighting' has no attribute {name!r}")


def accepted_options(name: str) -> list[str]:
    """Return the names of the options that a method's weighting takes.

    Example:
        >>> accepted_options("ntkmtl")
        ['exponent', 'published']
    """
    return list(inspect.signature(_load(spec(name))).parameters)


def _load(entry: MethodSpec) -> type[Weighting]:
    module, _, attribute = entry.home.partition(":")
    try:
        loaded: type[Weighting] = getattr(import_module(module), attribute)
    except ImportError as error:
        if not entry.extra:
            raise
        raise missing_extra(entry.name, entry.extra, error) from error
    return loaded


def create(name: str, **options: Any) -> Weighting:
    """Make a weighting by name.

    Args:
        name: One of :func:`names`.
        **options: The method's settings; without them, those of its paper's protocol.

    Raises:
        ValueError: No method has this name, or a setting is out of range.
        TypeError: The method has no such setting.
        ImportError: It needs an extra that is not installed.

    Example:
        >>> create("ntkmtl", exponent=0.75)
        NTKMTL(exponent=0.75, published=False)
    """
    entry = spec(name)
    loaded = _load(entry)
    accepted = list(inspect.signature(loaded).parameters)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(map(repr, unknown))}; "
            + (f"it takes {', '.join(accepted)}" if accepted else "it takes none")
        )
    weighting = loaded(**options)
    weighting.name = name
    return weighting
