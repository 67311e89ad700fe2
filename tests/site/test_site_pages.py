"""What scripts write into pages of the site is up to date."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    pytest.importorskip("grimp")
    path = ROOT / "scripts" / "make_site_pages.py"
    spec = importlib.util.spec_from_file_location("make_site_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cost_on_the_landing_page_is_the_measured_one(script: ModuleType) -> None:
    text = script.LANDING.read_text("utf-8")
    assert "times the time of plain training" in text
    assert text == script.landing(), "run python scripts/make_site_pages.py"


def test_the_plan_is_that_of_the_imports(script: ModuleType) -> None:
    assert script.PLAN.read_text("utf-8") == script.plan(), "run python scripts/make_site_pages.py"


def test_the_plan_shows_every_package(script: ModuleType) -> None:
    shown = {name for _, row in script.LAYERS for name in row}
    source = ROOT / "src"
    found = {
        ".".join(path.parent.relative_to(source).parts)
        for pattern in ("ntkmtl/*/__init__.py", "ntkmtl/bench/*/__init__.py")
        for path in source.glob(pattern)
    }
    assert shown == found - {"ntkmtl.bench"}


def test_every_file_of_measurements_is_listed() -> None:
    docs = ROOT / "docs"
    text = (docs / "measurements.md").read_text("utf-8")
    listed = {docs / target for target in re.findall(r"\]\(([^)#]+)", text)}
    measured = [
        path
        for path in docs.rglob("*.json")
        if not {"examples", "work"} & set(path.relative_to(ROOT).parts)
    ]
    assert len(measured) > 60
    assert [path for path in measured if not listed & {path, *path.parents}] == []
