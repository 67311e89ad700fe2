"""``ntkmtl compare mt10``, the sweep below it, and the benchmark of updates."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reinforce_toys import make_toy, toy_recipe
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.jobs.engine import run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import PlainReporter, Reporter
from ntkmtl.bench.paper._reinforce import PUBLISHED
from ntkmtl.bench.reinforce import MultiTaskSAC, ReinforceRecipe, compare, recipe_named, summarize
from ntkmtl.bench.reinforce import training as training_module
from ntkmtl.bench.reinforce.comparison import jobs_of
from ntkmtl.bench.runs import RunBusyError, load_run, load_runs
from ntkmtl.bench.runs.folder import sweep_lock

NO_FRAMES = ["--problem-option", "frames=false"]
_agent_for, _train = training_module.agent_for, training_module.train


def small_agent_for(*arguments: Any, **settings: Any) -> MultiTaskSAC:
    return _agent_for(*arguments, **settings, observation=3, action=1)


def toy_train(*arguments: Any, **settings: Any) -> Any:
    return _train(*arguments, **settings, make_simulator=make_toy)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on toys: three tasks without a simulator."""
    monkeypatch.setattr("ntkmtl.bench.reinforce.training.agent_for", small_agent_for)
    monkeypatch.setattr("ntkmtl.bench.reinforce.comparison.train", toy_train)
    monkeypatch.setattr("ntkmtl.bench.reinforce.comparison.recipe_named", lambda name: toy_recipe())


@pytest.mark.usefixtures("toys")
def test_the_command_trains_shows_and_trains_nothing_twice(tmp_path: Path) -> None:
    call = ["compare", "mt10", "--methods", "stl,mtl-sac,ntkmtl", "--seeds", "2", "--jobs", "1"]
    call += ["--out", str(tmp_path), *NO_FRAMES]
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
    page = (tmp_path / "report.html").read_text()
    assert "60 vector steps, " in page
    assert "episodes per evaluation and task" in page
    assert "0 test" not in page
    assert "relative to mtl-sac" in page
    assert "LS is not among" not in page
    assert "Success over training" in page
    assert "data:image/png;base64," in page
    # The two aggregates stand in the page as in the table.
    number = f"{rows[2]['maximum_over_time']:.1f} ± {rows[2]['maximum_over_time_stderr']:.1f}"
    assert number in page
    assert number in first.output


@pytest.mark.usefixtures("toys")
def test_compiled_agents_are_runs_of_their_own(tmp_path: Path) -> None:
    call = ["compare", "mt10", "--methods", "mtl-sac", "--seeds", "1", "--jobs", "1"]
    call += ["--out", str(tmp_path), *NO_FRAMES]
    found = CliRunner().invoke(app, [*call, "--compile"])
    assert found.exit_code == 0, found.output
    (run,) = load_runs(tmp_path / "mt10")[0]
    assert run.config.problem_options["compile"] is True
    # Rounding differs, so the two do not pass for one another.
    other = CliRunner().invoke(app, call)
    assert other.exit_code != 0
    assert "compile" in other.output


def test_runs_of_another_recipe_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkmtl.bench.reinforce.training.agent_for", small_agent_for)
    monkeypatch.setattr("ntkmtl.bench.reinforce.comparison.train", toy_train)
    compare(toy_recipe(), ["mtl-sac"], [0], tmp_path)
    other = toy_recipe(vector_steps=40)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"by another recipe .*vector_steps is 60, asked for"):
            compare(other, ["famo", "stl"], [0], tmp_path, overwrite=overwrite)
    assert not (tmp_path / "mt10/famo").exists()
    outcome = compare(other, ["famo", "mtl-sac"], [0], tmp_path, overwrite=True)
    assert len(outcome.finished) == 2
    assert [entry.variant for entry in summarize(tmp_path)] == ["mtl-sac", "famo"]


@pytest.mark.usefixtures("toys")
def test_compare_mt10_takes_what_its_recipe_leaves_open(tmp_path: Path) -> None:
    call = ["compare", "mt10", "--methods", "ls,ntkmtl", "--seeds", "1", "--jobs", "1", *NO_FRAMES]
    found = CliRunner().invoke(app, [*call, "--out", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    # The plain sum is the row mtl-sac.
    assert [row["row"] for row in json.loads(found.stdout)["rows"]] == ["mtl-sac", "ntkmtl"]
    for arguments, message in (
        (["--epochs", "3"], "--epochs is not for mt10"),
        (["--problem-option", "goals=x"], "mt10 has no option 'goals'; it takes: recipe"),
        (["--problem-option", "vector_steps=many"], "must be a whole number, found 'many'"),
        (["--set", "famo.gamma=1"], "--set is not for mt10"),
        (["--stl"], "--stl is not for mt10"),
    ):
        refused = CliRunner().invoke(app, [*call, *arguments])
        assert refused.exit_code == 2
        assert message in refused.output


@pytest.mark.usefixtures("toys")
def test_table_4_stands_beside_what_was_measured(tmp_path: Path) -> None:
    call = ["paper", "run", "table4", "--recipe", "toy", "--methods", "mtl-sac,ntkmtl,imtl-g"]
    call += ["--seeds", "2", "--jobs", "1", "--out", str(tmp_path)]
    text = CliRunner().invoke(app, call)
    assert text.exit_code == 0, text.output
    for said in (
        "Success rate ↑",
        "0.96 ±0.03",
        "simulator: Meta-World V3 tasks with V2 rewards: not comparable here",
        "seeds: 2 here, 10 published",
        "hidden layers: 8 x 8 here, 400 x 400 x 400 published †",
        "batch size: 12 here, 1,280 published",
        "heads of mh-sac: one layer here, two layers of 400, in actor and critics published †",
        "Reduced recipe",
        "published ntkmtl < mtl-sac",
    ):
        assert said in text.stdout, said
    found = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    rows = {(row["method"], row["source"]): row["numbers"] for row in found["rows"]}
    # IMTL-G is not in the published table.
    assert ("imtl-g", "published") not in rows
    assert rows["ntkmtl", "published"]["success_rate"]["value"] == 0.96
    result = summarize(tmp_path / "mt10-toy")
    by_row = {one.variant: one for one in result}
    measured = rows["ntkmtl", "measured"]
    assert measured["success_rate"]["value"] == pytest.approx(by_row["ntkmtl"].best / 100)
    assert measured["final"]["value"] == pytest.approx(by_row["ntkmtl"].final / 100)
    assert {one["setting"] for one in found["differences"]} >= {"simulator", "tasks", "seeds"}
    alone = CliRunner().invoke(app, [*call, "--methods", "ntkmtl", "--json"])
    assert {row["method"] for row in json.loads(alone.stdout)["rows"]} == {"ntkmtl"}


def test_every_setting_of_a_recipe_is_held_against_the_published_one() -> None:
    # A new setting must say what the published runs have.
    own = {"name", "description", "reduced", "tasks"}
    fields = {field.name for field in dataclasses.fields(ReinforceRecipe)} - own
    assert fields == set(PUBLISHED) - {"tasks", "simulator", "seeds"}
    paper = recipe_named("paper")
    differing = {name for name in fields if getattr(paper, name) != PUBLISHED[name][1]}
    # 10,000 steps longer, to end with an evaluation.
    assert differing == {"vector_steps"}


def test_the_command_refuses_what_there_is_not(tmp_path: Path) -> None:
    for arguments, message in (
        (["--recipe", "gpu"], "unknown recipe 'gpu'; there are paper, cpu-mt10, cpu-mt4"),
        (["--methods", "ntkmlt"], "did you mean 'ntkmtl'"),
        (["--seed-list", "1,x"], "--seed-list takes whole numbers"),
        (["--problem-option", "vector_steps=1000"], "must be a multiple of evaluate_every"),
    ):
        call = ["compare", "mt10", "--methods", "ls", "--out", str(tmp_path), *arguments]
        found = CliRunner().invoke(app, call)
        assert found.exit_code == 2
        assert message in found.output


@pytest.mark.usefixtures("toys")
def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ntkmtl.bench.reinforce import comparison

    whole = comparison.train

    def breaks(recipe: Any, row: Any, *rest: Any, **more: Any) -> Any:
        if row.name == "pcgrad":
            raise FloatingPointError("the loss of task a is nan")
        return whole(recipe, row, *rest, **more)

    monkeypatch.setattr(comparison, "train", breaks)
    said = StringIO()
    reporter = PlainReporter(said, every=0.0)
    found = compare(toy_recipe(), ["pcgrad", "mtl-sac"], [0], tmp_path, reporter=reporter)
    assert [(one.label, one.error, one.message) for one in found.failures] == [
        ("pcgrad seed 0", "FloatingPointError", "the loss of task a is nan")
    ]
    assert [job.variant for job in found.finished] == ["mtl-sac"]
    assert not found.interrupted
    folder = tmp_path / "mt10"
    assert (folder / "mtl-sac" / "seed-0" / "result.json").exists()
    failure = json.loads((folder / "pcgrad" / "seed-0" / "failure.json").read_text())
    assert failure["error"] == "FloatingPointError"
    assert "0 of 2 runs are complete" in said.getvalue()
    assert "mtl-sac seed 0: done" in said.getvalue()


@pytest.mark.usefixtures("toys")
def test_the_success_so_far_is_shown(tmp_path: Path) -> None:
    told: list[str] = []

    class Listener(Reporter):
        def run_note(self, run: int, words: str) -> None:
            told.append(words)

    (job,) = jobs_of(toy_recipe(), ["mtl-sac"], [0], tmp_path)
    with LocalEngine().start(tmp_path, print) as runner:
        assert run_jobs([job], runner, Listener()).finished == (job,)
    final = load_run(job.folder).result.test
    assert told[-1] == f"success {sum(final) / len(final):.1f} %"


@pytest.mark.usefixtures("toys")
def test_a_stopped_comparison_goes_on(tmp_path: Path) -> None:
    class Stopper(Reporter):
        def run_started(self, run: int, label: str, steps: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    first = compare(toy_recipe(), ["mtl-sac"], [0, 1], tmp_path, reporter=Stopper())
    assert first.interrupted
    assert first.finished == ()
    again = compare(toy_recipe(), ["mtl-sac"], [0, 1], tmp_path)
    assert not again.interrupted
    assert len(again.finished) == 2
    with (
        sweep_lock(tmp_path),
        pytest.raises(RunBusyError, match="another process is working in"),
    ):
        compare(toy_recipe(), ["mtl-sac"], [0], tmp_path)


def test_all_of_one_seed_comes_first(tmp_path: Path) -> None:
    jobs = jobs_of(toy_recipe(), ["stl", "ntkmtl"], [4, 2], tmp_path)
    assert [job.label for job in jobs] == [
        f"{name} seed {seed}" for seed in (4, 2) for name in ("stl a", "stl b", "stl c", "ntkmtl")
    ]
    with pytest.raises(ValueError, match="at least one seed is needed"):
        jobs_of(toy_recipe(), ["ntkmtl"], [], tmp_path)


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "update_cost_rl.py"
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
