"""Weightings of the user in multi-task SAC: by file, compared, resumed, refused where unsuited."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reinforce_toys import make_toy, toy_recipe
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.reinforce import MultiTaskSAC, train, variant_named
from ntkmtl.bench.reinforce.comparison import AgentComparison
from ntkmtl.bench.reinforce.training import agent_for
from ntkmtl.bench.runs import RunConflictError, RunInterrupted, load_run

SOURCE = """
import torch
from ntkmtl.weighting import GramianWeighting, LossWeighting


class Inverse(GramianWeighting):
    \"\"\"Weighs a task by one over its gradient's length.\"\"\"

    balancer_defaults = {"source": "exact"}

    def of_gramian(self, gramian):
        lengths = gramian.diagonal().sqrt().clamp_min(1e-12)
        return lengths.mean() / lengths


class Growing(LossWeighting):
    def __init__(self):
        self._steps = 0

    def of_losses(self, losses, tasks):
        self._steps += 1
        return (1 + losses.abs()) / self._steps

    def _get_state(self):
        return {"steps": self._steps}

    def _set_state(self, state):
        self._steps = state["steps"]


class Scored(LossWeighting):
    needs_scores = True

    def of_losses(self, losses, tasks):
        return torch.ones_like(losses)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "agent_methods.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def made(*arguments: Any, **settings: Any) -> MultiTaskSAC:
        return agent_for(*arguments, **settings, observation=3, action=1)

    monkeypatch.setattr("ntkmtl.bench.reinforce.training.agent_for", made)
    yield path
    sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("name", ["Inverse", "Growing"])
def test_an_agent_is_trained_and_resumed_with_a_method_of_the_user(
    file: Path, tmp_path: Path, name: str
) -> None:
    variant = variant_named(f"{file}:{name}")
    assert (variant.name, variant.method) == (f"agent_methods:{name}",) * 2
    whole = train(toy_recipe(), variant, 0, tmp_path / "whole", make_simulator=make_toy)
    assert whole.config.method == f"agent_methods:{name}"
    assert len(whole.config.method_source) == 12
    calls = iter(range(1000))
    with pytest.raises(RunInterrupted):
        train(
            toy_recipe(),
            variant,
            0,
            tmp_path / "parts",
            make_simulator=make_toy,
            should_stop=lambda: next(calls) > 2,
        )
    again = train(toy_recipe(), variant, 0, tmp_path / "parts", make_simulator=make_toy)
    assert [epoch.val for epoch in again.history] == [epoch.val for epoch in whole.history]
    assert (again.steps.weights == whole.steps.weights).all()
    plain = train(
        toy_recipe(), variant_named("mtl-sac"), 0, tmp_path / "plain", make_simulator=make_toy
    )
    assert (
        plain.steps.weights.shape != whole.steps.weights.shape
        or (plain.steps.weights != whole.steps.weights).any()
    )


def test_runs_of_another_source_are_told_apart(file: Path, tmp_path: Path) -> None:
    reference = f"{file}:Growing"
    train(toy_recipe(), variant_named(reference), 0, tmp_path / "run", make_simulator=make_toy)
    sys.modules.pop(file.stem)
    file.write_text(SOURCE.replace("1 + losses", "2 + losses"), encoding="utf-8")
    with pytest.raises(RunConflictError, match="method_source"):
        train(toy_recipe(), variant_named(reference), 0, tmp_path / "run", make_simulator=make_toy)


def test_a_comparison_names_each_method_once(file: Path, tmp_path: Path) -> None:
    asked = AgentComparison.asked(
        [f"{file}:Inverse", "ls", "agent_methods:Inverse"], [0], tmp_path, jobs=1
    )
    assert asked.methods == ("agent_methods:Inverse", "mtl-sac")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("agent_methods.py:Scored", "does not suit multi-task SAC: it needs scores"),
        ("agent_methods.py:Missing", "Missing"),
        ("nowhere.py:Inverse", "no such file"),
        ("nowhere.module:Inverse", "No module named"),
    ],
)
def test_methods_that_cannot_be_used_are_refused_before_anything_is_made(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "mt10", "--methods", name, "--out", "runs"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_trains_a_method_of_the_user(file: Path, tmp_path: Path) -> None:
    """In worker processes, on Meta-World itself."""
    import subprocess

    command = [
        *(sys.executable, "-m", "ntkmtl", "compare", "mt10", "--recipe", "cpu-mt4"),
        *("--methods", "./agent_methods.py:Inverse,ls", "--seeds", "1", "--jobs", "2"),
        *("--problem-option", "vector_steps=3000", "--problem-option", "frames=false"),
        *("--out", "runs"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = load_run(next((tmp_path / "runs").rglob("*agent_methods*/seed-0/result.json")).parent)
    assert run.config.method == "agent_methods:Inverse"
    assert "agent_methods:Inverse" in done.stdout
