"""A method's settings: the arguments of its class's constructor."""

from __future__ import annotations

import difflib
import inspect
import numbers
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from ntkmtl.weighting._base import Weighting

__all__ = ["accepted", "check", "settings_of"]

_Parameters = dict[str, inspect.Parameter]


def accepted(kind: type[Weighting]) -> list[str]:
    """Return the names of a class's settings."""
    return list(_parameters(kind))


def check(name: str, kind: type[Weighting], options: Mapping[str, Any]) -> None:
    """Refuse settings that a class does not have, and values of another type than it says.

    A string is neither a number nor a truth value: ``"False"`` would count as true.

    Args:
        name: The method's name, for errors.
        kind: Its class.
        options: The settings.

    Raises:
        TypeError: A setting is unknown, missing, or of another type.
    """
    known = _parameters(kind)
    unknown = [option for option in options if option not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        raise TypeError(
            f"{name} has no option {', '.join(map(repr, unknown))}"
            + (f"; did you mean {close[0]!r}? It" if close else "; it")
            + f" takes {', '.join(known) or 'none'}"
        )
    missing = [
        option
        for option, parameter in known.items()
        if parameter.default is parameter.empty and option not in options
    ]
    if missing:
        raise TypeError(f"{name} needs a value for {', '.join(missing)}: give {missing[0]}=...")
    hints = _hints(kind)
    for option, value in options.items():
        if option in known and (expected := _expected(known[option], hints.get(option), value)):
            raise TypeError(f"{option} must be {expected}. Found {option}={value!r}.")


def settings_of(weighting: Weighting) -> dict[str, Any]:
    """Return the settings that make a weighting again, without those that are the default.

    They are what :func:`ntkmtl.weighting.create` was given, or the attributes that have the names
    of the constructor's arguments.

    Raises:
        TypeError: The weighting does not keep an argument, or was changed after it was made.

    Example:
        >>> from ntkmtl.weighting import create
        >>> settings_of(create("fairgrad", alpha=1.0))
        {'alpha': 1.0}
    """
    kind = type(weighting)
    given: Mapping[str, Any] | None = vars(weighting).get("_created_with")
    if given is None:
        parameters = _parameters(kind)
        for option in parameters:
            if not hasattr(weighting, option):
                raise TypeError(
                    f"{kind.__name__} does not keep its argument {option!r}, so no other process "
                    f"could make it again: set self.{option} = {option} in __init__, or give the "
                    f"method by name, {kind.__module__}:{kind.__qualname__}, and its options"
                )
        given = {
            option: getattr(weighting, option)
            for option, parameter in parameters.items()
            if not _same(getattr(weighting, option), parameter.default)
        }
    again = kind(**given)
    if repr(again) != repr(weighting):
        raise TypeError(
            f"{weighting!r} was changed after it was made: made again it is {again!r}. Give all "
            "settings to its constructor"
        )
    return dict(given)


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and repr(value) == repr(default)


def _parameters(kind: type[Weighting]) -> _Parameters:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(kind).parameters
    return {name: p for name, p in found.items() if p.kind not in variadic}


def _hints(kind: type[Weighting]) -> dict[str, Any]:
    try:
        return get_type_hints(kind.__init__)
    except (NameError, TypeError):
        # A type that is imported for type checkers only: defaults tell what they can.
        return {}


def _expected(parameter: inspect.Parameter, hint: Any, value: Any) -> str:
    """Return what a value should have been, or nothing where it is that or cannot be judged."""
    default = parameter.default
    if hint is None:
        hint = type(default) if isinstance(default, bool | int | float | str) else Any
        hint = float if hint is int else hint
    union = get_origin(hint) in (Union, types.UnionType)
    options = get_args(hint) if union else (hint,)
    if any(_fits(option, value) for option in options):
        return ""
    return " or ".join(_said(option) for option in options)


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        # Which ones there are is the constructor's to say, as a ValueError.
        return isinstance(value, type(get_args(hint)[0]))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is None or hint is type(None):
        return value is None
    if hint is Any or isinstance(hint, str):
        return True
    if isinstance(hint, type) and get_origin(hint) is None:
        return isinstance(value, hint)
    # Sequences and mappings of numbers: what is in them is judged by the constructor.
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return False
    if isinstance(value, Mapping):
        return get_origin(hint) is Mapping
    return getattr(value, "ndim", 1) > 0  # a tensor of one number is said to be iterable


def _said(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    if hint is None or hint is type(None):
        return "None"
    if hint in names:
        return names[hint]
    origin = get_origin(hint) or hint
    return f"a {getattr(origin, '__name__', origin)}".lower()
