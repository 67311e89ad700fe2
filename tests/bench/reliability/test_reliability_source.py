"""What the source may and may not call: each risky function only in its safe form."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ntkmtl

SOURCE = Path(ntkmtl.__file__).parent

NEVER = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "yaml.load",
    "yaml.unsafe_load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "joblib.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "xml.etree.ElementTree.parse",
    "tempfile.mktemp",
}
"""Run what a file holds, or unpack it wherever it says."""

ONLY_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "np.lib.format.write_array": ("allow_pickle", False),
    "np.savez_compressed": ("allow_pickle", False),
    "np.savez": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}
"""Functions that may be called with this keyword written out, and not without."""

METHODS_NEVER = {"extractall", "extract", "read_pickle"}
"""Methods that nothing may call, whatever they belong to."""

MODULES_NEVER = {
    *("dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"),
    *("requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib"),
    *("urllib.request", "http.client", "http.server", "xmlrpc"),
}
"""Modules that nothing may import: code from files, and the network."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def _reads_back(node: ast.Call) -> bool:
    """Whether it is ``pickle.loads(pickle.dumps(...))``: a copy, of nobody else's making."""
    (given,) = node.args or (node,)
    return (
        dotted(node.func) == "pickle.loads"
        and isinstance(given, ast.Call)
        and dotted(given.func) == "pickle.dumps"
    )


def troubles(text: str) -> Iterator[str]:
    """Yield one text for every risky call or import of a module's source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            where = f"line {node.lineno}: {name}"
            if name in NEVER and not _reads_back(node):
                yield where
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS_NEVER:
                yield where
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in ONLY_WITH:
                key, value = ONLY_WITH[name]
                if keywords.get(key) is not value:
                    yield f"{where} without {key}={value}"
            if keywords.get("shell"):
                yield f"{where} with a shell"
            if "autoescape" in keywords and keywords["autoescape"] is not True:
                yield f"{where} without autoescape=True"
            if name.endswith("jinja2.Environment") and "autoescape" not in keywords:
                yield f"{where} without autoescape=True"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES_NEVER:
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                if {base, f"{base}.{alias.name}"} & MODULES_NEVER:
                    yield f"line {node.lineno}: from {base} import {alias.name}"
                # Under a bare name a call would not be found.
                if f"{base}.{alias.name}" in NEVER | set(ONLY_WITH) or base == "pickle":
                    yield f"line {node.lineno}: from {base} import {alias.name}"


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import numpy as np\nnp.load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "from torch import load",
        "from pickle import loads",
        "import pickle\npickle.loads(b'')",
        "import yaml",
        "from urllib import request",
        "import urllib.request",
        "def f(tar):\n    tar.extractall('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import jinja2\njinja2.Environment()",
        "import jinja2\njinja2.Environment(autoescape=False)",
    ],
)
def test_the_search_finds_what_it_is_to_find(text: str) -> None:
    assert list(troubles(text))


def test_nothing_in_the_source_runs_what_a_file_holds() -> None:
    found = [
        f"{path.relative_to(SOURCE)}, {trouble}"
        for path in sorted(SOURCE.rglob("*.py"))
        for trouble in troubles(path.read_text("utf-8"))
    ]
    assert found == []


def test_templates_mark_as_safe_only_what_the_project_wrote_or_escaped() -> None:
    found = set()
    for path in SOURCE.rglob("*.jinja"):
        text = path.read_text("utf-8")
        assert "autoescape false" not in text
        for part in text.split("{{")[1:]:
            expression = part.partition("}}")[0]
            if "|" in expression and "safe" in expression:
                found.add(expression.strip())
    # The style sheet, plotly with the project's script, and JSON without <, > and &.
    assert found == {"css|safe", "script|safe", "data|safe"}


def test_scripts_of_the_pages_write_no_markup() -> None:
    for path in SOURCE.rglob("templates/*.js"):
        text = path.read_text("utf-8")
        for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert risky not in text, f"{path.name} uses {risky}"


def test_durations_are_of_clocks_that_do_not_jump() -> None:
    """``time.time`` jumps with the system's clock; nothing here may measure with it."""
    for path in SOURCE.rglob("*.py"):
        assert "time.time()" not in path.read_text("utf-8"), path
