"""A study from the file to the page, on a problem that trains in a moment."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_problem import Toy
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.problems import ProblemNotFoundError
from ntkmtl.bench.runs import RunFileError, load_run
from ntkmtl.bench.study import judge, read_plan, run_study
from ntkmtl.bench.study.part import Trainer
from ntkmtl.bench.study.results import TriedSettings, read_result, read_results
from ntkmtl.bench.study.runner import estimate
from ntkmtl.bench.study.singletask import SingleTasks, rates
from ntkmtl.bench.training import SweepError, train_spec
from ntkmtl.errors import NonFiniteError

PLAN = """
methods = ["fixed", "ntkmtl-sr", "dwa"]
trials = 3
seeds = 2
published_only = ["dwa"]

[[problem]]
name = "one"
problem = "toy_problem:Toy"
epochs = 1
"""
SECOND = """
[[problem]]
name = "two"
problem = "toy_problem:Toy"
options = { data_seed = 1 }
methods = ["fixed", "ntkmtl-sr"]
epochs = 1
"""


def plan_of(folder: Path, text: str = PLAN) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def results(out: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((out / "results").rglob("*.json")):
        content = json.loads(path.read_text())
        # Times and the machine differ from run to run.
        for trial in content["trials"]:
            trial["seconds"] = 0
        for part in ("published", "tuned"):
            for run in (content[part] or {"runs": []})["runs"]:
                run["train_seconds"] = run["cpu_share"] = 0
        found[str(path.relative_to(out))] = content
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    outcome = run_study(read_plan(plan_of(folder, PLAN + SECOND)), folder / "out")
    assert (outcome.failures, outcome.interrupted) == ([], False)
    assert outcome.written == [
        *(f"one/{name}" for name in ("stl", "ls", "fixed", "ntkmtl-sr", "dwa")),
        *(f"two/{name}" for name in ("stl", "ls", "fixed", "ntkmtl-sr")),
    ]
    return folder / "out"


# --------------------------------------------------------------------------- what it finds


def test_every_method_has_the_budget_and_final_seeds_are_fresh(finished: Path) -> None:
    for result in read_results(finished):
        tasks = 3 if result.method == "stl" else 1
        assert len(result.trials) == (0 if result.method == "dwa" else 3 * tasks)
        assert (result.tuned is None) == (result.method == "dwa")
        assert (result.published is None) == (result.method == "stl")
        for setting in (result.published, result.tuned):
            if setting is not None:
                assert [run.seed for run in setting.runs] == [0, 1]
                assert all(len(run.test) == 3 and not run.error for run in setting.runs)


def test_the_best_trial_on_validation_is_what_is_trained(finished: Path) -> None:
    result = read_result(finished / "results/one/ntkmtl-sr.json")
    best = min(result.trials, key=lambda trial: trial.value)
    assert result.trials[0].parameters["learning_rate"] == Toy.recipe.learning_rate
    assert result.trials[0].parameters["options.length"] == "method"
    if best is not result.trials[0]:
        assert result.tuned.recipe == {"learning_rate": best.parameters["learning_rate"]}
        folder = finished / "work/one/tuned/toy/ntkmtl-sr/seed-0"
        run = load_run(folder)
        assert run.config.recipe["learning_rate"] == best.parameters["learning_rate"]
        assert run.config.method_options["length"] == best.parameters["options.length"]
        assert list(run.result.test) == result.tuned.runs[0].test
    else:
        assert result.tuned == result.published


def test_single_task_networks_are_tuned_task_by_task(finished: Path) -> None:
    result = read_result(finished / "results/one/stl.json")
    for task in "abc":
        own = [trial for trial in result.trials if trial.task == task]
        assert [t.parameters["learning_rate"] for t in own] == rates(0.02, 3)
        best = min(own, key=lambda trial: trial.value).parameters["learning_rate"]
        used = result.tuned.recipe["learning_rate"][task]
        first = finished / f"work/one/baselines/final-{best:g}/toy/stl/seed-1/{task}"
        run = load_run(finished / f"work/one/baselines/final-{used:g}/toy/stl/seed-1/{task}")
        assert (first / "result.json").exists()
        assert run.config.recipe["learning_rate"] == used
        assert run.result.test[0] == result.tuned.runs[1].test["abc".index(task)]


class Known(SingleTasks):
    """Single-task networks of one task, whose final means are known beforehand."""

    def __init__(self, means: dict[float, float | None]) -> None:
        self.tasks, self.means = ["a"], means
        self.trained: list[float] = []

    def _compare(self, folder: str, tasks: list[str], more: dict[str, Any]) -> None:
        assert tasks == ["a"]
        self.trained.append(more["learning_rate"])

    def _final_mean(self, task: str, rate: float) -> float | None:
        return self.means[rate]


@pytest.mark.parametrize(
    ("trials", "means", "trained", "expected"),
    [
        # The best trial keeps what it said: nothing else is trained.
        ({1.0: 0.0, 2.0: -5.0, 4.0: 90.0}, {2.0: -4.0}, [2.0], 2.0),
        # The largest rate of the grid as well.
        ({1.0: 0.0, 2.0: -5.0}, {2.0: -4.0}, [2.0], 2.0),
        # It breaks down with other seeds, or diverges.
        ({1.0: 0.0, 2.0: -5.0, 4.0: -9.0}, {4.0: 800.0, 2.0: -4.0}, [4.0, 2.0], 2.0),
        ({1.0: 0.0, 2.0: -5.0, 4.0: -9.0}, {4.0: math.inf, 2.0: -4.0}, [4.0, 2.0], 2.0),
        # The next one is no better.
        ({1.0: 0.0, 2.0: -5.0, 4.0: -9.0}, {4.0: 3.0, 2.0: 6.0, 1.0: 4.0}, [4.0, 2.0, 1.0], 4.0),
        # No more than three.
        (
            {1.0: 0.0, 2.0: -1.0, 4.0: -2.0, 8.0: -3.0},
            {8.0: 9.0, 4.0: 8.0, 2.0: 7.0},
            [8.0, 4.0, 2.0],
            2.0,
        ),
        # Rates whose trial diverged are left out; all that are left may diverge.
        ({1.0: 0.0, 2.0: None}, {1.0: math.inf}, [1.0], 1.0),
    ],
)
def test_final_rates_keep_away_from_the_edge_of_divergence(
    trials: dict, means: dict, trained: list, expected: float
) -> None:
    known = Known(means)
    tried = [
        TriedSettings(
            parameters={"learning_rate": rate}, value=value, val=[], seconds=0.0, task="a"
        )
        for rate, value in trials.items()
    ]
    assert known._final_rates(tried) == {"a": expected}
    assert known.trained == trained


def test_a_final_run_that_failed_ends_the_choice() -> None:
    tried = TriedSettings(
        parameters={"learning_rate": 1.0}, value=0.0, val=[], seconds=0.0, task="a"
    )
    assert Known({1.0: None})._final_rates([tried]) is None


def test_fixed_weights_begin_with_powers_of_measured_gradients(finished: Path) -> None:
    trials = read_result(finished / "results/one/fixed.json").trials
    equal, half, full = ([t.parameters[f"weights.{x}"] for x in "abc"] for t in trials)
    assert equal == [1.0, 1.0, 1.0]
    for weights in (half, full):
        assert sum(weights) == pytest.approx(3, rel=1e-3)
    # Half the power: the ratio of two weights is the root of that with the whole.
    assert (half[0] / half[1]) ** 2 == pytest.approx(full[0] / full[1], rel=1e-2)


# --------------------------------------------------------------------------- several sittings


def test_what_is_finished_is_not_trained_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "results", out / "results")
    plan = read_plan(plan_of(tmp_path, PLAN + SECOND))
    assert estimate(plan, out) == []
    outcome = run_study(plan, out)
    assert (outcome.written, outcome.known) == ([], 9)
    assert not (out / "work").exists()


def test_a_study_that_was_stopped_ends_as_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    class Stop(Reporter):
        started = finished = 0

        def run_finished(self, run: int, seconds: float) -> None:
            Stop.finished += 1
            # The last of three runs: nothing is left there to be stopped.
            if Stop.finished == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        def run_started(self, run: int, label: str, steps: int) -> None:
            Stop.started += 1
            # Among the single-task networks, in a search, and in final runs.
            if Stop.started in (6, 20, 30):
                os.kill(os.getpid(), signal.SIGTERM)

    plan = read_plan(plan_of(tmp_path))
    stops = 0
    while run_study(plan, tmp_path / "out", Trainer(reporter=Stop)).interrupted:
        stops += 1
    assert stops == 4
    own = {key: value for key, value in results(finished).items() if "/one/" in key}
    assert results(tmp_path / "out") == own


def test_results_of_another_study_are_not_mixed_in(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "results", tmp_path / "out/results")
    plan = read_plan(plan_of(tmp_path, PLAN.replace("seeds = 2", "seeds = 3")))
    with pytest.raises(RunFileError, match=r"of another study: seeds is \[0, 1\], asked for"):
        run_study(plan, tmp_path / "out")


# --------------------------------------------------------------------------- what goes wrong


def test_a_run_that_diverges_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(problem: Toy, spec: Any, out_dir: Path, **more: Any) -> Any:
        if out_dir.name == "seed-1" and spec.method == "dwa":
            raise NonFiniteError("a", 3, "loss", float("nan"))
        return train_spec(problem, spec, out_dir, **more)

    monkeypatch.setattr("ntkmtl.bench.training.trainer.train_spec", fail)
    text = PLAN.replace('"fixed", "ntkmtl-sr", "dwa"', '"dwa"').replace("trials = 3", "trials = 1")
    text = text.replace('published_only = ["dwa"]\n', "")
    outcome = run_study(read_plan(plan_of(tmp_path, text)), tmp_path / "out")
    assert outcome.failures == []
    result = read_result(tmp_path / "out/results/one/dwa.json")
    assert [bool(run.error) for run in result.tuned.runs] == [False, True]
    found = judge(read_results(tmp_path / "out"))
    assert "dwa is not judged on one: a tuned run of it, or of ls, diverged." in found.words
    assert found.problems[0].of("dwa").tuned[1] is None


def test_a_method_that_fails_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(problem: Toy, spec: Any, out_dir: Path, **more: Any) -> Any:
        if spec.method == "dwa":
            raise MemoryError("too large")
        return train_spec(problem, spec, out_dir, **more)

    monkeypatch.setattr("ntkmtl.bench.training.trainer.train_spec", fail)
    text = PLAN.replace('"fixed", "ntkmtl-sr", "dwa"', '"dwa", "si"').replace(
        "seeds = 2", "seeds = 1"
    )
    plan = read_plan(plan_of(tmp_path, text.replace('published_only = ["dwa"]\n', "")))
    outcome = run_study(plan, tmp_path / "out")
    assert outcome.written == ["one/stl", "one/ls", "one/si"]
    assert {failure.error for failure in outcome.failures} == {"MemoryError", "DependencyError"}
    assert not (tmp_path / "out/work/one/published/toy/dwa").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methods = [", "study.toml"),
        (PLAN.replace("trials = 3", "trails = 3"), "trails"),
        (PLAN.replace("trials = 3", "trials = 0"), ">= 1"),
        (PLAN.replace('"dwa"]', '"dwe"]', 1), "unknown method 'dwe'; did you mean 'dwa'"),
        (PLAN.replace('published_only = ["dwa"]', 'diagram = ["si"]'), "diagram names 'si'"),
        (PLAN.replace('published_only = ["dwa"]', 'published_only = ["ls"]'), "tune it as well"),
        (PLAN.replace("seeds = 2", "seeds = 2000"), "seed 1000 is the trials'"),
        (PLAN.partition("[[")[0] + "problem = []", "at least one"),
        (PLAN + PLAN.partition("only = ")[2].partition("\n")[2], "two problems are named 'one'"),
        (PLAN.replace('"one"', '"../one"'), "cannot be that of a folder"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SweepError) as caught:
        read_plan(plan_of(tmp_path, text))
    assert said in str(caught.value)


def test_a_method_that_does_not_fit_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    text = PLAN + '[method_options.dwa]\nlength = "plain"\n'
    with pytest.raises(SweepError, match=r"one, dwa: length='plain' compares lengths"):
        estimate(read_plan(plan_of(tmp_path, text)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Below(Toy):
    """A toy whose correlations have the other sign, in some of the splits."""

    name = "below"
    splits = ("val", "test")

    def evaluate(self, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
        values = super().evaluate(model, split, tasks).abs()
        flip = split in self.splits and (tasks is None or "c" in tasks)
        return torch.cat([values[:-1], -values[-1:]]) if flip else values


class BelowInTests(Below):
    splits = ("test",)


@pytest.mark.parametrize("kind", ["Below", "BelowInTests"])
def test_networks_that_are_no_measure_end_the_study_before_methods_are_trained(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    text = PLAN.replace("toy_problem:Toy", f"{Path(__file__).stem}:{kind}")
    with pytest.raises(SweepError, match=r"one: .* in corr, which Delta-m cannot be measured"):
        run_study(read_plan(plan_of(tmp_path, text)), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*/ls/*"))


# --------------------------------------------------------------------------- the command


WRONG = """
from ntkmtl.weighting import LossWeighting

class Broken(LossWeighting):
    def __init__(self, beta):
        super().__init__()

    def of_losses(self, losses, tasks):
        return losses * 0 + 1
"""


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fairgrad", {"alpha": -1}, "alpha"),
        ("fairgrad", {"beta": 1}, "beta"),
        ("ntkmtl-sr", {"minibatches": 4000}, "minibatches=4000"),
        ("wrong.py:Broken", {}, "beta"),
    ],
)
def test_wrong_settings_are_found_before_anything_is_trained(
    method: str, options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second problem's part, too."""
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text(WRONG)
    text = PLAN + SECOND.replace('["fixed", "ntkmtl-sr"]', json.dumps([method]))
    if options:
        values = "\n".join(f"{key} = {value}" for key, value in options.items())
        text += f'\n[method_options."{method}"]\n{values}\n'
    out = tmp_path / "out"
    with pytest.raises(SweepError, match=said) as caught:
        run_study(read_plan(plan_of(tmp_path, text)), out)
    assert "two: " in str(caught.value) or method == "ntkmtl-sr"
    assert not (out / "plan.json").exists()
    assert not (out / "results").exists()
    assert not (out / "work").exists()


def test_every_problem_is_read_before_anything_is_trained(tmp_path: Path) -> None:
    second = SECOND.replace('"toy_problem:Toy"', '"table"').replace(
        "{ data_seed = 1 }", '{ csv = "nowhere.csv", targets = "y" }'
    )
    plan = read_plan(plan_of(tmp_path, PLAN + second))
    said: list[str] = []
    with pytest.raises(ProblemNotFoundError, match=r"nowhere\.csv"):
        estimate(plan, tmp_path / "out", progress=said.append)
    with pytest.raises(ProblemNotFoundError, match=r"nowhere\.csv"):
        run_study(plan, tmp_path / "out")
    assert said == []
    assert not (tmp_path / "out" / "results").exists()
    assert not (tmp_path / "out" / "work").exists()


def test_the_command(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, PLAN.replace('"fixed", "ntkmtl-sr", "dwa"', '"dwa"'))
    out = str(tmp_path / "out")
    runner = CliRunner()
    told = runner.invoke(app, ["study", str(plan), "--out", out, "--dry-run", "--jobs", "1"])
    assert told.exit_code == 0, told.output
    # 3 tasks with 3 trials and 2 seeds; ls with 3 trials and 2 x 2 runs; dwa with 2 runs.
    assert "24" in told.output
    assert not Path(out).exists()
    refused = runner.invoke(app, ["study", str(plan), "--out", out, "--jobs", "1"])
    assert refused.exit_code == 2
    assert "add --yes" in refused.output
    done = runner.invoke(app, ["study", str(plan), "--out", out, "--yes", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert "Not tuned, so not judged: dwa." in done.output
    page = (Path(out) / "study.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
    (Path(out) / "study.html").unlink()
    again = runner.invoke(app, ["study", "--report", out, "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads((Path(out) / "judgement.json").read_text())["ranking"] is None
    assert (Path(out) / "study.html").exists()


def test_the_command_needs_a_file_or_a_folder(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "FILE or --report DIR is needed" in runner.invoke(app, ["study"]).output
    nothing = runner.invoke(app, ["study", "--report", str(tmp_path)])
    assert nothing.exit_code == 2
    assert "holds no result of a study" in nothing.output
