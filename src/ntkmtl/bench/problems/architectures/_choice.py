"""Architectures by name, with their settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ntkmtl.bench.problems.architectures._backbone import Architecture, Backbone, HardSharing, Head
from ntkmtl.bench.problems.architectures._cross_stitch import CrossStitch
from ntkmtl.bench.problems.architectures._experts import CGC, PLE, DSelectK, MMoE

ARCHITECTURES: Mapping[str, type[Architecture]] = MappingProxyType(
    {
        "hard": HardSharing,
        "cross-stitch": CrossStitch,
        "mmoe": MMoE,
        "cgc": CGC,
        "ple": PLE,
        "dselect-k": DSelectK,
    }
)
"""Networks by name."""


def names() -> tuple[str, ...]:
    """Return the names of all architectures."""
    return tuple(ARCHITECTURES)


@dataclass(frozen=True)
class Choice:
    """An architecture and its settings, as :func:`choose` made it.

    Attributes:
        name: One of :func:`names`.
        settings: Every setting, those left out with their default.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """What goes into a problem's options; nothing for ``hard``.

        The network of ``hard`` is the one that a problem has without a choice, so that runs and
        baselines of it stay what they are.
        """
        if self.name == "hard":
            return {}
        return {"architecture": {"name": self.name, **self.settings}}

    def build(self, backbone: Backbone, heads: Sequence[Head]) -> Architecture:
        """Make the network.

        Raises:
            ValueError: A setting is out of range, or does not fit the backbone.
        """
        return ARCHITECTURES[self.name](backbone, heads, **self.settings)

    def describe(self) -> str:
        """Return name, summary and settings for reports."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.name}: {ARCHITECTURES[self.name].summary}" + (
            f" ({settings})" if settings else ""
        )

    @property
    def sentence(self) -> str:
        """A sentence for a problem's description with a space behind it, ``""`` for ``hard``."""
        return "" if self.name == "hard" else f"Architecture {self.describe()}. "


def choose(name: str, settings: Mapping[str, Any] | None = None) -> Choice:
    """Return an architecture with its settings checked and complete.

    Args:
        name: One of :func:`names`.
        settings: Settings that differ from their defaults.

    Raises:
        ValueError: The name or a setting is unknown, or of the wrong type.

    Example:
        >>> choose("cgc", {"task_experts": 2}).options
        {'architecture': {'name': 'cgc', 'shared_experts': 1, 'task_experts': 2}}
        >>> choose("mmoe", {"expert": 4})
        Traceback (most recent call last):
        ...
        ValueError: mmoe has no setting 'expert'; it takes: experts
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(names())}. Found {name!r}.")
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(
            "architecture_options must be a mapping, on the command line as "
            f"""'architecture_options={{"experts": 4}}'. Found {settings!r}."""
        )
    known = {
        parameter.name: parameter.default
        for parameter in inspect.signature(ARCHITECTURES[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    found = dict(known)
    for key, value in (settings or {}).items():
        if key not in known:
            raise ValueError(
                f"{name} has no setting {key!r}; it takes: {', '.join(known) or 'none'}"
            )
        wanted = type(known[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(
                f"{key} of {name} must be of type {wanted.__name__}, as {known[key]!r} is. "
                f"Found {value!r}."
            )
        found[key] = value
    return Choice(name, MappingProxyType(found))
