"""What the docs say of the code and no example checks."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ntkmtl.bench.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SHELLS = ("", "bash", "console", "sh")


def prose(page: Path) -> str:
    """Return a page without its code and comments."""
    return re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", prose(page)):
        if target.startswith("http"):
            continue
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{page.name}: {target}#{anchor}"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``ntkmtl`` in the blocks of a shell."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if language in SHELLS):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r" *(?:\w+=\S+ +)*(?:ntkmtl |\S.* -m ntkmtl )", line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for between, group in itertools.groupby(lexer, lambda word: word in (";", "&&", "|")):
                words = list(group)
                if not between and "ntkmtl" in words:
                    yield words[words.index("ntkmtl") + 1 :]


def test_commands_are_found_in_blocks() -> None:
    text = """`ntkmtl no` and
```python
ntkmtl = 1
```
```bash
A=b torchrun --nproc-per-node 2 -m ntkmtl run x \\
    --out "a b"   # why
ntkmtl run x --method ntkmtl; ntkmtl data
cat ntkmtl
```
```console
ntkmtl table runs | less
```
"""
    assert list(commands(text)) == [
        ["run", "x", "--out", "a b"],
        ["run", "x", "--method", "ntkmtl"],
        ["data"],
        ["table", "runs"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_the_pages_are_those_of_the_command_line(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *arguments in commands(page.read_text(encoding="utf-8")):
        group.commands[name].make_context(name, arguments)


def method_pages() -> Any:
    return script("make_method_pages")


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_show_the_results_of_the_study() -> None:
    for path, text in script("make_study_pages").pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python scripts/make_study_pages.py"


def test_pages_of_methods_are_those_of_the_docstrings() -> None:
    module = method_pages()
    written = {page.name: page.read_text(encoding="utf-8") for page in module.FOLDER.glob("*.md")}
    assert written.keys() >= module.BY_HAND
    kept = {name: text for name, text in written.items() if name not in module.BY_HAND}
    assert kept == module.pages(), "run python scripts/make_method_pages.py"
    assert not [name for name, text in kept.items() if ".. math::" in text]


def test_the_readme_lists_every_method_as_the_registry_does() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("| `ntkmtl-sr` | ") == 1
    assert text == method_pages().readme(), "run python scripts/make_method_pages.py"
