"""Computing what models that are no networks make of a problem."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ntkmtl.bench.runs.layout import folder_name
from ntkmtl.bench.runs.references import Reference, read_references, save_references

if TYPE_CHECKING:
    from pathlib import Path

    from ntkmtl.bench.problems.base import Problem

__all__ = ["write_references"]


def write_references(problem: Problem, out: Path) -> None:
    """Compute the references of a problem and keep them beside its runs, once.

    Args:
        problem: The problem.
        out: The comparison's folder.

    Raises:
        MissingExtraError: A package that they need is not installed.
        RunFileError: The file of an earlier comparison is damaged.
        OSError: The file cannot be written.
    """
    folder = out / folder_name(problem.name)
    if read_references(folder, problem.options, len(problem.metrics)):
        return
    begun = time.monotonic()
    found = problem.references()
    if not found:
        return
    seconds = (time.monotonic() - begun) / len(found)
    rows = [
        Reference(name, problem.reference_words.get(name, name), tuple(map(float, values)), seconds)
        for name, values in found.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    save_references(folder, problem.options, rows)
