"""Shows each linked source file as a page, where the repository's web view would show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from public_names import source_files
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import guess_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

SHOWN = {".py", ".toml", ".txt"}
"""Suffixes of files that are shown. Others, such as measurements in JSON, are downloaded."""


class LinksToSource(SphinxTransform):
    """Turns downloads of source files into links to their pages."""

    default_priority = 1

    def apply(self, **kwargs: Any) -> None:
        """Replace the nodes of one document."""
        root = Path(self.env.srcdir).resolve()
        pages = _pages(self.env)
        for node in list(self.document.findall(addnodes.download_reference)):
            path = (root / Path(self.env.docname).parent / node["reftarget"]).resolve()
            if node["reftarget"].startswith("/"):
                path = (root / node["reftarget"].lstrip("/")).resolve()
            if path.suffix not in SHOWN or not path.is_relative_to(root) or not path.is_file():
                continue
            if path.parent == root / "docs" / "examples":
                continue  # a page of the gallery offers its own script as a file
            up = "../" * self.env.docname.count("/")
            if path.parent == root / "docs" / "gallery":
                uri = f"{up}docs/examples/{path.stem}.html"
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri))
                continue
            name = path.relative_to(root).as_posix()
            pages.setdefault(self.env.docname, set()).add(name)
            link = nodes.reference("", "", *node.children, refuri=f"{up}source/{name}.html")
            node.replace_self(link)


def _pages(env: Any) -> dict[str, set[str]]:
    """Return the files that each document links to."""
    if not hasattr(env, "source_pages"):
        env.source_pages = {}
    pages: dict[str, set[str]] = env.source_pages
    return pages


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the pages of all linked files."""
    formatter = HtmlFormatter(lineanchors="line")
    for name in sorted(source_files().union(*_pages(app.env).values())):
        text = (Path(app.srcdir) / name).read_text(encoding="utf-8")
        shown = highlight(text, guess_lexer_for_filename(name, text), formatter)
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>\n{shown}"}, "page.html"


def forget(app: Sphinx, env: Any, docname: str) -> None:
    """Forget what a changed document linked to."""
    _pages(env).pop(docname, None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform and the pages."""
    app.add_transform(LinksToSource)
    app.connect("html-collect-pages", pages)
    app.connect("env-purge-doc", forget)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
