"""The study that the README starts, shortened to seconds."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import msgspec
import pytest

from ntkmtl.bench.study import judge, read_plan, run_study, write_page
from ntkmtl.bench.study.part import Trainer
from ntkmtl.bench.study.results import read_results

ROOT = Path(__file__).parents[3]


def test_the_small_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study_tables.py", "study-data"])
    runpy.run_path(str(ROOT / "examples/study_tables.py"), run_name="__main__")
    plan = read_plan(ROOT / "examples/study-small.toml")
    assert [problem.name for problem in plan.problem] == ["qm9-mini", "star98", "anes96"]
    assert set(plan.diagram) <= set(plan.methods)
    short = [msgspec.structs.replace(problem, epochs=1) for problem in plan.problem]
    plan = msgspec.structs.replace(
        plan, problem=short, methods=["si", "fixed"], trials=1, seeds=1, diagram=[]
    )
    outcome = run_study(plan, tmp_path / "out", Trainer(threads=1))
    assert outcome.failures == []
    found = judge(read_results(tmp_path / "out"))
    assert [problem.tasks for problem in found.problems if problem.problem != "qm9-mini"] == [
        ["selfLR", "PID", "vote"],
        ["NABOVE", "NBELOW"],
    ]
    assert found.ranking.methods == ["ls", "fixed", "si"]
    write_page(found, tmp_path / "study.html")


def test_the_large_study_is_a_plan() -> None:
    plan = read_plan(ROOT / "docs/study/large.toml")
    sources = {problem.source or problem.name for problem in plan.problem}
    assert len(sources) == len(plan.problem) - 1, "qm9-mini and qm9 are one"
    assert len(plan.diagram) == 8
