"""Text for people: names of methods, counts, lists, aligned columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ntkmtl.bench import problems


def plain_method(problem: str) -> str:
    """Return the method whose time per epoch is 1: the plain sum of losses."""
    entry = problems.spec(problem)
    return "ls" if entry is None else entry.plain


def plain_label(problem: str) -> str:
    """Return the name of :func:`plain_method` in tables."""
    plain = plain_method(problem)
    return "LS" if plain == "ls" else plain


def listing(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def aligned(grid: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return rows of cells as lines, the first columns to the left and the others to the right.

    Example:
        >>> aligned([["a", "100"], ["bc", "1"]])
        ['a   100', 'bc    1']
    """
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in grid
    ]


def run_text(problem: str, facts: Mapping[str, Any]) -> str:
    """Return the problem of a table, its seeds and its epochs, as the title of a figure."""
    parts = [count(len(facts["seeds"]), "seed"), count(facts["recipe"]["epochs"], "epoch")]
    return f"{problem}: {', '.join(parts)}{', reduced recipe' if facts['reduced'] else ''}"


def seeds_text(seeds: Sequence[int], most: int = 10) -> str:
    """Return how many seeds there are, and which.

    Example:
        >>> seeds_text([0]), seeds_text([0, 1, 5]), seeds_text(range(20), most=2)
        ('1 seed: 0', '3 seeds: 0, 1, 5', '20 seeds: 0, 1, …')
    """
    more = [*map(str, seeds[:most]), *(["…"] if len(seeds) > most else [])]
    return f"{count(len(seeds), 'seed')}: {', '.join(more)}"


def short(value: float | None) -> float | None:
    """Return a number with as many digits as a chart can show, None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
