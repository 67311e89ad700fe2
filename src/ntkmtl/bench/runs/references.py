"""Metrics of reference models, which are not networks, kept beside the runs of a problem."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkmtl.bench.runs.layout import REFERENCES, SCHEMA
from ntkmtl.bench.runs.records import Finite, convert, read_json, require_length, require_schema
from ntkmtl.files import write_json

__all__ = ["Reference", "read_references", "save_references"]


@dataclass(frozen=True)
class Reference:
    """A model that networks are compared with.

    Attributes:
        name: Its name, as ``ridge``.
        description: What it is, in words.
        test: One number per metric on the test split.
        seconds: Time that it took.
    """

    name: str
    description: str
    test: tuple[Finite, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class _Content:
    problem_options: dict[str, Any]
    rows: tuple[Reference, ...]


def save_references(
    folder: str | os.PathLike[str], problem_options: Mapping[str, Any], rows: list[Reference]
) -> None:
    """Write the references of a problem in one piece.

    Args:
        folder: The problem's folder below that of the comparison.
        problem_options: What determines its data.
        rows: The references.
    """
    content = [
        {"name": r.name, "description": r.description, "test": list(r.test), "seconds": r.seconds}
        for r in rows
    ]
    write_json(
        Path(folder) / REFERENCES,
        {"schema": SCHEMA, "problem_options": dict(problem_options), "rows": content},
    )


def read_references(
    folder: str | os.PathLike[str], problem_options: Mapping[str, Any], metrics: int
) -> tuple[Reference, ...]:
    """Read the references of a problem; empty if there are none, or they are of other data.

    Args:
        folder: The problem's folder below that of the comparison.
        problem_options: What determines the data of its runs.
        metrics: Number of its metrics.

    Raises:
        RunFileError: The file is damaged.
    """
    path = Path(folder) / REFERENCES
    if not path.is_file():
        return ()
    found = read_json(path)
    require_schema(path, found)
    content = convert(path, found, _Content)
    if _of_data(content.problem_options) != _of_data(problem_options):
        return ()
    for row in content.rows:
        require_length(path, f"test of {row.name}", row.test, metrics)
    return content.rows


def _of_data(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "network"}
