"""The same search for every method: `ntkmtl tune`."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import start, wait_for_step
from toy_problem import Toy
from tuning_children import tune_two
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.report import build_table
from ntkmtl.bench.search import Search, parameters_of, tune
from ntkmtl.bench.training import (
    Comparison,
    Run,
    RunSpec,
    SweepError,
    compare,
    load_run,
    load_runs,
    train_spec,
)
from ntkmtl.errors import NonFiniteError

TOY = "toy_problem:Toy"


class Notes(Reporter):
    def __init__(self) -> None:
        self.labels: list[str] = []
        self.numbers: list[int] = []

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.labels.append(label)
        self.numbers.append(run)


def ask(out: Path, trials: int = 3, seed: int = 1000, **changes: Any) -> Search:
    epochs = changes.pop("trial_epochs", None)
    values: dict[str, Any] = {
        "problem": TOY,
        "methods": ["ls", "cagrad"],
        "seeds": [0, 1],
        "out": out,
        "epochs": 2,
    }
    return Search(Comparison(**{**values, **changes}), trials, seed, epochs)


def trials(out: Path, method: str) -> list[dict[str, Any]]:
    places = sorted((out / "toy" / method / "tuning").glob("trial-*/trial.json"))
    return [json.loads(place.read_text()) for place in places]


def best(out: Path, method: str) -> dict[str, Any]:
    return json.loads((out / "toy" / method / "tuning" / "best.json").read_text())


def value_by_hand(out: Path, method: str, number: int) -> float:
    """Delta-m on the validation split against the single-task networks of the trials' seed."""
    run = load_run(out / "toy" / method / f"tuning/trial-{number:04d}")
    single = [
        load_run(out / "toy/stl/tuning/toy/stl/seed-1000" / task).result.val[0] for task in "abc"
    ]
    drops = [
        100 * sign * (value - base) / base
        for sign, value, base in zip((1, 1, -1), run.result.val, single, strict=True)
    ]
    return statistics.fmean(drops)


def without_times(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**trial, "wall_seconds": 0} for trial in found]


# --------------------------------------------------------------------------- the ranges


def test_what_is_searched() -> None:
    recipe = replace(Toy.recipe, learning_rate=0.02)
    rate, *weights = parameters_of("fixed", ["a", "b"], recipe)
    assert (rate.low, rate.start, rate.high, rate.log) == (0.002, 0.02, 0.2, True)
    assert [p.name for p in weights] == ["weights.a", "weights.b"]
    assert [p.name for p in parameters_of("ls", ["a"], recipe)] == ["learning_rate"]


# --------------------------------------------------------------------------- a whole tuning


def test_every_method_has_as_many_trials_and_validation_chooses(tmp_path: Path) -> None:
    made: list[Notes] = []

    def reporter() -> Notes:
        made.append(Notes())
        return made[-1]

    sweep = tune(ask(tmp_path), reporter=reporter)
    assert (sweep.failures, sweep.trained) == ((), 2 * (2 + 3))
    _, tried, final = (notes for notes in made if notes.labels)
    assert tried.labels == [f"{m} trial {n} seed 1000" for n in range(3) for m in ("ls", "cagrad")]
    assert tried.numbers == list(range(6))
    assert not any("1000" in label for label in final.labels)
    for method, option in (("ls", None), ("cagrad", "c")):
        found = trials(tmp_path, method)
        assert [trial["number"] for trial in found] == [0, 1, 2]
        assert found[0]["parameters"]["learning_rate"] == Toy.recipe.learning_rate
        for trial in found:
            by_hand = value_by_hand(tmp_path, method, trial["number"])
            assert trial["value"] == pytest.approx(by_hand, rel=1e-12)
            config = load_run(tmp_path / f"toy/{method}/tuning/trial-{trial['number']:04d}").config
            assert config.seed == 1000
            assert config.recipe["learning_rate"] == trial["parameters"]["learning_rate"]
            if option:
                assert config.method_options[option] == trial["parameters"][f"options.{option}"]
        assert len({trial["parameters"]["learning_rate"] for trial in found}) == 3
        chosen = min(found, key=lambda trial: trial["value"])
        assert best(tmp_path, method)["number"] == chosen["number"]
        for seed in (0, 1):
            run = load_run(tmp_path / f"toy/{method}/seed-{seed}")
            assert run.config.recipe["learning_rate"] == chosen["parameters"]["learning_rate"]
            assert run.config.method_options == chosen["method_options"]
    assert {run.config.seed for run in load_runs(tmp_path)[0]} == {0, 1}
    table = build_table(tmp_path)
    assert [row.label for row in table.rows] == [
        "stl",
        "ls (tuned, 3 trials)",
        "cagrad (tuned, 3 trials)",
    ]
    notes = [note for note in table.notes if "is tuned" in note]
    assert len(notes) == 2
    assert all(
        "Settings were chosen by Optuna's TPE; trials have seed 1000" in note for note in notes
    )


def test_nothing_is_tried_twice_and_more_trials_go_on(tmp_path: Path) -> None:
    search = ask(tmp_path / "two", 2, methods=["cagrad"], seeds=[0])
    tune(search)
    before = trials(tmp_path / "two", "cagrad")
    assert tune(search).trained == 0
    assert trials(tmp_path / "two", "cagrad") == before
    more = replace(search, trials=4)
    assert tune(more, overwrite=True).failures == ()
    found = trials(tmp_path / "two", "cagrad")
    assert found[:2] == before
    # The same as in one go, and as with a storage that was lost on the way.
    once = replace(more, comparison=replace(search.comparison, out=tmp_path / "one"))
    tune(once)
    assert without_times(trials(tmp_path / "one", "cagrad")) == without_times(found)
    study = tmp_path / "one/toy/cagrad/tuning"
    for lost in (study / "optuna.log", study / "trial-0003/trial.json", study / "best.json"):
        lost.unlink()
    tune(once)
    assert without_times(trials(tmp_path / "one", "cagrad")) == without_times(found)
    assert best(tmp_path / "one", "cagrad")["trials"] == 4


def test_a_tuning_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"methods": ["ls", "dwa"], "seeds": [0], "epochs": 1}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    tune(ask(whole, 3, **arguments))
    process, connection = start(tune_two, out)
    # Three baselines of six steps, then trials of six.
    wait_for_step(connection, 3 * 6 + 6 + 6 + 3)
    process.kill()
    process.join()
    ended = trials(out, "ls") + trials(out, "dwa")
    assert 0 < len(ended) < 6
    tune(ask(out, 3, **arguments))
    for method in ("ls", "dwa"):
        assert without_times(trials(out, method)) == without_times(trials(whole, method))
        one, two = (load_run(place / f"toy/{method}/seed-0") for place in (whole, out))
        assert one.result.test == two.result.test


# --------------------------------------------------------------------------- what goes wrong


def failing(monkeypatch: pytest.MonkeyPatch, trial: str, error: Exception) -> None:
    def fail(problem: Toy, spec: RunSpec, out_dir: Path, **more: Any) -> Run:
        if out_dir.name == trial and spec.method == "cagrad":
            raise error
        return train_spec(problem, spec, out_dir, **more)

    monkeypatch.setattr("ntkmtl.bench.training.trainer.train_spec", fail)


def test_a_trial_that_diverges_is_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "trial-0001", NonFiniteError("a", 3, "loss", float("nan")))
    assert tune(ask(tmp_path, seeds=[0])).failures == ()
    assert [trial["state"] for trial in trials(tmp_path, "cagrad")] == [
        "complete",
        "diverged",
        "complete",
    ]
    assert (best(tmp_path, "cagrad")["trials"], best(tmp_path, "cagrad")["diverged"]) == (3, 1)


def test_a_trial_that_fails_otherwise_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        failing(broken, "trial-0001", RuntimeError("out of memory"))
        sweep = tune(ask(tmp_path, seeds=[0]))
        assert [(f.label, f.error) for f in sweep.failures] == [
            ("cagrad trial 1 seed 1000", "RuntimeError"),
            ("cagrad trial 2 seed 1000", "DependencyError"),
        ]
        assert len(trials(tmp_path, "ls")) == 3, "the other method's search goes on"
        assert not (tmp_path / "toy/ls/seed-0").exists(), "no table of half a search"
    assert tune(ask(tmp_path, seeds=[0])).failures == ()
    assert len(trials(tmp_path, "cagrad")) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 0}, "trials must be at least 1"),
        ({"seed": 1}, "seed 1 is the trials'"),
        ({"methods": ["stl"]}, "at least one multi-task method"),
        ({"methods": ["nash"]}, "unknown method 'nash'"),
        ({"method_options": {"cagrad": {"c": 0.2}}}, "c of cagrad is given"),
        ({"trial_epochs": 0}, "epochs must be at least 1"),
        (
            {"methods": ["fixed"], "method_options": {"fixed": {"weights": [1, 2, 3]}}},
            "weights of fixed is given",
        ),
        ({"method_recipes": {"si": {}}}, "'si', which is not among the methods compared: ls, cag"),
        ({"method_recipes": {"ls": {"lr": 0.1}}}, "recipe of ls cannot change 'lr'"),
        ({"training": {"precison": "bf16"}}, "training has no 'precison'"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        tune(ask(tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


def test_recipes_of_methods_are_not_those_of_the_baselines(tmp_path: Path) -> None:
    changes = {"ls": {"epochs": 1}, "stl": {"epochs": 3}}
    tune(ask(tmp_path, 1, seeds=[0], methods=["ls"], method_recipes=changes))
    assert load_run(tmp_path / "toy/stl/tuning/toy/stl/seed-1000/a").config.recipe["epochs"] == 3


def test_runs_that_were_not_tuned_are_refused_before_the_search(tmp_path: Path) -> None:
    search = ask(tmp_path, 1, seeds=[0], methods=["ls"])
    compare(replace(search.comparison, methods=["ls"], single_task_baselines=False))
    result = tmp_path / "toy/ls/seed-0/result.json"
    before = result.read_bytes()
    with pytest.raises(SweepError, match=r"ls.seed-0 holds a run whose settings were not searched"):
        tune(search)
    assert result.read_bytes() == before
    assert not (tmp_path / "toy/ls/tuning").exists()
    assert tune(search, overwrite=True).failures == ()


def test_a_method_that_comes_later_has_as_many_trials(tmp_path: Path) -> None:
    assert tune(ask(tmp_path, 2, seeds=[0], methods=["ls"])).failures == ()
    with pytest.raises(SweepError, match=r"ls has had 2 trials and cagrad would have 1.*trials=2"):
        tune(ask(tmp_path, 1, seeds=[0], methods=["ls", "cagrad"]))
    assert not (tmp_path / "toy/cagrad").exists()
    assert tune(ask(tmp_path, 1, seeds=[0], methods=["ls"])).failures == ()


def test_another_study_is_refused_or_replaced(tmp_path: Path) -> None:
    tune(ask(tmp_path, 1, seeds=[0], methods=["ls"]))
    other = ask(tmp_path, 1, seeds=[0], methods=["ls"], trial_epochs=1)
    with pytest.raises(SweepError, match=r"another study: recipe\.epochs is 2, asked"):
        tune(other)
    assert tune(other, overwrite=True).failures == ()
    assert best(tmp_path, "ls")["epochs"] == 1


class Below(Toy):
    """A toy whose correlations are negative."""

    name = "below"

    def evaluate(self, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
        values = super().evaluate(model, split, tasks)
        return -values if tasks is None or "c" in tasks else values


def test_baselines_that_are_no_measure_are_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    name = f"{Path(__file__).stem}:Below"
    words = ["--methods", "ls", "--trials", "1", "--seeds", "1", "--jobs", "1", "--epochs", "1"]
    result = CliRunner().invoke(app, ["tune", name, *words, "--out", "o", "--json"])
    assert result.exit_code == 2, result.output
    assert "which Delta-m cannot be measured against" in json.loads(result.stdout)["error"]


def test_failed_trials_are_json_where_json_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_here.py").write_text(
        "from ntkmtl.weighting import LossWeighting\n"
        "class Fails(LossWeighting):\n"
        "    def of_losses(self, losses, tasks):\n"
        "        raise RuntimeError('a bug')\n"
    )
    words = ["--methods", "./fails_here.py:Fails", "--trials", "1", "--seeds", "1", "--jobs", "1"]
    result = CliRunner().invoke(app, ["tune", TOY, *words, "--epochs", "1", "--json"])
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)["error"]
    assert told == "fails_here:Fails trial 0 seed 1000: RuntimeError: a bug"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    words = ["--methods", "ls", "--trials", "2", "--seeds", "1", "--jobs", "1", "--epochs", "1"]
    result = CliRunner().invoke(app, ["tune", TOY, *words, "--out", "o"])
    assert result.exit_code == 0, result.output
    assert "ls (tuned, 2 trials)" in result.stdout
    assert (tmp_path / "o/report.html").exists()
    refused = CliRunner().invoke(app, ["tune", TOY, *words, "--out", "o", "--trial-seed", "0"])
    assert refused.exit_code == 2
    assert "seed 0 is the trials'" in refused.stderr
