"""The search for the task weights of ``fixed``."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from children import start, tune_one, wait_for_step
from toy_problem import Toy

from ntkmtl.bench.report import build_table
from ntkmtl.bench.runs import RunFileError
from ntkmtl.bench.training import Comparison, Run, SweepError, compare, load_run, load_runs, train
from ntkmtl.bench.training.reporters import Reporter
from ntkmtl.bench.training.studies import (
    Parameter,
    Study,
    Trial,
    read_study,
    read_tuning,
    weight_parameters,
)
from ntkmtl.errors import NonFiniteError

TOY = "toy_problem:Toy"


@pytest.fixture(autouse=True)
def _cache_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep cached baselines out of the folder that a test makes a table of."""
    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path_factory.mktemp("cache")))


class Notes(Reporter):
    def __init__(self) -> None:
        self.labels: list[str] = []
        self.messages: list[str] = []
        self.failed: list[str] = []
        self.runs = self.steps = 0

    def start(self, runs: int, steps: int) -> None:
        self.runs, self.steps = runs, steps

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.labels.append(label)

    def run_failed(self, run: int, why: str) -> None:
        self.failed.append(why)

    def message(self, text: str) -> None:
        self.messages.append(text)


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": TOY,
        "methods": ["ls", "fixed"],
        "seeds": [0],
        "out": out,
        "epochs": 2,
        "tune": 4,
    }
    return Comparison(**{**values, **changes})


def study_of(out: Path) -> Path:
    return out / "toy/fixed/tuning"


def trials(out: Path) -> list[dict[str, Any]]:
    found = sorted(study_of(out).glob("trial-*/trial.json"))
    return [json.loads(path.read_text()) for path in found]


def best(out: Path) -> dict[str, Any]:
    return json.loads((study_of(out) / "best.json").read_text())


def value_by_hand(out: Path, number: int) -> float:
    """Delta-m on the validation split against the single-task networks of seed 0."""
    run = load_run(study_of(out) / f"trial-{number:04d}")
    single = [load_run(out / "toy/stl/seed-0" / task).result.val[0] for task in "abc"]
    signs = (1, 1, -1)
    drops = [
        100 * sign * (value - base) / base
        for sign, value, base in zip(signs, run.result.val, single, strict=True)
    ]
    return statistics.fmean(drops)


# --------------------------------------------------------------------------- parameters


def test_parameters_are_drawn_log_uniformly() -> None:
    weight = Parameter("weights.a", 0.1, 10.0, start=1.0)
    values = [weight.draw(0, trial) for trial in range(1, 4001)]
    assert all(0.1 <= value <= 10.0 for value in values)
    logs = [math.log10(value) for value in values]
    # Uniform on [-1, 1]: mean 0 and variance 1/3, with standard errors of 0.009 and 0.005.
    assert abs(statistics.fmean(logs)) < 0.04
    assert abs(statistics.variance(logs) - 1 / 3) < 0.025
    below = sum(value < 1 for value in values) / len(values)
    assert abs(below - 0.5) < 0.04


def test_parameters_are_drawn_uniformly_without_logarithm() -> None:
    share = Parameter("share", -2.0, 4.0, start=0.0, log=False)
    values = [share.draw(1, trial) for trial in range(1, 2001)]
    assert min(values) < -1.9
    assert max(values) > 3.9
    assert abs(statistics.fmean(values) - 1.0) < 0.2


def test_a_draw_is_a_function_of_name_seed_and_number() -> None:
    one, other = weight_parameters(["a", "b"])
    assert one.draw(0, 0) == one.start == 1.0
    assert one.draw(0, 7) == Parameter("weights.a", 0.1, 10.0, start=1.0).draw(0, 7)
    assert len({one.draw(0, 7), one.draw(1, 7), one.draw(0, 8), other.draw(0, 7)}) == 4


# --------------------------------------------------------------------------- a whole tuning


def test_the_best_weights_on_the_validation_split_are_trained_with_every_seed(
    tmp_path: Path,
) -> None:
    notes = Notes()
    sweep = compare(ask(tmp_path, seeds=[0, 1]), reporter=notes)
    assert (sweep.trained, sweep.failures) == (2 * (2 + 3) + 4, ())
    assert notes.runs == sweep.trained, "one bar for all, trials included"
    assert notes.labels.index("fixed trial 3 seed 0") < notes.labels.index("fixed seed 0")

    found = trials(tmp_path)
    assert [trial["number"] for trial in found] == [0, 1, 2, 3]
    assert found[0]["method_options"] == {"weights": [1.0, 1.0, 1.0]}
    for trial in found:
        assert trial["state"] == "complete"
        assert trial["value"] == pytest.approx(value_by_hand(tmp_path, trial["number"]), rel=1e-12)
        assert list(trial["parameters"].values()) == trial["method_options"]["weights"]
        assert list(trial["parameters"]) == ["weights.a", "weights.b", "weights.c"]
    chosen = min(found, key=lambda trial: trial["value"])
    tuned = best(tmp_path)
    assert tuned["number"] == chosen["number"] != 0
    assert (tuned["value"], tuned["start_value"]) == (chosen["value"], found[0]["value"])
    assert (tuned["trials"], tuned["diverged"], tuned["split"], tuned["seed"]) == (4, 0, "val", 0)
    walls = [load_run(study_of(tmp_path) / f"trial-000{n}").result.wall_seconds for n in range(4)]
    assert tuned["wall_seconds"] == pytest.approx(sum(walls))
    assert tuned["epochs"] == 2

    for seed in (0, 1):
        run = load_run(tmp_path / f"toy/fixed/seed-{seed}")
        assert run.config.method_options == chosen["method_options"]
    # With the same seed and as many epochs, the run is the trial again.
    trial = load_run(study_of(tmp_path) / f"trial-{chosen['number']:04d}")
    assert load_run(tmp_path / "toy/fixed/seed-0").result.test == trial.result.test
    # Equal weights are plain training.
    assert (
        load_run(study_of(tmp_path) / "trial-0000").result.test
        == load_run(tmp_path / "toy/ls/seed-0").result.test
    )
    assert sum(message.endswith("validation split") for message in notes.messages) == 4


def test_trials_are_no_runs_of_the_comparison_and_the_table_says_tuned(tmp_path: Path) -> None:
    compare(ask(tmp_path))
    runs, incomplete = load_runs(tmp_path)
    assert not incomplete
    assert [run.path.name for run in runs if run.config.method == "fixed"] == ["seed-0"]
    table = build_table(tmp_path)
    row = table.row("fixed")
    assert row.label == "fixed (tuned, 4 trials)"
    assert row.tuning == read_tuning(tmp_path / "toy/fixed")
    assert table.row("ls").label == "ls"
    assert any(note.startswith("fixed is tuned: the best of 4 trials") for note in table.notes)
    assert json.loads((tmp_path / "compare.json").read_text())["tune"] == 4


def test_nothing_is_tried_twice_and_more_trials_are_added(tmp_path: Path) -> None:
    compare(ask(tmp_path, tune=2))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = compare(ask(tmp_path, tune=2))
    assert (again.trained, again.complete) == (0, 2 + 1 + 1 + 3)
    changed = {p.name for p, when in first.items() if p.stat().st_mtime_ns != when}
    assert changed == {"compare.json"}
    before = trials(tmp_path)

    notes = Notes()
    more = compare(ask(tmp_path, tune=5), overwrite=True, reporter=notes)
    assert [label for label in notes.labels if "trial" in label] == [
        f"fixed trial {n} seed 0" for n in (2, 3, 4)
    ]
    assert trials(tmp_path)[:2] == before
    assert more.failures == ()
    assert best(tmp_path)["trials"] == 5
    run = load_run(tmp_path / "toy/fixed/seed-0")
    assert run.config.method_options == best(tmp_path)["method_options"]
    # What was searched is not forgotten.
    fewer = compare(ask(tmp_path, tune=1))
    assert fewer.trained == 0
    assert best(tmp_path)["trials"] == 5


def test_more_trials_that_find_better_do_not_replace_runs_unasked(tmp_path: Path) -> None:
    compare(ask(tmp_path, tune=1))
    before = load_run(tmp_path / "toy/fixed/seed-0")
    assert before.config.method_options == {"weights": [1.0, 1.0, 1.0]}
    sweep = compare(ask(tmp_path, tune=4))
    assert best(tmp_path)["number"] != 0
    (failure,) = sweep.failures
    assert failure.error == "RunConflictError"
    assert "method_options.weights is [1.0, 1.0, 1.0]" in failure.message
    assert load_run(tmp_path / "toy/fixed/seed-0").result == before.result
    with pytest.raises(SweepError, match=r"method_options\.weights.*--overwrite"):
        compare(ask(tmp_path, tune=4))
    assert "was tuned, and not all" in " ".join(build_table(tmp_path).warnings)
    assert compare(ask(tmp_path, tune=4), overwrite=True).failures == ()
    assert build_table(tmp_path).row("fixed").tuning is not None


@pytest.mark.parametrize("changes", [{"jobs": 2}, {"tune_epochs": 1}])
def test_processes_and_shorter_trials(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkmtl.bench.training.sweep.cores", lambda: changes.get("jobs", 1))
    sweep = compare(ask(tmp_path, methods=["fixed", "pivrg"], **changes))
    assert (sweep.failures, sweep.unfinished) == ((), 0)
    found = trials(tmp_path)
    for trial in found:
        assert trial["value"] == pytest.approx(value_by_hand(tmp_path, trial["number"]), rel=1e-12)
    epochs = changes.get("tune_epochs", 2)
    assert best(tmp_path)["epochs"] == epochs
    config = load_run(study_of(tmp_path) / "trial-0001").config
    assert (config.recipe["epochs"], config.recipe["reduced"]) == (epochs, True)
    run = load_run(tmp_path / "toy/fixed/seed-0")
    assert run.config.recipe["epochs"] == 2
    assert run.config.method_options == best(tmp_path)["method_options"]
    (note,) = [note for note in build_table(tmp_path).notes if "tuned:" in note]
    assert ("1 epoch (the runs have 2)" in note) == (epochs == 1)


# --------------------------------------------------------------------------- going on


def test_a_tuning_that_was_killed_goes_on(tmp_path: Path) -> None:
    done = tmp_path / "whole"
    arguments: dict[str, Any] = {
        "methods": ["fixed"],
        "epochs": 1,
        "problem_options": {"pause": 0.0},
    }
    compare(ask(done, **arguments))
    out = tmp_path / "killed"
    ended: list[dict[str, Any]] = []
    while not ended:
        # Six steps a run: each time the first run is complete and the second under way.
        process, connection = start(tune_one, out)
        wait_for_step(connection, 8)
        process.kill()
        process.join()
        ended = trials(out)
    assert len(ended) < 4
    notes = Notes()
    compare(ask(out, **arguments), reporter=notes)
    assert len([label for label in notes.labels if "trial" in label]) <= 4 - len(ended)
    for one, two in zip(trials(done), trials(out), strict=True):
        assert {**one, "wall_seconds": 0} == {**two, "wall_seconds": 0}
    assert best(done)["method_options"] == best(out)["method_options"]
    runs = [load_run(place / "toy/fixed/seed-0") for place in (done, out)]
    assert runs[0].result.test == runs[1].result.test


def test_killed_between_the_result_of_a_trial_and_its_record(tmp_path: Path) -> None:
    compare(ask(tmp_path))
    place = study_of(tmp_path)
    expected, result = trials(tmp_path), place / "trial-0002/result.json"
    when = result.stat().st_mtime_ns
    (place / "trial-0002/trial.json").unlink()
    (place / "best.json").unlink()
    compare(ask(tmp_path))
    assert trials(tmp_path) == expected
    assert result.stat().st_mtime_ns == when
    (place / "best.json").unlink()
    assert compare(ask(tmp_path)).trained == 0
    assert best(tmp_path)["trials"] == 4


# --------------------------------------------------------------------------- what goes wrong


def diverging(numbers: set[int], monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """Let these trials fail, and return a list of what is trained of trials."""
    begun: list[str] = []

    def fail(problem: Toy, method: str, seed: int, out_dir: Path, **more: Any) -> Run:
        if out_dir.name.startswith("trial"):
            begun.append(out_dir.name)
            if int(out_dir.name[-4:]) in numbers:
                raise error
        return train(problem, method, seed, out_dir, **more)

    monkeypatch.setattr("ntkmtl.bench.training.workers.train", fail)
    return begun


NAN = NonFiniteError("a", 3, "loss", math.nan)


def test_a_trial_that_diverges_is_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = diverging({0, 2}, monkeypatch, NAN)
    notes = Notes()
    sweep = compare(ask(tmp_path), reporter=notes)
    assert sweep.failures == ()
    assert [why[:9] for why in notes.failed] == ["diverged:"] * 2
    states = [(trial["state"], trial["value"] is None) for trial in trials(tmp_path)]
    assert states == [("diverged", True), ("complete", False)] * 2
    assert "loss of task a is nan" in trials(tmp_path)[0]["error"]
    tuned = best(tmp_path)
    assert (tuned["trials"], tuned["diverged"], tuned["start_value"]) == (4, 2, None)
    assert tuned["number"] in (1, 3)
    del begun[:]
    assert compare(ask(tmp_path)).trained == 0
    assert begun == []
    (note,) = [note for note in build_table(tmp_path).notes if "tuned:" in note]
    assert "of which 2 diverged" in note
    assert "that the search began with diverged" in note


def test_where_all_diverge_there_is_nothing_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging({0, 1}, monkeypatch, FloatingPointError("metric a is inf"))
    sweep = compare(ask(tmp_path, tune=2))
    (failure,) = sweep.failures
    assert (failure.label, failure.error) == ("fixed seed 0", "ValueError")
    assert failure.message.startswith("all 2 trials diverged")
    with pytest.raises(SweepError, match="all 2 trials diverged"):
        compare(ask(tmp_path, tune=2))


def test_a_trial_that_fails_otherwise_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        diverging({3}, broken, RuntimeError("out of memory"))
        sweep = compare(ask(tmp_path))
        assert [(f.label, f.error) for f in sweep.failures] == [
            ("fixed trial 3 seed 0", "RuntimeError"),
            ("fixed seed 0", "DependencyError"),
        ]
        assert not (study_of(tmp_path) / "best.json").exists()
    begun = diverging(set(), monkeypatch, NAN)
    assert compare(ask(tmp_path)).failures == ()
    assert begun == ["trial-0003"]
    assert not (study_of(tmp_path) / "trial-0003/failure.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["ls"]}, "'fixed', which is not among the methods"),
        ({"method_options": {"fixed": {"weights": [1, 2, 3]}}}, "nothing to tune"),
        ({"tune": 0, "tune_epochs": 3}, "no number of trials"),
        ({"tune": -1}, "tune must not be negative"),
        ({"tune_epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        compare(ask(tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


def test_other_runs_and_other_studies_are_refused_or_replaced(tmp_path: Path) -> None:
    compare(ask(tmp_path, tune=0))
    assert not study_of(tmp_path).exists()
    with pytest.raises(SweepError, match=r"method_options\.weights is absent, asked for those to"):
        compare(ask(tmp_path, tune=2))
    assert not study_of(tmp_path).exists()
    assert compare(ask(tmp_path, tune=2), overwrite=True).failures == ()
    first = best(tmp_path)
    with pytest.raises(SweepError, match=r"recipe\.epochs is 2, asked for 1"):
        compare(ask(tmp_path, tune=1, tune_epochs=1))
    assert best(tmp_path) == first
    sweep = compare(ask(tmp_path, tune=1, tune_epochs=1), overwrite=True)
    assert sweep.failures == ()
    assert [trial["number"] for trial in trials(tmp_path)] == [0]
    assert (best(tmp_path)["trials"], best(tmp_path)["epochs"]) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("trial-0001/trial.json", "{", "not valid JSON"),
        ("trial-0001/trial.json", {"state": "lost"}, "'state' must be complete or diverged"),
        ("trial-0001/trial.json", {"number": 7}, "is of trial 7"),
        ("trial-0001/trial.json", {"value": None}, "'value' must be .*a number"),
        ("study.json", {"schema": 9}, "schema 9"),
        ("best.json", {"trials": "four"}, "'trials' must be an integer"),
    ],
)
def test_damaged_files_of_a_study_are_named(
    tmp_path: Path, name: str, content: str | dict[str, Any], said: str
) -> None:
    study = Study(
        tmp_path / "toy/fixed/tuning",
        {
            "schema": 1,
            "sampler": "random",
            "seed": 0,
            "objective": {"split": "val"},
            "recipe": {"epochs": 1},
        },
        weight_parameters(["a"]),
        2,
    )
    study.begin()
    for number in (0, 1):
        weights = study.draw(number)
        options = {"weights": list(weights.values())}
        study.record(Trial(number, "complete", weights, options, 1.0 - number, 2.0))
    assert study.settle().number == 1
    path = study.folder / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **content}))

    def read_all() -> None:
        read_study(study.folder)
        study.settle()

    with pytest.raises(RunFileError, match=said) as caught:
        read_all()
    assert caught.value.path == path
