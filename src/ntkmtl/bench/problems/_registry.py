"""The table of problems. No part of this module imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class ProblemSpec(NamedTuple):
    """Where a problem is, and what it is in one line.

    Attributes:
        name: Name on the command line.
        target: ``module:Class`` of the :class:`~ntkmtl.bench.problems.base.Problem`, or of the
            comparison, see ``supervised``.
        summary: One line for people.
        prepare: ``module:function`` that prepares the data, ``""`` where they are shipped or made
            on the fly. The function takes ``source``, what was downloaded; ``folder``, where the
            prepared data go, replacing earlier ones once the new ones are whole; ``progress``,
            called with progress messages; and ``accept_implausible``, whether values that look
            wrong are taken for what they are. It returns one line on what it made.
        supervised: Whether ``target`` is a problem with samples and losses. Else it is a class of
            comparisons with the interface of
            :class:`ntkmtl.bench.reinforce.comparison.AgentComparison`.
        section: ``module:function`` that makes a further section of reports from the folder of
            runs, ``""`` for none.
        plain: Name of the method that trains on the plain sum of losses: times are relative to it.
        units: What ``sizes`` of a run count, by split, where they are not samples.
        methods: Names of the methods that are compared if none are named.
    """

    name: str
    target: str
    summary: str
    prepare: str = ""
    supervised: bool = True
    section: str = ""
    plain: str = "ls"
    units: Mapping[str, str] = MappingProxyType({})
    methods: tuple[str, ...] = ("ls", "ntkmtl", "ntkmtl-sr")


# Where nothing lies between shared part and losses that a kernel could be read at.
_FIELDS = ("ls", "softadapt", "relobralo", "ntkmtl-auto")

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
        ProblemSpec(
            "xtb",
            "ntkmtl.bench.problems.xtb:XTB",
            "Energy, forces, dipole and charges of GFN2-xTB for ethanol, aspirin and 55 molecules",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "pinn-burgers",
            "ntkmtl.bench.problems.pinn:Burgers",
            "Burgers' equation by a physics-informed network: residual, initial values, boundary",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "pinn-helmholtz",
            "ntkmtl.bench.problems.pinn:Helmholtz",
            "Helmholtz' equation by a physics-informed network: residual and boundary",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "pinn-allen-cahn",
            "ntkmtl.bench.problems.pinn:AllenCahn",
            "The Allen-Cahn equation by a physics-informed network: residual and initial values",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "pinn-wave",
            "ntkmtl.bench.problems.pinn:Wave",
            "The wave equation by a physics-informed network: residual, start, velocity, boundary",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "pinn-navier-stokes",
            "ntkmtl.bench.problems.pinn:NavierStokes",
            "Steady flow by a physics-informed network: momentum in x and y, continuity, boundary",
            methods=_FIELDS,
        ),
        ProblemSpec(
            "mt10",
            "ntkmtl.bench.reinforce.comparison:AgentComparison",
            "10 tasks of a robot arm, Meta-World's MT10, by multi-task Soft Actor-Critic",
            supervised=False,
            section="ntkmtl.bench.reinforce.results:section",
            plain="mtl-sac",
            units=MappingProxyType(
                {"train": "vector steps", "val": "episodes per evaluation and task"}
            ),
            methods=("mtl-sac", "mh-sac", "ntkmtl"),
        ),
    )
}
