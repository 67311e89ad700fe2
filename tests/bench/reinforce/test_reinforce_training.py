"""Training, stopping, going on, and what comes of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reinforce_toys import ToyWorld, make_toy, toy_recipe

from ntkmtl.bench import report
from ntkmtl.bench.compute.device import DeviceError
from ntkmtl.bench.reinforce import (
    RECIPES,
    VARIANTS,
    MultiTaskSAC,
    Replay,
    evaluate,
    recipe_named,
    save_curves,
    summarize,
    train,
    variant_named,
)
from ntkmtl.bench.reinforce.results import as_markdown, bootstrap, section
from ntkmtl.bench.reinforce.training import agent_for, settings_of
from ntkmtl.bench.runs import RunBusyError, RunConflictError, RunInterrupted
from ntkmtl.bench.runs.folder import run_lock


@pytest.fixture
def small_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents for the toy's three numbers and one action."""

    def made(*arguments: Any, **settings: Any) -> MultiTaskSAC:
        return agent_for(*arguments, **settings, observation=3, action=1)

    monkeypatch.setattr("ntkmtl.bench.reinforce.training.agent_for", made)


def parameters(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "agent.pt", weights_only=True))


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        # A method's memory may hold NaN for "nothing yet".
        return one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@pytest.mark.usefixtures("small_agents")
@pytest.mark.parametrize("name", ["mtl-sac", "ntkmtl", "moco", "famo", "pcgrad", "ntkmtl-sr"])
def test_a_run_that_was_stopped_ends_bit_equal(name: str, tmp_path: Path) -> None:
    recipe, row = toy_recipe(), variant_named(name)
    whole = train(recipe, row, 1, tmp_path / "whole", make_simulator=make_toy)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked in (13, 41)

    # At the end of an evaluation's interval, and within one.
    for expected in (20, 50):
        with pytest.raises(RunInterrupted, match=f"stopped after step {expected} of 60"):
            train(
                recipe,
                row,
                1,
                tmp_path / "parts",
                make_simulator=make_toy,
                should_stop=stop,
            )
        asked = expected
    parts = train(recipe, row, 1, tmp_path / "parts", make_simulator=make_toy)
    assert same(parameters(tmp_path / "whole"), parameters(tmp_path / "parts"))
    assert whole.result.test == parts.result.test
    assert [e.train_losses for e in whole.history] == [e.train_losses for e in parts.history]
    assert np.array_equal(whole.steps.weights, parts.steps.weights)
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    # Another seed is another run: the comparison above is of something.
    other = train(recipe, row, 2, tmp_path / "other", make_simulator=make_toy)
    assert not same(parameters(tmp_path / "whole"), parameters(other.path))


@pytest.mark.parametrize("name", ["mtl-sac", "ntkmtl"])
def test_a_stopped_run_of_the_real_simulator_ends_bit_equal(name: str, tmp_path: Path) -> None:
    recipe = toy_recipe(
        tasks=("reach", "drawer-close"),
        goals="random",
        scale_rewards=True,
        horizon=15,
        vector_steps=90,
        evaluate_every=30,
        evaluation_episodes=1,
    )
    row = variant_named(name)
    whole = train(recipe, row, 0, tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        # In the middle of an episode: the run goes on to its end, as a simulator in the middle of
        # one is not saved.
        nonlocal asked
        asked += 1
        return asked == 37

    with pytest.raises(RunInterrupted, match="stopped after step 45 of 90"):
        train(recipe, row, 0, tmp_path / "parts", should_stop=stop)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    parts = train(recipe, row, 0, tmp_path / "parts")
    assert same(parameters(tmp_path / "whole"), parameters(tmp_path / "parts"))
    assert [(e.val, e.train_losses) for e in whole.history] == [
        (e.val, e.train_losses) for e in parts.history
    ]
    assert np.array_equal(whole.steps.weights, parts.steps.weights)
    # What the checkpoint holds matters: another order of goals ends elsewhere.
    agent = state["agent"]["actor"]
    assert not same(agent, parameters(tmp_path / "parts")["actor"])
    assert state["replay"]["rewards"].shape == (2, 45)
    assert float(state["world"]["variance"].min()) != 1.0


@pytest.mark.usefixtures("small_agents")
def test_updates_begin_after_the_random_steps_and_may_catch_up(tmp_path: Path) -> None:
    row = variant_named("mtl-sac")
    plain = train(toy_recipe(), row, 0, tmp_path / "plain", make_simulator=make_toy)
    assert plain.result.steps == 60 - 8
    recipe = toy_recipe(catch_up=True, sampling="uniform")
    caught = train(recipe, row, 0, tmp_path / "caught", make_simulator=make_toy)
    assert caught.result.steps == 60


@pytest.mark.usefixtures("small_agents")
def test_methods_are_told_that_an_epoch_is_over(tmp_path: Path) -> None:
    """Otherwise DWA would stay the plain sum, and STCH the geometric mean of its warm-up."""
    recipe = toy_recipe(vector_steps=200)
    found = {}
    for name in ("mtl-sac", "dwa", "si", "stch"):
        run = train(recipe, variant_named(name), 0, tmp_path / name, make_simulator=make_toy)
        found[name] = parameters(run.path)["actor"], run.steps.weights
    assert not same(found["dwa"][0], found["mtl-sac"][0])
    assert not same(found["stch"][0], found["si"][0])
    weights = found["dwa"][1]
    assert (weights[:5] == 1).all(), "two epochs come before DWA knows anything"
    assert (weights[-1] != 1).any()


@pytest.mark.usefixtures("small_agents")
def test_a_single_task_agent_has_its_share_of_the_batch(tmp_path: Path) -> None:
    run = train(toy_recipe(), VARIANTS["stl"], 0, tmp_path, task="a", make_simulator=make_toy)
    assert run.config.recipe["batch_size"] == 4


@pytest.mark.usefixtures("small_agents")
def test_uniform_batches_are_as_large_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[int] = set()
    uniform = Replay.uniform

    def noted(self: Replay, size: int) -> Any:
        sizes.add(size)
        return uniform(self, size)

    monkeypatch.setattr(Replay, "uniform", noted)
    recipe = toy_recipe(sampling="uniform", batch_size=13)
    train(recipe, variant_named("mtl-sac"), 0, tmp_path, make_simulator=make_toy)
    assert sizes == {13}


def test_a_device_that_is_not_there_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"one of auto, cpu, cuda\. Found 'tpu'"):
        train(toy_recipe(), variant_named("mtl-sac"), 0, tmp_path / "run", device="tpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_agents")
def test_the_policy_learns_the_toy(tmp_path: Path) -> None:
    recipe = toy_recipe(
        vector_steps=800, evaluate_every=200, batch_size=96, hidden=(32, 32), capacity=3000
    )
    # Five times the rate: a toy is to be learned in seconds.
    recipe = type(recipe)(**{**vars(recipe), "learning_rate": 3e-3, "random_steps": 100})
    run = train(recipe, variant_named("ntkmtl"), 0, tmp_path, make_simulator=make_toy)
    assert min(run.result.test) == 100.0


def test_evaluation_counts_episodes_solved_at_any_step() -> None:
    world = ToyWorld(("a", "b"), seed=0, horizon=10)
    # Goals begin at 0.9, 0.8, ..., 0.2, and 0.15 a step to the left leads all past -0.5, the first
    # four past 0.5; the fifth begins there, which no step led to.
    assert evaluate(lambda seen: torch.full((2, 1), -0.5), world, 8) == (100.0, 50.0)


@pytest.mark.usefixtures("small_agents")
def test_tables_and_reports_show_the_runs(tmp_path: Path) -> None:
    from ntkmtl.bench.runs import run_folder

    recipe = toy_recipe()
    for seed in (0, 1):
        for name in ("mtl-sac", "ntkmtl"):
            folder = run_folder(tmp_path, "mt10", name, seed)
            train(recipe, variant_named(name), seed, folder, make_simulator=make_toy)
    for task in recipe.tasks:
        folder = run_folder(tmp_path, "mt10", "stl", 0, task)
        train(recipe, VARIANTS["stl"], 0, folder, task=task, make_simulator=make_toy)
    folder = run_folder(tmp_path, "mt10", "stl", 1, "a")
    train(recipe, VARIANTS["stl"], 1, folder, task="a", make_simulator=make_toy)

    found = {entry.variant: entry for entry in summarize(tmp_path)}
    assert list(found) == ["stl", "mtl-sac", "ntkmtl"]
    # Seed 1 of the single-task agents is not complete.
    assert found["stl"].seeds == (0,)
    assert found["ntkmtl"].seeds == (0, 1)
    assert found["ntkmtl"].curves.shape == (2, 3, 3)
    assert found["ntkmtl"].steps == (20, 40, 60)
    history = json.loads((tmp_path / "mt10/ntkmtl/seed-1/history.json").read_text())
    assert found["ntkmtl"].curves[1, 2].tolist() == history["epochs"][2]["val"]
    text = as_markdown(list(found.values()))
    assert "| stl | 1 |" in text
    assert len(text.splitlines()) == 5
    save_curves(list(found.values()), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "ntkmtl" in report.render(report.build_table(tmp_path), "text")
    page = report.write_html(tmp_path, tmp_path / "report.html")
    assert page.stat().st_size > 10_000
    assert "Not shown" not in page.read_text()
    # A folder of two recipes, as another version may have made it.
    other = run_folder(tmp_path, "mt10", "mtl-sac", 2)
    train(toy_recipe(batch_size=18), variant_named("mtl-sac"), 2, other, make_simulator=make_toy)
    with pytest.raises(ValueError, match="another recipe"):
        summarize(tmp_path)
    assert "another recipe" in section(tmp_path)["notes"][0]


def test_aggregates_are_those_of_their_names() -> None:
    from ntkmtl.bench.reinforce import Success

    curves = np.array([[[0.0, 40.0], [60.0, 100.0]], [[80.0, 100.0], [0.0, 20.0]]])
    entry = Success("x", (0, 1), ("a", "b"), (10, 20), curves, True)
    # Means over tasks: 20, 80 and 90, 10; over seeds: 55, 45.
    assert entry.best == 55
    assert entry.final == 45
    assert entry.per_task == (30.0, 60.0)
    # The middle two of 0, 20, 60, 100.
    assert entry.final_interquartile_mean == 40
    assert entry.interval() == (10.0, 80.0)
    # Whole seeds are drawn: 0, 20, 60, 100 twice over, or one seed's four values doubled.
    assert entry.interquartile_interval() == (10.0, 80.0)
    # A third of two evaluations is less than one: the last, 80 and 10.
    assert entry.late.tolist() == [80.0, 10.0]
    assert entry.late_stderr == pytest.approx(35)
    long = Success("x", (0, 1), ("a",), (1, 2, 3, 4, 5, 6), np.arange(12.0).reshape(2, 6, 1), True)
    assert long.late.tolist() == [4.5, 10.5]
    # The two seeds at the first evaluation, 20 and 90.
    assert entry.best_stderr == pytest.approx(35)
    assert bootstrap(np.array([3.0]), np.mean) is None
    low, high = bootstrap(np.arange(400.0), np.mean, draws=4000) or (0.0, 0.0)
    # The normal interval of a mean over 400.
    half = 1.96 * np.arange(400.0).std() / 20
    assert low == pytest.approx(199.5 - half, abs=1.5)
    assert high == pytest.approx(199.5 + half, abs=1.5)


@pytest.mark.usefixtures("small_agents")
def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(toy_recipe(), variant_named("mtl-sac"), 0, tmp_path, make_simulator=make_toy)
    other = toy_recipe(hidden=(8, 9))
    with pytest.raises(RunConflictError, match=r"recipe.learning_rate|problem_options.hidden"):
        train(other, variant_named("mtl-sac"), 0, tmp_path, make_simulator=make_toy)
    again = train(
        toy_recipe(hidden=(8, 9)),
        variant_named("mtl-sac"),
        0,
        tmp_path,
        make_simulator=make_toy,
        overwrite=True,
    )
    assert again.config.problem_options["hidden"] == [8, 9]


@pytest.mark.usefixtures("small_agents")
def test_a_damaged_checkpoint_starts_again_and_says_so(tmp_path: Path) -> None:
    recipe, row = toy_recipe(), variant_named("mtl-sac")
    with pytest.raises(RunInterrupted):
        train(recipe, row, 0, tmp_path, make_simulator=make_toy, should_stop=lambda: True)
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.warns(RuntimeWarning, match="starts again from its beginning"):
        run = train(recipe, row, 0, tmp_path, make_simulator=make_toy)
    clean = train(recipe, row, 0, tmp_path / "clean", make_simulator=make_toy)
    assert run.result.test == clean.result.test
    assert same(parameters(tmp_path), parameters(tmp_path / "clean"))


@pytest.mark.usefixtures("small_agents")
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    recipe, row = toy_recipe(), variant_named("ntkmtl")
    clean = train(recipe, row, 0, tmp_path / "clean", make_simulator=make_toy)
    for _ in range(2):
        with pytest.raises(RunInterrupted):
            train(recipe, row, 0, tmp_path, make_simulator=make_toy, should_stop=lambda: True)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match=r"the previous one, .*checkpoint\.previous\.pt"):
        run = train(recipe, row, 0, tmp_path, make_simulator=make_toy)
    assert run.result.test == clean.result.test
    assert same(parameters(tmp_path), parameters(tmp_path / "clean"))
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.usefixtures("small_agents")
def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkmtl.bench.runs.folder.PATIENCE", 0.1)
    with run_lock(tmp_path), pytest.raises(RunBusyError, match="another process is training"):
        train(toy_recipe(), variant_named("mtl-sac"), 0, tmp_path, make_simulator=make_toy)
    assert list(tmp_path.iterdir()) == []


def test_recipes_and_rows_are_as_published() -> None:
    for recipe in RECIPES.values():
        recipe.check()
    paper = recipe_named("paper")
    assert (paper.batch_size, paper.capacity, paper.hidden) == (1280, 1_000_000, (400, 400, 400))
    assert (paper.sampling, paper.encoding, paper.goals) == ("uniform", "none", "fixed")
    assert (paper.horizon, paper.random_steps, paper.catch_up) == (150, 1500, True)
    assert (paper.gamma, paper.tau, paper.initial_temperature) == (0.99, 0.005, 1.0)
    assert paper.scale_rewards
    assert 2_000_000 <= paper.vector_steps <= 2_010_000
    assert paper.vector_steps // paper.evaluate_every == 67
    assert settings_of(paper, VARIANTS["famo"])["options"] == {"gamma": 0.01}
    assert settings_of(recipe_named("cpu-mt4"), VARIANTS["famo"])["options"] == {}
    assert dict(VARIANTS["cagrad"].options) == {"c": 0.9}
    assert dict(VARIANTS["fairgrad"].options) == {"alpha": 2.0}
    from ntkmtl.bench import paper as published

    assert list(VARIANTS)[:-1] == [row.method for row in published.table(4).rows]
    assert settings_of(paper, VARIANTS["ntkmtl"])["temperature"] == "shared"
    assert settings_of(paper, VARIANTS["mtl-sac-te"])["encoding"] == "learned"
    assert settings_of(recipe_named("cpu-mt4"), VARIANTS["ntkmtl"])["every"] == 10
    assert settings_of(recipe_named("cpu-mt4"), VARIANTS["moco"])["every"] == 1
    small = {"observation": 3, "action": 1, "hidden": (4,)}
    for row in VARIANTS.values():
        agent = agent_for(paper, row, 1 if row.single_task else 10, **small)
        assert agent.method == row.method
    with pytest.raises(ValueError, match="did you mean 'ntkmtl'"):
        variant_named("ntkmlt")
    with pytest.raises(ValueError, match="consmtl does not suit"):
        variant_named("consmtl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_every": 15}, "evaluate_every must be a multiple of the horizon"),
        ({"vector_steps": 50}, "vector_steps must be a multiple of evaluate_every"),
        ({"batch_size": 13}, "batch_size must be a multiple of the 3 tasks"),
        ({"goals": "fixed"}, "repeats one episode"),
        ({"random_steps": 60}, r"random_steps must be in 0..59"),
        ({"every": 0}, "every must be at least 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_recipe(**changes).check()


def test_a_single_task_row_needs_its_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stl is one agent per task: give task"):
        train(toy_recipe(), VARIANTS["stl"], 0, tmp_path, make_simulator=make_toy)
    with pytest.raises(ValueError, match="task must be one of a, b, c, found 'd'"):
        train(toy_recipe(), VARIANTS["stl"], 0, tmp_path, task="d", make_simulator=make_toy)
