from __future__ import annotations

from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[1] / "training"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each command in a folder of its own, with a cache of its own and the toy problems."""
    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(TRAINING))
    monkeypatch.chdir(tmp_path)
