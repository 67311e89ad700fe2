"""The command ``ntkmtl reinforce``, the sweep below it, and the benchmark of updates."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reinforce_toys import make_toy, toy_recipe
from typer.testing import CliRunner

from ntkmtl import _reinforce_command  # noqa: F401  (adds its command)
from ntkmtl._commands import app
from ntkmtl.reinforce import MultiTaskSAC, compare
from ntkmtl.reinforce import training as training_module
from ntkmtl.reinforce.sweep import jobs_of


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on toys: three tasks without a simulator."""
    agent_for, train = training_module.agent_for, training_module.train

    def made(*arguments: Any, **settings: Any) -> MultiTaskSAC:
        return agent_for(*arguments, **settings, observation=3, action=1)

    def toy_train(*arguments: Any, **settings: Any) -> Any:
        return train(*arguments, **settings, make_simulator=make_toy)

    monkeypatch.setattr("ntkmtl.reinforce.training.agent_for", made)
    monkeypatch.setattr("ntkmtl.reinforce.sweep.train", toy_train)
    monkeypatch.setattr("ntkmtl.reinforce.recipe_named", lambda name: toy_recipe())


@pytest.mark.usefixtures("toys")
def test_the_command_trains_shows_and_trains_nothing_twice(tmp_path: Path) -> None:
    call = ["reinforce", "--methods", "stl,mtl-sac,ntkmtl", "--seeds", "2", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0, first.output
    assert "| ntkmtl | 2 |" in first.output
    assert "not comparable with Table 4" in first.output
    # Three single-task agents and two others, for each seed.
    assert "0 of 10 runs are complete" in first.output
    assert (tmp_path / "success.png").exists()
    again = CliRunner().invoke(app, [*call, "--json"])
    assert "10 of 10 runs are complete" in again.stderr
    rows = json.loads(again.stdout)["rows"]
    assert [row["row"] for row in rows] == ["stl", "mtl-sac", "ntkmtl"]
    assert rows[0]["seeds"] == [0, 1]
    assert set(rows[0]["per_task"]) == {"a", "b", "c"}


def test_the_command_refuses_what_there_is_not(tmp_path: Path) -> None:
    for arguments, message in (
        (["--recipe", "gpu"], "unknown recipe 'gpu'; there are paper, cpu-mt10, cpu-mt4"),
        (["--methods", "ntkmlt"], "did you mean 'ntkmtl'"),
        (["--vector-steps", "1000"], "vector_steps must be a multiple of evaluate_every"),
        (["--no-train"], "holds no finished runs"),
    ):
        found = CliRunner().invoke(app, ["reinforce", "--out", str(tmp_path), *arguments])
        assert found.exit_code == 2
        assert message in found.output


@pytest.mark.usefixtures("toys")
def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ntkmtl.reinforce import sweep

    whole = sweep.train

    def breaks(recipe: Any, row: Any, *rest: Any, **more: Any) -> Any:
        if row.name == "pcgrad":
            raise FloatingPointError("the loss of task a is nan")
        return whole(recipe, row, *rest, **more)

    monkeypatch.setattr(sweep, "train", breaks)
    said: list[str] = []
    failed = compare(toy_recipe(), ["pcgrad", "mtl-sac"], [0], tmp_path, say=said.append)
    assert [(job.row, why) for job, why in failed] == [
        ("pcgrad", "FloatingPointError: the loss of task a is nan")
    ]
    assert (tmp_path / "mt10" / "mtl-sac" / "seed-0" / "result.json").exists()
    assert any("mtl-sac seed 0: success" in line for line in said)


def test_all_of_one_seed_comes_first(tmp_path: Path) -> None:
    jobs = jobs_of(toy_recipe(), ["stl", "ntkmtl"], [4, 2], tmp_path)
    assert [job.label for job in jobs] == [
        f"{name} seed {seed}" for seed in (4, 2) for name in ("stl a", "stl b", "stl c", "ntkmtl")
    ]
    with pytest.raises(ValueError, match="at least one seed is needed"):
        jobs_of(toy_recipe(), ["ntkmtl"], [], tmp_path)


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "update_cost_rl.py"
    found = importlib.util.spec_from_file_location("update_cost_rl", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_benchmark_measures_every_row_beside_plain_sac(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--rows ntkmtl,ntkmtl-sr,moco --every 1,2 --tasks 3 --per-task 4 --hidden 8 --rounds 2"
    _benchmark().main([*small.split(), "--json", str(tmp_path / "cost.json")])
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [(row["row"], row["every"]) for row in found["rows"]] == [
        ("mtl-sac", 1),
        ("ntkmtl", 1),
        ("ntkmtl", 2),
        ("ntkmtl-sr", 1),
        ("ntkmtl-sr", 2),
        ("moco", 1),
    ]
    assert found["rows"][0]["ratio"] == 1.0
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    assert "| mtl-sac | 1 |" in capsys.readouterr().out
