"""What to do with data whose values are implausible: another unit, an empty label, a wrong file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OVERRULE = "If the data are really so, pass --accept-implausible."
ACCEPTED = "accepted_as_implausible"
"""The fact in a manifest that holds what was found and accepted."""


def refuse_implausible(
    source: Path | str, found: Sequence[str], accept: bool
) -> dict[str, list[str]]:
    """Refuse data of which something is implausible, or return it as a fact for the manifest.

    Args:
        source: Where the data are.
        found: What is implausible: a phrase each, with what was expected and what was found.
        accept: Whether the user says that the data are really so.

    Example:
        >>> refuse_implausible("x.npz", ["depths must be in meters, found 250"], accept=False)
        Traceback (most recent call last):
        ...
        ValueError: x.npz: depths must be in meters, found 250. If the data are really so, pass \
--accept-implausible.
        >>> refuse_implausible("x.npz", [], accept=False)
        {}
    """
    if found and not accept:
        said = "; ".join(found)
        raise ValueError(f"{source}: {said}{'' if said.endswith('?') else '.'} {OVERRULE}")
    return {ACCEPTED: list(found)} if found else {}


def accepted_notice(facts: Mapping[str, Any]) -> str:
    """Return what to say before a run on data that were accepted as implausible, "" for others."""
    found = facts.get(ACCEPTED)
    return f"These data were accepted though {'; '.join(found)}." if found else ""
