"""The table of problems. No part of this module imports torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROBLEMS", "ProblemSpec"]


class ProblemSpec(NamedTuple):
    """Where a problem is, and what it is in one line.

    Attributes:
        name: Name on the command line.
        target: ``module:Class`` of the :class:`~ntkmtl.problems.base.Problem`.
        summary: One line for people.
    """

    name: str
    target: str
    summary: str


PROBLEMS: dict[str, ProblemSpec] = {
    spec.name: spec
    for spec in (
        ProblemSpec(
            "qm9-mini",
            "ntkmtl.problems.qm9_mini:QM9Mini",
            "11 properties of 4,000 organic molecules from QM9; trains in seconds on a CPU",
        ),
    )
}
