"""Makes the faults of ``benchmarks/faults`` importable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parents[3] / "benchmarks")
sys.path.insert(0, BENCHMARKS)


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; processes that are started find the faults."""
    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{BENCHMARKS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
