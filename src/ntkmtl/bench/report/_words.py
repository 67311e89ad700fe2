"""Text for people: counts, lists, and names that can be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def listing(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seeds_text(seeds: Sequence[int], most: int = 10) -> str:
    """Return how many seeds there are, and which.

    Example:
        >>> seeds_text([0]), seeds_text([0, 1, 5]), seeds_text(range(20), most=2)
        ('1 seed: 0', '3 seeds: 0, 1, 5', '20 seeds: 0, 1, …')
    """
    more = [*map(str, seeds[:most]), *(["…"] if len(seeds) > most else [])]
    return f"{count(len(seeds), 'seed')}: {', '.join(more)}"


def run_text(problem: str, facts: Mapping[str, Any]) -> str:
    """Return the problem of a table, its seeds and its epochs, as the title of a figure."""
    parts = [count(len(facts["seeds"]), "seed"), count(facts["recipe"]["epochs"], "epoch")]
    return f"{problem}: {', '.join(parts)}{', reduced recipe' if facts['reduced'] else ''}"


def printable(text: str, longest: int = 80, keep: str = "") -> str:
    r"""Return a text on one line, without control characters, and cut if it is very long.

    Args:
        text: Any text.
        longest: Characters after which it is cut.
        keep: Control characters to keep.

    Example:
        >>> printable("a\x1b[31mb\nc")
        'a�[31mb c'
    """
    # Cutting first keeps a text of millions of characters cheap.
    cut = text[:longest] + "…" if len(text) > longest else text
    return "".join(
        char if char.isprintable() or char in keep else " " if char in "\t\r\n" else "\ufffd"
        for char in cut
    )
