"""The files under ``examples/frameworks`` are short, close to plain training, and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "frameworks").glob("*.py"))


def test_there_is_one_for_each_framework() -> None:
    assert [path.stem.partition("_")[0] for path in FILES] == [
        "accelerate",
        "keras",
        "lightning",
        "transformers",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_short_and_differ_from_plain_training_in_five_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    ours = [line for line in lines if re.search(r"ntkmtl|[Bb]alance", line)]
    assert len(ours) <= 5


@pytest.mark.integration
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_run(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout), done.stdout
