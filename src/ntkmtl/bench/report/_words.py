"""Words for people: names of methods, numbers of things, lengths of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.bench import problems

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["count", "listing", "plain_label", "plain_method"]


def plain_method(problem: str) -> str:
    """Return the method whose time per epoch is 1: the plain sum of losses."""
    entry = problems.spec(problem)
    return "ls" if entry is None else entry.plain


def plain_label(problem: str) -> str:
    """Return the name of :func:`plain_method` as people see it."""
    plain = plain_method(problem)
    return "LS" if plain == "ls" else plain


def listing(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
