from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache of baselines."""
    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a subprocess that can import the toy problem."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "NTKMTL_CACHE": str(tmp_path / "cache"),
        "COLUMNS": "200",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
