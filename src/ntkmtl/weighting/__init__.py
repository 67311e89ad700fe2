"""Task weightings: NTKMTL, its relatives and the methods they are compared with.

:func:`names` lists them, :func:`create` makes one.

Example:
    >>> import torch, ntkmtl
    >>> weighting = ntkmtl.weighting.create("si")
    >>> weighting(losses=torch.tensor([0.5, 4.0]))
    tensor([2.0000, 0.2500], dtype=torch.float64)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ntkmtl.loading import place_of
from ntkmtl.weighting import _settings
from ntkmtl.weighting._method import MethodSpec, SearchRange
from ntkmtl.weighting._registry import load, names, spec, spec_of, specs

if TYPE_CHECKING:
    from ntkmtl.weighting._base import GramianWeighting, LossWeighting, Weighting

__all__ = [
    "GramianWeighting",
    "LossWeighting",
    "MethodSpec",
    "SearchRange",
    "Weighting",
    "create",
    "load",
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
    return _settings.accepted(load(name))


def create(name: str, **options: Any) -> Weighting:
    """Make a weighting by name.

    Args:
        name: One of :func:`names`; or a class of your own as ``module.path:ClassName`` or
            ``path/to/file.py:ClassName``, whose code is then run.
        **options: The method's settings; without them, those of its paper's protocol.

    Raises:
        ValueError: No method has this name, a setting is out of range, or a class of your own
            raised an error.
        TypeError: The method has no such setting, needs one that is not given, or it is of another
            type.

    Example:
        >>> create("ntkmtl", exponent=0.75)
        NTKMTL(exponent=0.75, published=False)
        >>> create("ntkmtl", published="False")
        Traceback (most recent call last):
        ...
        TypeError: published must be True or False. Found published='False'.
    """
    kind = load(name)
    _settings.check(name, kind, options)
    try:
        weighting = kind(**options)
    except Exception as error:
        if ":" not in name or isinstance(error, ValueError | TypeError):
            raise
        raise ValueError(f"{type(error).__name__}{place_of(error)}: {error}") from error
    weighting.name = name if ":" not in name else spec_of(kind).name
    vars(weighting)["_created_with"] = dict(options)
    return weighting
