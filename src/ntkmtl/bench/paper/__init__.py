"""The tables of the paper as data, and whether their columns agree with each other.

Importing this package, and reading or rendering a table, does not import torch; working out MR
and Δm% again does.

Example:
    >>> from ntkmtl.bench import paper
    >>> nyuv2 = paper.table(1)
    >>> nyuv2.row("fairgrad").value("miou"), nyuv2.row("fairgrad").mr
    (39.74, 6.44)
    >>> paper.table(9).row("ntkmtl").stderr("delta_m")
    0.38
"""

from __future__ import annotations

from ntkmtl.bench.paper._checks import Check, Verdict, checks, discrepancies, render, report
from ntkmtl.bench.paper._results import PaperResult, ResultPart, find_result, paper_results
from ntkmtl.bench.paper._tables import Cell, Kind, PaperColumn, PaperTable, Row, table, tables

__all__ = [
    "Cell",
    "Check",
    "Kind",
    "PaperColumn",
    "PaperResult",
    "PaperTable",
    "ResultPart",
    "Row",
    "Verdict",
    "checks",
    "discrepancies",
    "find_result",
    "paper_results",
    "render",
    "report",
    "table",
    "tables",
]
