"""Every public name has its page in the API."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import ntkmtl
from ntkmtl import bench

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    path = ROOT / "docs" / "_extensions" / "public_names.py"
    spec = importlib.util.spec_from_file_location("public_names", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_lists_every_module(extension: ModuleType) -> None:
    text = (ROOT / "docs" / "api" / "index.rst").read_text("utf-8")
    assert tuple(re.findall(r"^   (ntkmtl[\w.]*)$", text, flags=re.MULTILINE)) == extension.MODULES
    parts = {f"ntkmtl.{name}" for name in ntkmtl._SUBMODULES} - {"ntkmtl.integrations"}
    parts |= {
        f"ntkmtl.bench.{name}"
        for name in bench.__all__
        if hasattr(getattr(bench, name), "__path__")
    }
    source = ROOT / "src" / "ntkmtl" / "integrations"
    parts |= {f"ntkmtl.integrations.{path.stem}" for path in source.glob("[!_]*.py")}
    assert parts <= set(extension.MODULES)


def test_no_name_has_two_pages(extension: ModuleType) -> None:
    names = extension.public_names()
    assert "Balancer" in names["ntkmtl"]
    assert "Balancer" not in names["ntkmtl.balance"]
    assert "advise" in names["ntkmtl"]


def test_a_source_is_a_file_and_a_line(extension: ModuleType) -> None:
    file, line = extension.source_of("ntkmtl", "Balancer.backward")
    text = (ROOT / file).read_text("utf-8").splitlines()
    assert "def backward" in "".join(text[line - 1 : line + 2])
    assert file in extension.source_files()
