"""The parameters that are searched of a method, and the settings that their values stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ntkmtl.weighting import spec

if TYPE_CHECKING:
    from ntkmtl.bench.problems.base import Recipe

__all__ = ["RATE", "Parameter", "Value", "method_options_of", "option_of", "parameters_of"]

Value = float | str
"""What a parameter may be."""

RATE = "learning_rate"
"""Name of the parameter that every method has."""

LEARNING_RATE_FACTOR = 10.0
"""Learning rates are searched from the recipe's divided by this to the recipe's times this."""

LENGTHS = ("method", "plain", "unit")
"""Lengths of the combined gradient that are tried where lengths are searched."""

WIDE = 1e6
"""Weights are searched from 1 / WIDE to WIDE where measured kernels say where to look."""

_OPTION, _WEIGHT = "options.", "weights."
_NARROW = 10.0


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched: a number in a range, or one of several words.

    Attributes:
        name: Its name.
        low: Least value.
        high: Largest value.
        start: Its value in trial 0.
        log: Whether its logarithm is drawn uniformly, not the number itself.
        choices: The words; none for a number.
    """

    name: str
    low: float
    high: float
    start: Value
    log: bool = True
    choices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what ``study.json`` says of it."""
        found: dict[str, Any] = {"name": self.name, "start": self.start}
        if self.choices:
            return {**found, "choices": list(self.choices)}
        return {**found, "low": self.low, "high": self.high, "log": self.log}


def parameters_of(
    method: str,
    tasks: Sequence[str],
    recipe: Recipe,
    *,
    length: bool = False,
    given: Collection[str] = (),
    wide: bool = False,
) -> tuple[Parameter, ...]:
    """Return what is searched of a method: its learning rate, and the options with a known range.

    For ``fixed`` these are the weights of the tasks, from 0.1 to 10, equal ones to begin with.

    Args:
        method: Its name.
        tasks: Names of the tasks.
        recipe: The recipe that the search begins with.
        length: Whether the length of the combined gradient is searched as well, of methods that
            know one.
        given: Options with a fixed value; if ``length`` is among them, it is not searched.
        wide: Whether weights of ``fixed`` may be from 1e-6 to 1e6.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.01)
        >>> for p in parameters_of("cagrad", ["a", "b"], recipe, length=True):
        ...     print(p.name, p.low, p.start, p.high)
        learning_rate 0.001 0.01 0.1
        options.c 0.0 0.4 0.99
        options.length 0.0 method 0.0
    """
    rate, spread = recipe.learning_rate, WIDE if wide else _NARROW
    low, high = rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR
    found = [Parameter(RATE, float(f"{low:.4g}"), float(f"{high:.4g}"), start=rate)]
    known = spec(method)
    if method == "fixed":
        found += [Parameter(f"{_WEIGHT}{task}", 1 / spread, spread, start=1.0) for task in tasks]
    found += [
        Parameter(f"{_OPTION}{r.option}", r.low, r.high, start=r.start, log=r.log)
        for r in known.space
    ]
    if length and "length" not in given and known.requires not in ("losses", "jacobian"):
        found.append(Parameter(f"{_OPTION}length", 0.0, 0.0, "method", log=False, choices=LENGTHS))
    return tuple(found)


def option_of(parameter: Parameter) -> str:
    """Return the method's option that a parameter sets, ``""`` for the learning rate."""
    if parameter.name.startswith(_WEIGHT):
        return "weights"
    return parameter.name.removeprefix(_OPTION) if parameter.name != RATE else ""


def method_options_of(values: Mapping[str, Value]) -> dict[str, Any]:
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
