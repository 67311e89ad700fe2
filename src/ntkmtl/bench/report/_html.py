"""Self-contained HTML pages: templates, styles, scripts and data in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ntkmtl._version import __version__
from ntkmtl.errors import imports_for
from ntkmtl.files import finite

_TEMPLATES = Path(__file__).parent / "templates"

_COMMON = ("common/charts.js", "common/export.js")
_SCRIPTS = {
    "report": ("report/table.js", "report/bars.js", "report/curves.js", "report/report.js"),
    "analysis": ("analysis/analysis.js",),
}
"""The scripts that draw the charts of a page, in their order, after those that all pages share."""


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

    # HTML parsers turn CR LF into LF before the hash of a script is compared.
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    scripts = [plotly, "\n".join(_read(script) for script in (*_COMMON, *_SCRIPTS[name]))]
    digests = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]
    return rendered(
        _TEMPLATES / f"{name}.html.jinja",
        css=_read("report.css"),
        scripts=scripts,
        hashes=[f"sha256-{base64.b64encode(digest).decode('ascii')}" for digest in digests],
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


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


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
