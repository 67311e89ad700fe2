"""The files under ``examples/fields`` run where their packages are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "fields"
PACKAGES = {
    "deepxde_burgers": "deepxde",
    "mace_energy_forces": "mace",
    "neuralop_three_losses": "neuralop",
    "nequip_energy_forces": "nequip",
    "pina_poisson": "pina",
}


def test_each_file_has_a_package() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PACKAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    package = PACKAGES[name]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; see docs/forces-and-equations.md")
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout), done.stdout
