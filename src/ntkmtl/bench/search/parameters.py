"""The parameters that are searched of a method, and the settings that their values stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntkmtl.weighting import spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Recipe

__all__ = ["RATE", "Parameter", "method_options_of", "option_of", "parameters_of"]

RATE = "learning_rate"
"""Name of the parameter that every method has."""

LEARNING_RATE_FACTOR = 10.0
"""Learning rates are searched from the recipe's over this to the recipe's times this."""

_OPTION, _WEIGHT = "options.", "weights."
_LEAST_WEIGHT, _LARGEST_WEIGHT = 0.1, 10.0


@dataclass(frozen=True)
class Parameter:
    """A number that is searched.

    Attributes:
        name: Its name.
        low: Least value.
        high: Largest value.
        start: Its value in trial 0.
        log: Whether its logarithm is drawn uniformly, not the number itself.
    """

    name: str
    low: float
    high: float
    start: float
    log: bool = True


def parameters_of(method: str, tasks: Sequence[str], recipe: Recipe) -> tuple[Parameter, ...]:
    """Return what is searched of a method: its learning rate, and the options with a known range.

    For ``fixed`` these are the weights of the tasks, from 0.1 to 10, equal ones to begin with.

    Args:
        method: Its name.
        tasks: Names of the tasks.
        recipe: The recipe that the search begins with.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
        >>> for p in parameters_of("cagrad", ["a", "b"], recipe):
        ...     print(p.name, p.low, p.start, p.high)
        learning_rate 0.001 0.01 0.1
        options.c 0.0 0.4 0.99
    """
    rate = recipe.learning_rate
    low, high = rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR
    found = [Parameter(RATE, float(f"{low:.4g}"), float(f"{high:.4g}"), start=rate)]
    if method == "fixed":
        found += [
            Parameter(f"{_WEIGHT}{task}", _LEAST_WEIGHT, _LARGEST_WEIGHT, start=1.0)
            for task in tasks
        ]
    found += [
        Parameter(f"{_OPTION}{r.option}", r.low, r.high, start=r.start, log=r.log)
        for r in spec(method).space
    ]
    return tuple(found)


def option_of(parameter: Parameter) -> str:
    """Return the method's option that a parameter sets, ``""`` for the learning rate."""
    if parameter.name.startswith(_WEIGHT):
        return "weights"
    return parameter.name.removeprefix(_OPTION) if parameter.name != RATE else ""


def method_options_of(values: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of a method that the values of its parameters stand for.

    Example:
        >>> method_options_of({"learning_rate": 0.1, "weights.a": 2.0, "weights.b": 1.0})
        {'weights': [2.0, 1.0]}
    """
    weights = [value for name, value in values.items() if name.startswith(_WEIGHT)]
    found: dict[str, Any] = {"weights": weights} if weights else {}
    for name, value in values.items():
        if name.startswith(_OPTION):
            found[name.removeprefix(_OPTION)] = value
    return found
