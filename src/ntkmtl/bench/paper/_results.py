"""The tables and figures of the paper, and what is behind each: problem, methods, settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ntkmtl.bench import problems
from ntkmtl.bench.paper._tables import table, tables

RECIPES = ("small", "paper")
"""Recipes of every supervised problem behind a table or figure, the smallest first."""

AGENT_RECIPES = ("cpu-mt4", "cpu-mt10", "paper")
"""Recipes of the problem that is reinforcement learning."""


def recipes_of(problem: str) -> tuple[str, ...]:
    """Return the names of a problem's recipes, the smallest first.

    Example:
        >>> recipes_of("qm9")
        ('small', 'paper')
    """
    entry = problems.spec(problem)
    return RECIPES if entry is None or entry.supervised else AGENT_RECIPES


@dataclass(frozen=True)
class ResultPart:
    """One problem behind a table or figure.

    Attributes:
        problem: Its registered name.
        metrics: Number of the table that prints its metrics by method, 0 for none.
        baseline: Number of the table that prints its metrics of STL, 0 for none.
        mr: Name of its mean rank column in the result's own table, ``""`` for none.
        delta_m: Name of its Δm% column there, ``""`` for none.
    """

    problem: str
    metrics: int = 0
    baseline: int = 0
    mr: str = ""
    delta_m: str = ""


@dataclass(frozen=True)
class PaperResult:
    """A table or a figure of the paper.

    Attributes:
        kind: ``"table"`` or ``"figure"``.
        number: Its number in the paper.
        title: What it shows.
        parts: The problems behind it.
        methods: Methods that are run unless others are asked for.
        seeds: Number of seeds in the paper, None where it does not say.
        said: What the paper says of a figure, which prints no numbers.
    """

    kind: Literal["table", "figure"]
    number: int
    title: str
    parts: tuple[ResultPart, ...]
    methods: tuple[str, ...] = ("ls", "ntkmtl", "ntkmtl-sr")
    seeds: int | None = 3
    said: str = ""

    @property
    def name(self) -> str:
        """Name on the command line, as ``table3``."""
        return f"{self.kind}{self.number}"

    @property
    def supervised(self) -> bool:
        """Whether supervised problems are behind it, not reinforcement learning."""
        entries = [problems.spec(part.problem) for part in self.parts]
        return all(entry is None or entry.supervised for entry in entries)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes of its problems, the smallest first."""
        return recipes_of(self.parts[0].problem)

    @property
    def label(self) -> str:
        """Name for people, as ``Table 3``."""
        return f"{self.kind.capitalize()} {self.number}"

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods of the published table but STL; the default ones for a figure."""
        if self.kind == "figure":
            return self.methods
        return tuple(method for method in table(self.number).methods if method != "stl")


_QM9 = ResultPart("qm9", metrics=3, baseline=3, mr="mr", delta_m="delta_m")
_NYUV2 = ResultPart("nyuv2", metrics=1, baseline=1, mr="mr", delta_m="delta_m")
_CITYSCAPES = ResultPart("cityscapes", metrics=7, baseline=7, mr="mr", delta_m="delta_m")
_OWN = ("ntkmtl", "ntkmtl-sr")

_TABLES: dict[int, tuple[tuple[ResultPart, ...], int | None]] = {
    1: ((_NYUV2,), 3),
    2: (
        (
            ResultPart("cityscapes", 7, 7, mr="cityscapes_mr", delta_m="cityscapes_delta_m"),
            ResultPart("celeba", mr="celeba_mr", delta_m="celeba_delta_m"),
        ),
        3,
    ),
    3: ((_QM9,), None),
    4: ((ResultPart("mt10"),), 10),
    6: ((ResultPart("qm9", metrics=6, baseline=6, mr="mr", delta_m="delta_m"),), None),
    7: ((_CITYSCAPES,), 3),
    8: (
        (
            ResultPart("cityscapes", 8, 7, delta_m="cityscapes_delta_m"),
            ResultPart("celeba", delta_m="celeba_delta_m"),
        ),
        3,
    ),
    9: ((ResultPart("nyuv2", metrics=9, baseline=1, delta_m="delta_m"),), 3),
}
_FIGURES = (
    PaperResult(
        "figure",
        1,
        "Training time per epoch by method on CelebA",
        (ResultPart("celeba"),),
        seeds=None,
        said="NTKMTL-SR is about as fast as LS, with 40 tasks.",
    ),
    PaperResult(
        "figure",
        2,
        "Largest eigenvalue of each task's kernel over the training of LS on NYUv2",
        (ResultPart("nyuv2"),),
        methods=("ls",),
        seeds=None,
        said=(
            "The eigenvalue of normals stays much smaller than those of segmentation and depth "
            "throughout training."
        ),
    ),
    PaperResult(
        "figure",
        3,
        "Δm% of NTKMTL-SR over n on QM9",
        (_QM9,),
        methods=("ntkmtl-sr",),
        said=(
            "n = 1 is like NTKMTL; 2 or more is better and varies less between seeds; 4 and 6 are "
            "almost equal. Table 3 prints 30.7 for n = 4, the default."
        ),
    ),
    PaperResult(
        "figure",
        4,
        "Training time per epoch of LS and of NTKMTL-SR over n on QM9",
        (ResultPart("qm9"),),
        methods=("ls", "ntkmtl-sr"),
        seeds=None,
        said="An epoch of NTKMTL-SR with n = 6 takes nearly 1.7 times that of LS.",
    ),
)


def paper_results() -> tuple[PaperResult, ...]:
    """Return the tables and then the figures, in the paper's order.

    Example:
        >>> [one.name for one in paper_results()][-5:]
        ['table9', 'figure1', 'figure2', 'figure3', 'figure4']
    """
    return (*(_table(one.number) for one in tables()), *_FIGURES)


def _table(number: int) -> PaperResult:
    source = table(number)
    parts, seeds = _TABLES[number]
    return PaperResult(
        "table",
        number,
        source.title,
        parts,
        # Tables 8 and 9 have our two only; Table 4's plain sum is a row of its own name.
        methods=tuple(m for m in ("ls", "mtl-sac", *_OWN) if m in source.methods),
        seeds=seeds,
    )


def find_result(name: str) -> PaperResult:
    """Return a table or figure by name.

    Args:
        name: ``"table3"``, ``"figure3"``, or ``"3"`` for Table 3.

    Raises:
        KeyError: There is none of that name.

    Example:
        >>> find_result("3").name
        'table3'
        >>> find_result("table2").parts[1].problem
        'celeba'
    """
    found = re.fullmatch(r"(table|figure)?\s*(\d+)", name.strip().lower())
    if found is None:
        raise KeyError(f"no {name!r} in the paper; name it as table3 or figure3")
    kind, number = found[1] or "table", int(found[2])
    if kind == "table":
        table(number)
        return _table(number)
    for one in _FIGURES:
        if one.number == number:
            return one
    raise KeyError(f"no Figure {number} of the paper is kept; choose one of 1, 2, 3, 4")
