"""The search for fixed weights by structure: powers of measured gradients, then one task at a time.

Drawn at random, a handful of trials says nothing about k weights. Two facts help: good weights are
often between equal ones and those that bring all gradients to one length, and what is left to
find is local.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntkmtl.bench.search.parameters import RATE, WIDE, Parameter, Value
from ntkmtl.bench.search.study import OptunaStudy, rounded

__all__ = ["POWERS", "WeightSearch", "power_weights"]

SAMPLER = "measured kernels, then one weight at a time"
"""How weights are chosen, as tables say it."""

POWERS = (0.0, 0.5, 1.0)
"""Powers of the first trials: equal weights, half-way, gradients of one length."""


def power_weights(scales: Mapping[str, float], power: float) -> dict[str, float]:
    """Return weights scale ** -power, with mean 1.

    Args:
        scales: Length of each task's gradient.
        power: 0 for equal weights, 1 for gradients of one length.

    Example:
        >>> power_weights({"a": 1.0, "b": 3.0}, 1.0)
        {'a': 1.5, 'b': 0.5}
    """
    raw = {task: scale**-power for task, scale in scales.items()}
    mean = math.fsum(raw.values()) / len(raw)
    return {task: weight / mean for task, weight in raw.items()}


class WeightSearch(OptunaStudy):
    """The search for the weights of ``fixed``.

    The first trials have weights scale ** -p for p = 0, 0.5 and 1, at the learning rate that one
    begins with. Each trial after them changes one thing in the best trial so far: the learning
    rate, then the weight of one task after another, doubled and then halved; if doubling helped, it
    is doubled again instead. Each round over all of them takes the square root of the factor.

    Args:
        folder: Its folder.
        asked: Content of ``study.json``: what is searched, and how.
        parameters: The learning rate and one weight per task.
        scales: Length of each task's gradient.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        parameters: tuple[Parameter, ...],
        scales: Mapping[str, float],
    ) -> None:
        kept = {task: rounded(scale) for task, scale in scales.items()}
        super().__init__(folder, {**asked, "sampler": SAMPLER, "scales": kept}, parameters)
        self.scales = dict(scales)
        self._names = [p.name for p in parameters]

    def ask(self, number: int) -> dict[str, Value]:
        """Return the values of a trial; see :meth:`OptunaStudy.ask`."""
        if number < len(POWERS):
            weights = power_weights(self.scales, POWERS[number])
            found = {f"weights.{task}": weight for task, weight in weights.items()}
            return self._within({RATE: self._start_rate(), **found})
        done = [t for t in self.trials[:number] if t.value is not None]
        if not done:
            return self._within({**self.ask(0), RATE: self._start_rate() / 2**number})
        best = min(done, key=lambda t: (t.value, t.number))
        place, sign, factor = self._move(number - len(POWERS))
        if sign < 0 and best.number == number - 1:
            # The trial before increased it and is the best: increase it again instead.
            sign = 1
        name = self._names[place]
        return self._within({**best.parameters, name: float(best.parameters[name]) * factor**sign})

    def _start_rate(self) -> float:
        return float(self.parameters[0].start)

    def _move(self, number: int) -> tuple[int, int, float]:
        """Return which parameter a local trial changes, upwards (1) or downwards (-1), by what."""
        turn, back = divmod(number, 2)
        rounds, place = divmod(turn, len(self._names))
        return place, -1 if back else 1, 2.0 ** (0.5**rounds)

    def _within(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return weights with mean 1, all inside their ranges, in the order of the parameters."""
        weights = [float(values[name]) for name in self._names if name != RATE]
        mean = math.fsum(weights) / len(weights)
        limits = {p.name: (p.low, p.high) for p in self.parameters}
        found: dict[str, Value] = {}
        for name in self._names:
            low, high = limits[name] if name == RATE else (1 / WIDE, WIDE)
            value = float(values[name]) / (1.0 if name == RATE else mean)
            found[name] = rounded(min(max(value, low), high))
        return found
