from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The toy problem and its child processes serve the tests of several folders.
sys.path.insert(0, str(Path(__file__).parent / "training"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache of baselines, nor one in a folder of runs."""
    if "NTKMTL_CACHE" not in os.environ:
        monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path_factory.mktemp("cache")))
