"""All methods by name: command line, docs, tables and contract tests go by this list.

A method is registered by its class's decorator, :func:`ntkmtl.weighting._method.method`. Nothing is
imported before the list is asked for.
"""

from __future__ import annotations

import difflib
import functools
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ntkmtl.loading import load_class
from ntkmtl.weighting._method import FAMILIES, MethodSpec

if TYPE_CHECKING:
    from ntkmtl.weighting._base import Weighting

__all__ = ["load", "names", "spec", "spec_of", "specs"]

_PACKAGE = "ntkmtl.weighting"
_LATEST = 9999


def names() -> list[str]:
    """Return the names of all methods, in the order of the tables.

    That is by family, then by the year of the paper, then by module. The list imports torch.

    Example:
        >>> names()[:3]
        ['ls', 'stl', 'uw']
    """
    return list(_registered())


def specs() -> list[MethodSpec]:
    """Return what is known of every method, in the order of the tables."""
    return list(_registered().values())


def spec(name: str) -> MethodSpec:
    """Return what is known of one method.

    Args:
        name: One of :func:`names`, or a class outside the package as in :func:`load`.

    Raises:
        ValueError: There is no method of that name, or the class cannot be loaded.

    Example:
        >>> spec("ntkmtl-sr").requires
        'eigenvalues'
    """
    if _is_reference(name):
        return spec_of(load(name))
    registered = _registered()
    if name not in registered:
        close = difflib.get_close_matches(str(name).lower(), registered, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"unknown method {name!r}{hint} Known methods: {', '.join(registered)}, and your own "
            "as module.path:ClassName or path/file.py:ClassName"
        )
    return registered[name]


def load(name: str) -> type[Weighting]:
    """Return the class of a method.

    Args:
        name: One of :func:`names`; or ``module.path:ClassName`` or ``path/to/file.py:ClassName``,
            whose code is then run.

    Raises:
        ValueError: There is no such method, module, file or class, or it is not a weighting.
        TypeError: The class does not say what its weights are made of.

    Example:
        >>> load("fairgrad").__name__
        'FairGrad'
        >>> load("no_module:Mine")
        Traceback (most recent call last):
        ...
        ntkmtl.loading.LoadError: method no_module:Mine: No module named 'no_module'
    """
    from ntkmtl.weighting._base import Weighting, require_known_input

    if _is_reference(name):
        found: type[Weighting] = load_class(
            name,
            Weighting,  # type: ignore[type-abstract]
            "method",
            "docs/methods/custom.md",
        )
        require_known_input(found)
        return found
    module, _, attribute = spec(name).home.partition(":")
    return cast("type[Weighting]", getattr(import_module(module), attribute))


def spec_of(kind: type[Weighting]) -> MethodSpec:
    """Return what is known of a class: as registered, or as its attributes say.

    Raises:
        ValueError: The class is registered under several names.
    """
    registered = vars(kind).get("_specs", ())
    if len(registered) > 1:
        known = ", ".join(entry.name for entry in registered)
        raise ValueError(f"{kind.__name__} has several names, use one of them: {known}")
    if registered:
        return cast("MethodSpec", registered[0])
    lines = (kind.__doc__ or "").strip().splitlines()
    # Worker processes import the script that started them under another name.
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    name = f"{module}:{kind.__qualname__}"
    return MethodSpec(
        name=name,
        summary=lines[0].rstrip(".") if lines else kind.__name__,
        paper="",
        requires=kind.requires,
        family="custom",
        home=name,
        defaults=kind.balancer_defaults,
        space=kind.search_space,
    )


def _is_reference(name: str) -> bool:
    return isinstance(name, str) and (":" in name or name.endswith(".py"))


@functools.cache
def _registered() -> dict[str, MethodSpec]:
    found: dict[str, MethodSpec] = {}
    for entry in sorted(_declared(), key=_place):
        if entry.name in found:
            raise ValueError(
                f"two methods are named {entry.name!r}: {found[entry.name].home} and {entry.home}"
            )
        found[entry.name] = entry
    return found


def _declared() -> Iterator[MethodSpec]:
    for info in pkgutil.iter_modules(import_module(_PACKAGE).__path__, f"{_PACKAGE}."):
        for value in vars(import_module(info.name)).values():
            if isinstance(value, type) and value.__module__ == info.name:
                yield from vars(value).get("_specs", ())


def _place(entry: MethodSpec) -> tuple[int, int, str]:
    return FAMILIES.index(entry.family), entry.year or _LATEST, entry.home.partition(":")[0]
