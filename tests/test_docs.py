"""What the docs say of the code and no example checks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ntkmtl.weighting import specs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def test_the_readme_lists_every_method_as_the_registry_does() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.split("<!-- methods -->")[1].split("<!-- end of methods -->")[0]
    rows = [line for line in listed.splitlines() if line.startswith("| `")]
    expected = [f"| `{s.name}` | {s.summary} | {s.reads} | {s.paper} |" for s in specs()]
    assert rows == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_of_methods_are_those_of_the_docstrings() -> None:
    path = ROOT / "scripts" / "make_method_pages.py"
    spec = importlib.util.spec_from_file_location("make_method_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = {page.name: page.read_text(encoding="utf-8") for page in module.FOLDER.glob("*.md")}
    assert written == module.pages(), "run python scripts/make_method_pages.py"
