"""Lets a sentence below ``Returns:`` have a colon, where Napoleon expects a type before it.

It also leaves out the docstring that a constant has from its type, such as that of ``dict``.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def process(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Put an empty type below each ``Returns:`` and ``Yields:``, and clear a type's own text."""
    if what == "data" and type(obj).__module__ == "builtins":
        lines.clear()
    for i, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            lines[i + 1] = re.sub(r"^( *)(?=\S)", r"\1: ", lines[i + 1])


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before Napoleon, which listens with priority 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
