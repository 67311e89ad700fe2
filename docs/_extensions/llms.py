"""Lists the site's pages, with their first sentences, in ``llms.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

START = """# ntkmtl

> PyTorch library for networks with several losses: `Balancer().backward(losses)` in place of
> `sum(losses).backward()` weights the losses by the neural tangent kernel, so that all tasks learn
> at the same speed. More than 40 other methods, and a bench that compares them.

Start with docs/assistants.html, docs/guide.html and docs/decide.html.

"""


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the list beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    lines = []
    for name in sorted(app.env.found_docs):
        tree = app.env.get_doctree(name)
        paragraph = next(iter(tree.findall(nodes.paragraph)), None)
        text = "" if paragraph is None else " ".join(paragraph.astext().split())
        sentence = re.split(r"(?<=[.:!?])\s", text, maxsplit=1)[0]
        title = app.env.titles[name].astext()
        lines.append(f"- [{title}]({name}.html): {sentence}")
    (Path(app.outdir) / "llms.txt").write_text(START + "\n".join(lines) + "\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write at the end of a build."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
