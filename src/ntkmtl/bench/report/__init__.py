"""Tables, figures and pages made from the run folders of a comparison.

A comparison is a folder as ``ntkmtl compare`` writes it. From it come

- :func:`build_table` and :func:`build_tables`: means, standard errors, MR and Delta-m;
- :func:`render`, :func:`rich_table` and :func:`print_table`: the table as text, Markdown, LaTeX,
  CSV or JSON, or for a terminal;
- :func:`write_html`: one self-contained page with the table and the charts;
- :func:`save_figures`: figures as PNG and SVG files.

The names are loaded on first use: importing this package imports neither torch nor plotly.

Example:
    >>> from ntkmtl.bench import report, training
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> comparison = training.Comparison(
    ...     "qm9-mini", ["ls", "si"], seeds=[0], out=folder / "runs", epochs=1, jobs=1,
    ...     single_task_baselines=False,
    ... )
    >>> sweep = training.compare(comparison)
    >>> table = report.build_table(folder / "runs")
    >>> [row.method for row in table.rows]
    ['ls', 'si']
    >>> report.build_tables(folder / "runs").keys()
    dict_keys(['qm9-mini'])
    >>> report.render(table, "markdown").splitlines()[2][:6]
    '| ls |'
    >>> type(report.rich_table(table))  # of Rich, for a terminal
    <class 'rich.table.Table'>
    >>> report.write_html(folder / "runs").name
    'report.html'
    >>> report.save_figures(folder / "runs", folder)  # neither baselines nor eigenvalues here
    []
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.errors import MissingExtraError, missing_extra
from ntkmtl.loading import on_first_use

if TYPE_CHECKING:
    from ntkmtl.bench.report._build import build_table, build_tables
    from ntkmtl.bench.report._page import write_html
    from ntkmtl.bench.report._render import FORMATS, print_table, render, rich_table
    from ntkmtl.bench.report._table import MethodRow, MetricColumn, ResultTable, SeedMean
    from ntkmtl.bench.report.figures import save_figures

__all__ = [
    "FORMATS",
    "MethodRow",
    "MetricColumn",
    "ResultTable",
    "SeedMean",
    "build_table",
    "build_tables",
    "print_table",
    "render",
    "rich_table",
    "save_figures",
    "write_html",
]

_find, __dir__ = on_first_use(
    __name__,
    {
        "._build": ("build_table", "build_tables"),
        "._page": ("write_html",),
        "._render": ("FORMATS", "print_table", "render", "rich_table"),
        "._table": ("MethodRow", "MetricColumn", "ResultTable", "SeedMean"),
        ".figures": ("figures", "save_figures"),
    },
)


def __getattr__(name: str) -> object:
    try:
        return _find(name)
    except ImportError as error:
        if isinstance(error, MissingExtraError) or (error.name or "ntkmtl").startswith("ntkmtl"):
            raise
        raise missing_extra("ntkmtl.bench.report", "bench", error) from error
