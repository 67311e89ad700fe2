"""Constant weights with their uncertainty, and their formats in configurations of tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FORMATS", "ConstantWeights"]

_MACE = ("energy", "forces", "stress", "virials", "dipole", "polarizability")
_ULTRALYTICS = ("box", "cls", "dfl", "pose", "kobj", "rle", "angle")
# Words that YAML 1.1 reads as a boolean or as null.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class ConstantWeights:
    """Constant loss weights for a configuration.

    Attributes:
        weights: For each task the geometric mean of the measured weights, normalized to mean 1 and
            multiplied by priorities.
        low: Lower end of each weight's 95 % interval, from a block bootstrap.
        high: Upper end.
        method: The method that computed the weights.
        steps: Number of steps watched.
        looks: Number of steps in which weights were measured.
        settled: Step from which on the running means stayed within 10 % of the final ones.
        drift: Factor by which each weight changed from the first half to the second.
        switch: Step at which a second phase with other weights begins; None without one.
        phases: The weights of each phase; one entry if there is only one.
        warnings: Reasons for caution with these weights.

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
                ``"ultralytics"``, tasks must have the names of the tool's losses; for
                ``"chemprop"``, the order of its target columns.

        Raises:
            ValueError: The format is unknown, the tool has no loss of that name, or the name cannot
                be written as ``key=value``.
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
    """Format a number for YAML 1.1, which reads 1e-05 as a string but 1.0e-05 as a number."""
    digits, exponent, power = _number(value).partition("e")
    return f"{digits}.0e{power}" if exponent and "." not in digits else digits + exponent + power


def _flow(weights: Mapping[str, float]) -> str:
    pairs = (f"{_yaml_name(name)}: {_yaml_number(value)}" for name, value in weights.items())
    return "{" + ", ".join(pairs) + "}"


def _require_names(weights: Mapping[str, float], tool: str, names: tuple[str, ...]) -> None:
    """Check that a tool has a loss for every task.

    Raises:
        ValueError: It has none for some task.
    """
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ValueError(
            f"{tool} has no losses {unknown}; name the tasks as it does: {', '.join(names)}"
        )


def _mace(weights: Mapping[str, float]) -> str:
    _require_names(weights, "MACE", _MACE)
    return " ".join(f"--{name}_weight={_number(value)}" for name, value in weights.items())


def _nequip(weights: Mapping[str, float]) -> str:
    _require_names(weights, "NequIP", ("total_energy", "forces", "stress"))
    return f"coeffs: {_flow(weights)}"


def _ultralytics(weights: Mapping[str, float]) -> str:
    _require_names(weights, "Ultralytics", _ULTRALYTICS)
    return _pairs(weights)


def _pairs(weights: Mapping[str, float]) -> str:
    """Format as ``key=value`` pairs.

    Raises:
        ValueError: A name contains blanks, quotes or ``=``, or is empty.
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
"""For each format a function from weights to a line of configuration."""
