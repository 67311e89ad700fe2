"""Threads of a run: what the user says, what the environment says, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ntkmtl.bench.compute.environment import cores, default_threads
from ntkmtl.bench.training import Comparison, SweepError, compare, load_runs, plan


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": "toy_problem:Toy",
        "methods": ["ls"],
        "seeds": [0],
        "out": out,
        "epochs": 1,
        "single_task_baselines": False,
    }
    return Comparison(**{**values, **changes})


def threads(out: Path) -> set[int]:
    return {run.config.hardware["threads"] for run in load_runs(out)[0]}


@pytest.mark.parametrize(
    ("said", "jobs", "expected"),
    [("3", 1, 3), ("3", 4, 3), ("2,4", 1, 2), ("", 1, None), ("", 2, 1), ("", 64, 1)],
)
def test_the_default(
    monkeypatch: pytest.MonkeyPatch, said: str, jobs: int, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert default_threads(jobs) == (cores() if expected is None else expected)


@pytest.mark.parametrize("said", ["many", "0", "-1", "1.5"])
def test_a_variable_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    with pytest.raises(SweepError, match=f"positive whole number, found '{said}'"):
        compare(ask(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert plan(ask(tmp_path / "runs", threads=2)).jobs[0].spec.threads == 2


@pytest.mark.parametrize(("asked", "said", "expected"), [(None, "2", 2), (3, "2", 3), (3, "", 3)])
def test_the_number_used_is_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    said: str,
    expected: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert compare(ask(tmp_path, threads=asked)).trained == 1
    assert threads(tmp_path) == {expected}


def test_runs_side_by_side_have_one_thread_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert compare(ask(tmp_path, jobs=2, seeds=[0, 1])).trained == 2
    assert threads(tmp_path) == {1}
    with pytest.raises(SweepError, match="threads must be at least 1, found 0"):
        compare(ask(tmp_path, threads=0))
