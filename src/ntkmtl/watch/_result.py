"""Constant weights, how sure they are, and the line that a tool reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMATS", "ConstantWeights"]

_MACE = ("energy", "forces", "stress", "virials", "dipole", "polarizability")
_ULTRALYTICS = ("box", "cls", "dfl", "pose", "kobj", "rle", "angle")
# What YAML 1.1 reads as a truth value or as nothing, rather than as a name.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class ConstantWeights:
    """Loss weights to write into a configuration.

    Attributes:
        weights: By task: the geometric mean of balanced weights, of mean 1, times priorities.
        low: Lower end of the 95 % interval of each, by a bootstrap of blocks of looks.
        high: Upper end.
        method: The method that balanced.
        steps: Steps that were watched.
        looks: Measurements among them.
        settled: Step from which on the running means stayed within a tenth of the last ones.
        drift: By which factor each weight changed from the first half of the watch to the second.
        switch: Step at which a second phase of other weights begins; None if there is one phase.
        phases: The weights of each phase alone; of the whole watch if there is one.
        warnings: What is to be known before these constants are used.

    Example:
        >>> found = ConstantWeights(
        ...     {"energy": 1.9, "forces": 0.1}, {"energy": 1.8, "forces": 0.05},
        ...     {"energy": 1.95, "forces": 0.2}, "ntkmtl", 50, 50, 7, {"energy": 1.0, "forces": 1.0}
        ... )
        >>> print(found.as_text("mace"))
        --energy_weight=1.9 --forces_weight=0.1
        >>> print(found)
        task    weight  95 % interval   drift
        energy     1.9  1.8 to 1.95     x 1
        forces     0.1  0.05 to 0.2     x 1
        50 looks in 50 steps by ntkmtl; within a tenth of these values from step 7 on
    """

    weights: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    method: str
    steps: int
    looks: int
    settled: int
    drift: Mapping[str, float]
    switch: int | None = None
    phases: tuple[Mapping[str, float], ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def as_text(self, form: str = "python") -> str:
        """Return the weights as a line of a tool's configuration.

        Args:
            form: One of :data:`ntkmtl.watch.FORMATS`. For ``"mace"``, ``"nequip"`` and
                ``"ultralytics"`` tasks have the names of the tool's losses; for ``"chemprop"``
                they stand in the order of its target columns.

        Raises:
            ValueError: The format is unknown, the tool has no loss of that name, or ``key=value``
                cannot hold it.
        """
        if form not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, found {form!r}")
        return FORMATS[form](self.weights)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "weights": dict(self.weights),
            "low": dict(self.low),
            "high": dict(self.high),
            "method": self.method,
            "steps": self.steps,
            "looks": self.looks,
            "settled": self.settled,
            "drift": dict(self.drift),
            "switch": self.switch,
            "phases": [dict(phase) for phase in self.phases],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        width = max(4, *map(len, self.weights))
        lines = [f"{'task':<{width}}  {'weight':>6}  {'95 % interval':<14}  drift"]
        for name, weight in self.weights.items():
            interval = f"{self.low[name]:.3g} to {self.high[name]:.3g}"
            lines.append(
                f"{name:<{width}}  {weight:>6.3g}  {interval:<14}  x {self.drift[name]:.3g}"
            )
        lines.append(
            f"{self.looks} looks in {self.steps} steps by {self.method}; within a tenth of these "
            f"values from step {self.settled} on"
        )
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


def _number(value: float) -> str:
    return f"{value:.4g}"


def _python(weights: Mapping[str, float]) -> str:
    pairs = (
        f"{json.dumps(name, ensure_ascii=False)}: {_number(value)}"
        for name, value in weights.items()
    )
    return "{" + ", ".join(pairs) + "}"


def _yaml_name(name: str) -> str:
    plain = name.isascii() and name.isidentifier() and name.lower() not in _YAML_WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


def _yaml_number(value: float) -> str:
    """Write a number that YAML 1.1 reads as one: it takes 1e-05 for a string."""
    digits, exponent, power = _number(value).partition("e")
    return f"{digits}.0e{power}" if exponent and "." not in digits else digits + exponent + power


def _flow(weights: Mapping[str, float]) -> str:
    pairs = (f"{_yaml_name(name)}: {_yaml_number(value)}" for name, value in weights.items())
    return "{" + ", ".join(pairs) + "}"


def _known(weights: Mapping[str, float], tool: str, names: tuple[str, ...]) -> None:
    """Refuse tasks that a tool has no loss for.

    Raises:
        ValueError: There is one.
    """
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ValueError(
            f"{tool} has no losses {unknown}; name the tasks as it does: {', '.join(names)}"
        )


def _mace(weights: Mapping[str, float]) -> str:
    _known(weights, "MACE", _MACE)
    return " ".join(f"--{name}_weight={_number(value)}" for name, value in weights.items())


def _nequip(weights: Mapping[str, float]) -> str:
    _known(weights, "NequIP", ("total_energy", "forces", "stress"))
    return f"coeffs: {_flow(weights)}"


def _ultralytics(weights: Mapping[str, float]) -> str:
    _known(weights, "Ultralytics", _ULTRALYTICS)
    return _pairs(weights)


def _pairs(weights: Mapping[str, float]) -> str:
    """Write pairs of names and numbers.

    Raises:
        ValueError: A name would be read as something else.
    """
    unfit = [n for n in weights if not n or any(c.isspace() or c in "='\"" for c in n)]
    if unfit:
        raise ValueError(
            f"key=value has no place for blanks, quotes, = or an empty name, found {unfit}; name "
            "the tasks otherwise, or take the format python or yaml"
        )
    return " ".join(f"{name}={_number(value)}" for name, value in weights.items())


FORMATS: Mapping[str, Callable[[Mapping[str, float]], str]] = {
    "python": lambda weights: f"loss_weights = {_python(weights)}",
    "yaml": lambda weights: f"loss_weights: {_flow(weights)}",
    "keras": lambda weights: f"loss_weights={_python(weights)}",
    "lightning": lambda weights: f"model: {{loss_weights: {_flow(weights)}}}",
    "mace": _mace,
    "nequip": _nequip,
    "chemprop": lambda weights: "--task-weights " + " ".join(map(_number, weights.values())),
    "ultralytics": _ultralytics,
    "key=value": _pairs,
}
"""What makes the line of each tool, by format."""
