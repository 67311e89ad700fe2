"""One self-contained page: the table, charts, and what was run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ntkmtl._version import __version__
from ntkmtl.bench.report._build import table_of
from ntkmtl.bench.report._page import page_of, section_of
from ntkmtl.bench.report._page_data import data_of
from ntkmtl.bench.report._render import finite
from ntkmtl.bench.report._runs import ProblemRuns, load
from ntkmtl.errors import imports_for
from ntkmtl.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"

_COMMON = ("common/charts.js", "common/export.js")
_SCRIPTS = {
    "report": (
        *_COMMON,
        "report/table.js",
        "report/bars.js",
        "report/curves.js",
        "report/report.js",
    ),
    "analysis": (*_COMMON, "analysis/analysis.js"),
}
"""The scripts that draw the charts of a page, in their order."""


def write_html(
    runs_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    gallery: bool = False,
) -> Path:
    """Write the report of a comparison as one HTML file that opens with no network.

    The page holds the table, sortable by each column and to be saved as CSV and LaTeX; Delta-m and
    time per epoch as bars; learning curves of all metrics and training losses side by side, over
    seeds or one by one; weights and eigenvalues of the tasks over training; the configuration, and
    the settings in which runs differ. Charts can be saved as SVG.
    It loads nothing: its content security policy names the two scripts in it by their hashes and
    forbids everything else. A sentence says what a folder has no data for.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``. If it holds several problems, the
            page shows one at a time.
        output: Where to write, ``report.html`` in ``runs_dir`` if None.
        gallery: Whether to show predictions of the best network on single samples. Its problem is
            created as ``config.json`` says, and its data are read.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No run in it is complete, a file cannot be read, or the runs of a problem do not
            report the same metrics; with ``gallery``, no run kept its network, or the problem
            cannot be created.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    pages, data = [], []
    for runs in load(runs_dir).values():
        table = table_of(runs)
        page = page_of(runs, table)
        page["success"] = section_of(runs, runs_dir)
        page["gallery"] = _gallery(runs) if gallery else None
        pages.append(page)
        data.append(data_of(runs, table))
    text = page_text("report", data, pages=pages, title=" · ".join(p["name"] for p in pages))
    path = Path(output) if output is not None else Path(runs_dir) / "report.html"
    write_text(path, text)
    return path


def _gallery(runs: ProblemRuns) -> dict[str, Any]:
    # It needs torch, which pages without a gallery do not.
    from ntkmtl.bench.report._gallery import gallery_of

    return gallery_of(runs)


def page_text(name: str, data: Any, **context: Any) -> str:
    """Return one self-contained page of charts.

    Args:
        name: ``NAME.html.jinja`` is the page, ``report`` or ``analysis``.
        data: JSON values for that script.
        **context: What the page shows. Every text is escaped.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    with imports_for("the HTML report"):
        import jinja2  # noqa: F401
        from plotly.offline import get_plotlyjs

    drawing = "\n".join(_read(_TEMPLATES / script) for script in _SCRIPTS[name])
    # HTML parsers turn CR LF into LF before the hash of a script is compared.
    scripts = [
        script.replace("\r\n", "\n").replace("\r", "\n") for script in (get_plotlyjs(), drawing)
    ]
    return rendered(
        _TEMPLATES / f"{name}.html.jinja",
        css=_read(_TEMPLATES / "report.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=embed(data),
        **context,
    )


def rendered(template: Path, **context: Any) -> str:
    """Return a template of jinja2 with this version, the time and ``context``, all escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template(template.name)
    return page.render(version=__version__, written=written, **context)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def embed(value: Any) -> str:
    r"""Return JSON that is safe in a ``<script>`` element, whatever the strings in it.

    Args:
        value: JSON values; numbers that are not finite become null.

    Example:
        >>> embed(["</script>", float("nan")])
        '["\\u003c/script\\u003e",null]'
    """
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
