"""What to say of folders that hold other runs than those asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ntkmtl.bench.runs import RunFileError

__all__ = ["conflict_message", "damaged"]

_DAMAGED = "damaged: "
"""Prefix of the entry for a run whose files cannot be read."""


def damaged(error: RunFileError) -> str:
    """Return the entry among conflicts for a run whose file cannot be read."""
    return f"{_DAMAGED}{error}"


def conflict_message(conflicts: Mapping[Path, Sequence[str]]) -> str:
    """Return the message of an error about folders that hold other runs.

    Args:
        conflicts: The folders, with what differs in each.
    """
    folder, found = next(iter(conflicts.items()))
    others = len(conflicts) - 1
    more = f" (and {others} more like it)" if others else ""
    kind = "a damaged run" if found[0].startswith(_DAMAGED) else "another run"
    return (
        f"{folder} holds {kind}{more}: {'; '.join(found).removeprefix(_DAMAGED)}. "
        "Give another --out, or --overwrite to replace what differs."
    )
