"""A link to a folder shows it in the repository, and downloads it from the site."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("myst_parser")
EXTENSIONS = Path(__file__).parents[2] / "docs" / "_extensions"
CONF = """
extensions = ["myst_parser", "folder_archives"]
exclude_patterns = ["out"]
"""


def build(source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-q",
            "-W",
            str(source),
            str(source / "out"),
        ],
        env={**os.environ, "PYTHONPATH": str(EXTENSIONS)},
        capture_output=True,
        text=True,
        check=False,
    )


def write(source: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, "utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    page = "# Page\n\n[numbers](numbers) and [index](../index.md)\n"
    files = {
        "conf.py": CONF,
        "index.md": "# Index\n\n```{toctree}\ndocs/page\n```\n",
        "docs/page.md": page,
    }
    write(tmp_path, files)
    return tmp_path


def test_the_archive_holds_the_measurements(source: Path) -> None:
    numbers = {"docs/numbers/a.json": "{}", "docs/numbers/deep/b.json": "[1]"}
    left_out = {"docs/numbers/work/c.json": "2", "docs/numbers/page.html": ""}
    write(source, numbers | left_out)
    done = build(source)
    assert done.returncode == 0, done.stderr
    text = (source / "out" / "docs" / "page.html").read_text("utf-8")
    assert 'href="../archives/docs-numbers.zip"' in text
    file = source / "out" / "archives" / "docs-numbers.zip"
    with ZipFile(file) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == numbers
    before = file.read_bytes()
    assert build(source).returncode == 0
    assert file.read_bytes() == before


def test_a_folder_without_measurements_is_refused(source: Path) -> None:
    write(source, {"docs/numbers/page.html": ""})
    done = build(source)
    assert done.returncode != 0
    assert "docs/numbers is linked to and has none of" in done.stderr
