"""What a tuning searches of each method: options, ranges, and where the ranges come from.

A method that is not here has no setting that is worth a search, or none that the literature
searches: only its learning rate is tuned. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["LEARNING_RATE_FACTOR", "SPACES", "Range"]

LEARNING_RATE_FACTOR = 10.0
"""Learning rates are searched from the recipe's over this to the recipe's times this."""


@dataclass(frozen=True)
class Range:
    """An option of a method, and the values that are tried.

    Attributes:
        option: Name of the option of :class:`ntkmtl.Balancer`.
        low: Least value.
        high: Largest value.
        start: The published value, which trial 0 has.
        log: Whether the logarithm is searched, not the number itself.
        source: Where the range comes from.
    """

    option: str
    low: float
    high: float
    start: float
    log: bool
    source: str


_EXPONENT = (
    Range(
        "exponent", 0.25, 1.0, 0.5, False,
        "0.5 in the paper (Eq. 15), up to 0.75 in its scripts; 1 makes the rates equal",
    ),
)  # fmt: skip

SPACES: Mapping[str, tuple[Range, ...]] = MappingProxyType(
    {
        "cagrad": (Range("c", 0.0, 0.99, 0.4, False, "the method converges for c in [0, 1)"),),
        "cr-mogm": (Range("alpha", 0.0, 0.99, 0.9, False, "all that the average can be"),),
        "db-mtl": (Range("beta", 0.0, 0.99, 0.9, False, "all that the average can be"),),
        "dwa": (Range("temperature", 0.5, 8.0, 2.0, True, "a factor of 4 around the default"),),
        "excess-mtl": (
            Range("step_size", 1e-3, 0.1, 0.01, True, "a factor of 10 around the default"),
        ),
        "fairgrad": (Range("alpha", 0.5, 8.0, 2.0, True, "a factor of 4 around the default"),),
        "famo": (
            Range("learning_rate", 2.5e-3, 0.25, 0.025, True, "a factor of 10 around the default"),
            Range("gamma", 1e-4, 1e-2, 1e-3, True, "a factor of 10 around the default"),
        ),
        "gradnorm": (
            Range("alpha", 0.0, 3.0, 1.5, False, "0 to twice the default, the published 1.5"),
            Range("learning_rate", 2.5e-3, 0.25, 0.025, True, "a factor of 10 around the default"),
        ),
        "gradvac": (Range("beta", 0.0, 0.99, 0.5, False, "all that the average can be"),),
        "imtl": (
            Range("learning_rate", 1e-4, 1e-2, 1e-3, True, "a factor of 10 around the default"),
        ),
        "ldc-mtl": (Range("penalty", 1e-3, 0.1, 0.01, True, "a factor of 10 around the default"),),
        "ntkmtl": _EXPONENT,
        "ntkmtl-sr": _EXPONENT,
        "ntkmtl-tk": _EXPONENT,
        "ntkmtl-auto": _EXPONENT,
        "sdmgrad": (Range("lambda_", 0.03, 3.0, 0.3, True, "a factor of 10 around the default"),),
        "stch": (Range("mu", 0.1, 10.0, 1.0, True, "a factor of 10 around the default"),),
    }
)
"""The ranges by method. The weights of ``fixed`` are searched too, one per task, from 0.1 to 10."""
