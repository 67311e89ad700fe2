"""Methods as a user gives them: by registered name, by module or file, or as a weighting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ntkmtl import weighting
from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.runs.provenance import source_digest
from ntkmtl.weighting import Weighting
from ntkmtl.weighting._registry import spec_of
from ntkmtl.weighting._settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ALL_METHODS", "MethodLike", "method_source", "named", "named_all"]

ALL_METHODS = "all"
"""Stands for every registered method."""

MethodLike = str | Weighting
"""A name, ``module.path:ClassName`` or ``path/file.py:ClassName``, or a weighting."""


def named(method: MethodLike) -> tuple[str, dict[str, Any]]:
    """Return the name under which runs keep a method, and the settings of a weighting.

    A run makes its own weighting from the two, whatever process it is in: of a weighting the
    settings count, not its state.

    Args:
        method: The method.

    Returns:
        The registered name, or ``module:Class`` however the class was named; and the settings that
        are not the default.

    Raises:
        ValueError: There is no such method, or another process could not find its class.
        TypeError: It is neither a name nor a weighting, or one that cannot be made again.

    Example:
        >>> named(weighting.create("fairgrad", alpha=1.0))
        ('fairgrad', {'alpha': 1.0})
    """
    if isinstance(method, str):
        return weighting.spec(method).name, {}
    if isinstance(method, type) and issubclass(method, Weighting):
        raise TypeError(
            f"a method is a name or a weighting, found the class {method.__name__}; make one: "
            f"{method.__name__}()"
        )
    if not isinstance(method, Weighting):
        raise TypeError(f"a method is a name or a weighting, found {method!r}")
    kind = type(method)
    name = method.name or spec_of(kind).name
    try:
        same = weighting.load(name) is kind
    except ValueError as error:
        raise ValueError(f"{_unreachable(kind)} ({error})") from error
    if not same:
        raise ValueError(_unreachable(kind))
    return name, settings_of(method)


def _unreachable(kind: type) -> str:
    return (
        f"{kind.__qualname__} is not to be found in its module {kind.__module__}, where other "
        "processes look for it: define it at the top level of a file"
    )


def named_all(
    methods: Sequence[MethodLike], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the names under which runs keep methods, each once, and the options of each.

    Args:
        methods: The methods; ``"all"`` stands for every registered one but the baselines.
        options: Options by method, under a name as given or as returned.

    Raises:
        ValueError: A method is unknown, or given twice with other settings.
        TypeError: One is neither a name nor a weighting, or cannot be made again.

    Example:
        >>> named_all(["ls", weighting.create("fairgrad", alpha=1.0)], {"ls": {"every": 2}})
        (['ls', 'fairgrad'], {'ls': {'every': 2}, 'fairgrad': {'alpha': 1.0}})
    """
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        if isinstance(method, str) and method == ALL_METHODS:
            for name in weighting.names():
                if name != SINGLE_TASK:
                    found.setdefault(name, {})
            continue
        name, settings = named(method)
        if found.setdefault(name, settings) != settings:
            raise ValueError(
                f"{name} is given twice, with settings {found[name]} and {settings}: a comparison "
                "has each method once. Compare them under two --out, or derive a class of its own."
            )
    own: dict[str, dict[str, Any]] = {}
    for given, values in options.items():
        own.setdefault(weighting.spec(given).name if ":" in given else given, {}).update(values)
    for name, settings in found.items():
        if settings:
            twice = sorted(set(settings) & set(own.get(name, {})))
            if twice:
                raise ValueError(
                    f"{twice[0]} of {name} is given twice: to the weighting, and as an option"
                )
            own[name] = {**settings, **own.get(name, {})}
    return list(found), own


def method_source(name: str) -> str:
    """Return a digest of the source of a method that is not of this package, else nothing.

    It covers the files that the class is made of: its own, those of its base classes, and what they
    import from beside them.

    Raises:
        ValueError: No file defines the class.
    """
    if ":" not in name:
        return ""
    digest = source_digest(weighting.load(name))
    if not digest:
        raise ValueError(
            f"the class of {name} is defined in no file, so that nobody could tell its runs from "
            "those of another version: put it into a file, and name it path/file.py:ClassName"
        )
    return digest[:12]
