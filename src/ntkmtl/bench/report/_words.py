"""Text for people: names of methods, counts, lists, aligned columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntkmtl.bench import problems


def entry_of(problem: str) -> problems.ProblemSpec:
    """Return what the registry says of a problem; of another, what holds for most."""
    return problems.spec(problem) or problems.ProblemSpec(problem, target="", summary="")


def plain_label(problem: str) -> str:
    """Return the name in tables of the method whose time per epoch is 1."""
    plain = entry_of(problem).plain
    return "LS" if plain == "ls" else plain


def units_text(problem: str, sizes: Mapping[str, int]) -> str:
    """Return how much of what the splits hold, ``""`` where the problem counts samples."""
    units = entry_of(problem).units
    return ", ".join(f"{sizes[split]:,} {unit}" for split, unit in units.items())


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
