"""What is said of a method beside its mathematics, and the decorator that says it.

No part of this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

__all__ = ["EXACT", "EXACT_HEADS", "FAMILIES", "Family", "MethodSpec", "SearchRange", "method"]

Family = Literal["baseline", "losses", "gradients", "ntk"]
FAMILIES: tuple[Family, ...] = get_args(Family)
"""In the order of the tables."""

EXACT: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": False})
"""The kernel of the shared parameters; every head learns from its own loss alone."""

EXACT_HEADS: Mapping[str, Any] = MappingProxyType({"source": "exact", "weight_heads": True})
"""The kernel of the shared parameters; a head's loss has the task's weight too."""


@dataclass(frozen=True)
class SearchRange:
    """A setting of a method, and the values that ``ntkmtl tune`` tries.

    Attributes:
        option: Name of the setting.
        low: Least value.
        high: Largest value.
        start: The published value, which the first trial has.
        log: Whether the logarithm is searched, not the number itself.
        reason: Why this range.
    """

    option: str
    low: float
    high: float
    start: float
    log: bool = False
    reason: str = ""


@dataclass(frozen=True)
class MethodSpec:
    """What is known of a method before one is made.

    Attributes:
        name: Its registered name, or ``module:Class``.
        summary: One line.
        paper: Authors, title, venue and year.
        requires: What its weights are made of; see :class:`ntkmtl.weighting.Weighting`.
        family: Where it stands in tables: ``"baseline"``, ``"losses"``, ``"gradients"`` or
            ``"ntk"``; ``"custom"`` for a class outside the package.
        home: ``module:Class``.
        defaults: Options of :class:`ntkmtl.Balancer` that the method's own published form uses.
        space: What ``ntkmtl tune`` searches beside the learning rate.
    """

    name: str
    summary: str
    paper: str
    requires: str
    family: str
    home: str
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    space: tuple[SearchRange, ...] = ()

    @property
    def year(self) -> int | None:
        """The year of the paper; None where there is no paper.

        Example:
            >>> from ntkmtl.weighting import spec
            >>> spec("moco").year
            2023
        """
        years = re.findall(r"\b(?:19|20)\d\d\b", self.paper)
        return int(years[-1]) if years else None


_Class = TypeVar("_Class", bound=type[Any])


def method(
    name: str,
    *,
    family: Family,
    summary: str,
    paper: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[_Class], _Class]:
    """Register a weighting of this package under a name.

    A class may have several names: one decorator each, the first on top. What ``ntkmtl tune``
    searches is the class's :attr:`~ntkmtl.weighting.Weighting.search_space`.

    Args:
        name: Lower case, words joined by hyphens.
        family: Where it stands in tables.
        summary: One line, without a full stop.
        paper: Authors, title, venue and year.
        defaults: Options of the Balancer under this name;
            the class's ``balancer_defaults`` if None.
    """

    def declare(cls: _Class) -> _Class:
        own = cls.balancer_defaults if defaults is None else defaults
        spec = MethodSpec(
            name=name,
            summary=summary,
            paper=paper,
            requires=cls.requires,
            family=family,
            home=f"{cls.__module__}:{cls.__name__}",
            defaults=MappingProxyType(dict(own)),
            space=cls.search_space,
        )
        # Decorators are applied from the bottom upwards. A subclass does not inherit names.
        cls._specs = (spec, *vars(cls).get("_specs", ()))
        return cls

    return declare
