"""Print how many parameters each architecture has on images and molecules, as Markdown tables.

    python scripts/count_parameters.py

Networks are made without their numbers (on torch's meta device), so no data and hardly any memory
are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ntkmtl.bench.problems import architectures
from ntkmtl.bench.problems.base import MultiTaskModel
from ntkmtl.bench.problems.celeba import CelebA
from ntkmtl.bench.problems.celeba._network import backbone as face_backbone
from ntkmtl.bench.problems.celeba._network import head as face_head
from ntkmtl.bench.problems.celeba._problem import PARTS
from ntkmtl.bench.problems.cityscapes import Cityscapes
from ntkmtl.bench.problems.dense._labels import Kind
from ntkmtl.bench.problems.dense._network import ARCHITECTURES, backbone, heads
from ntkmtl.bench.problems.dense._problem import DenseProblem
from ntkmtl.bench.problems.nyuv2 import NYUv2
from ntkmtl.bench.problems.qm9 import QM9
from ntkmtl.bench.problems.qm9._network import MoleculeNetwork
from ntkmtl.bench.problems.qm9._network import backbone as molecule_backbone
from ntkmtl.bench.problems.qm9._network import head as molecule_head
from ntkmtl.bench.problems.qm9._problem import PARTS as MOLECULE_PARTS

RECIPES = ("paper", "small")
NAMES = ("mtan", *architectures.names())


def dense(problem: type[DenseProblem], recipe: str, name: str) -> MultiTaskModel:
    """Make the network of an architecture with its default settings."""
    part = problem.parts[recipe]
    outputs: dict[Kind, int] = {"segmentation": problem.layout.classes, "depth": 1}
    if problem.layout.normals:
        outputs["normals"] = 3
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](outputs, part.widths, part.depths)
    trunk = backbone(part.widths, part.depths)
    return architectures.choose(name).build(trunk, heads(outputs, part.widths[0]))


def faces(recipe: str, name: str) -> MultiTaskModel | None:
    """Make the network of an architecture with its default settings; MTAN is none of them."""
    if name not in architectures.names():
        return None
    part = PARTS[recipe]
    trunk = face_backbone(part.width)
    makers = [partial(face_head, part.width)] * len(part.attributes)
    return architectures.choose(name).build(trunk, makers)


def molecules(recipe: str, name: str) -> MultiTaskModel | None:
    """Make the network of an architecture with its default settings; MTAN is none of them."""
    if name not in architectures.names():
        return None
    part, tasks = MOLECULE_PARTS[recipe], len(QM9.tasks)
    if name == "hard":
        return MoleculeNetwork(tasks, part.width, part.hidden)
    trunk = molecule_backbone(part.width, part.hidden)
    return architectures.choose(name).build(trunk, [partial(molecule_head, part.width)] * tasks)


COLUMNS: dict[str, Callable[[str], MultiTaskModel | None]] = {
    f"{problem.name}, {recipe}": partial(make, recipe)
    for problem, make in (
        (NYUv2, partial(dense, NYUv2)),
        (Cityscapes, partial(dense, Cityscapes)),
        (CelebA, faces),
        (QM9, molecules),
    )
    for recipe in RECIPES
}


def counts(name: str) -> list[tuple[str, str]]:
    """Return all and the shared parameters of an architecture, by column."""
    found = []
    for make in COLUMNS.values():
        with torch.device("meta"):
            network = make(name)
        if network is None:
            found.append(("", ""))
            continue
        every, shared = (
            f"{sum(parameter.numel() for parameter in parameters):,}"
            for parameters in (network.parameters(), network.shared_parameters())
        )
        found.append((every, shared))
    return found


def tables() -> list[str]:
    """Return the table of all parameters and that of the shared ones."""
    rows = {name: counts(name) for name in NAMES}
    made = []
    for place, which in enumerate(("all", "shared")):
        lines = [
            f"| {' | '.join([f'`architecture`, {which}', *COLUMNS])} |",
            f"| --- |{' ---: |' * len(COLUMNS)}",
        ]
        for name, cells in rows.items():
            lines.append(f"| {' | '.join([f'`{name}`', *(cell[place] for cell in cells)])} |")
        made.append("\n".join(lines))
    return made


def main() -> None:
    """Print both tables."""
    print("\n\n".join(tables()))


if __name__ == "__main__":
    main()
