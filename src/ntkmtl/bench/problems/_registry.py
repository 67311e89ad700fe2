"""The table of problems. No part of this module imports torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROBLEMS", "ProblemSpec"]


class ProblemSpec(NamedTuple):
    """Where a problem is, and what it is in one line.

    Attributes:
        name: Name on the command line.
        target: ``module:Class`` of the :class:`~ntkmtl.bench.problems.base.Problem`.
        summary: One line for people.
        prepare: ``module:function`` that prepares the data, ``""`` where they are shipped or made
            on the fly. The function takes a source and a folder, a callable that is told how it
            gets on, and returns one line on what it made.
    """

    name: str
    target: str
    summary: str
    prepare: str = ""


PROBLEMS: dict[str, ProblemSpec] = {
    spec.name: spec
    for spec in (
        ProblemSpec(
            "qm9-mini",
            "ntkmtl.bench.problems.qm9_mini:QM9Mini",
            "11 properties of 4,000 organic molecules from QM9; trains in seconds on a CPU",
        ),
        ProblemSpec(
            "qm9",
            "ntkmtl.bench.problems.qm9:QM9",
            "11 properties of QM9's 130,831 molecules with the field's message-passing network",
            prepare="ntkmtl.bench.problems.qm9:prepare",
        ),
        ProblemSpec(
            "celeba",
            "ntkmtl.bench.problems.celeba:CelebA",
            "40 attributes of 202,599 faces from CelebA with the field's convolutional network",
            prepare="ntkmtl.bench.problems.celeba:prepare",
        ),
        ProblemSpec(
            "nyuv2",
            "ntkmtl.bench.problems.nyuv2:NYUv2",
            "13 classes, depth and surface normals of NYUv2's indoor scenes with SegNet and MTAN",
            prepare="ntkmtl.bench.problems.nyuv2:prepare",
        ),
        ProblemSpec(
            "cityscapes",
            "ntkmtl.bench.problems.cityscapes:Cityscapes",
            "7 classes and disparity of CityScapes' street scenes with SegNet and MTAN",
            prepare="ntkmtl.bench.problems.cityscapes:prepare",
        ),
        ProblemSpec(
            "table",
            "ntkmtl.bench.problems.table:Table",
            "A table of your own, CSV, Parquet or ARFF: --csv FILE --targets NAME,NAME",
        ),
    )
}
