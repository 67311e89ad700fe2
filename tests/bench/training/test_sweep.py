from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import compare_two, last_word, start, wait_for_step
from filelock import FileLock
from rich.console import Console
from toy_problem import Toy

from ntkmtl.bench.jobs.local import serve
from ntkmtl.bench.jobs.reporters import PlainReporter, Reporter, RichReporter, reporter_for
from ntkmtl.bench.runs import RunBusyError
from ntkmtl.bench.training import (
    Comparison,
    ProblemNotFoundError,
    Run,
    SweepError,
    compare,
    load_run,
    load_runs,
    plan,
)
from ntkmtl.bench.training.baselines import BaselineCache, baseline_key
from ntkmtl.bench.training.spec import run_identity

TOY = "toy_problem:Toy"


class Notes(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.finished: list[int] = []
        self.labels: dict[int, str] = {}
        self.steps: dict[int, list[int]] = {}

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.labels[run] = label

    def run_progress(self, run: int, done: int) -> None:
        self.steps.setdefault(run, []).append(done)

    def run_finished(self, run: int, seconds: float) -> None:
        self.finished.append(run)

    def message(self, text: str) -> None:
        self.messages.append(text)


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": TOY,
        "methods": ["ntkmtl-sr", "ls"],
        "seeds": [0, 1],
        "out": out,
        "epochs": 2,
    }
    return Comparison(**{**values, **changes})


def paths(out: Path) -> list[str]:
    return sorted(run.path.relative_to(out).as_posix() for run in load_runs(out)[0])


def mtimes(out: Path) -> dict[Path, int]:
    return {run.path: (run.path / "result.json").stat().st_mtime_ns for run in load_runs(out)[0]}


def same(one: Run, other: Run) -> bool:
    return (one.result.test, one.result.val) == (other.result.test, other.result.val)


def test_a_sweep_trains_every_run_and_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    sweep = compare(ask(out))
    assert (sweep.trained, sweep.complete, sweep.cached, sweep.unfinished) == (10, 0, 0, 0)
    assert sweep.problem == "toy"
    assert paths(out) == [
        *(f"toy/{method}/seed-{seed}" for method in ("ls", "ntkmtl-sr") for seed in (0, 1)),
        *(f"toy/stl/seed-{seed}/{task}" for seed in (0, 1) for task in "abc"),
    ]
    asked = json.loads((out / "compare.json").read_text())
    assert asked["methods"] == ["ntkmtl-sr", "ls"]
    assert asked["seeds"] == [0, 1]
    run = load_run(out / "toy" / "ntkmtl-sr" / "seed-0")
    assert run.config.method_options == {"minibatches": 2}
    assert run.config.recipe["reduced"] is True
    assert run.config.recipe["description"] == "Four epochs. (changed: epochs 4 to 2)"

    before = mtimes(out)
    again = compare(ask(out))
    assert (again.trained, again.complete) == (0, 10)
    assert mtimes(out) == before
    more = compare(ask(out, methods=["ls", "si"], seeds=[1, 2]))
    assert (more.trained, more.complete) == (3 + 3, 1 + 3)
    assert {path: when for path, when in mtimes(out).items() if path in before} == before


def test_a_checkpoint_left_in_a_complete_run_is_removed(tmp_path: Path) -> None:
    """A kill may come after the result is written and before the checkpoints are removed."""
    asked = ask(tmp_path, methods=["ls"], seeds=[0], single_task_baselines=False)
    compare(asked)
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder / name).write_bytes(b"x")
    before = sorted(p.name for p in folder.iterdir() if "checkpoint" not in p.name)
    assert compare(asked).trained == 0
    assert sorted(p.name for p in folder.iterdir()) == before


def test_one_seed_after_the_other_with_baselines(tmp_path: Path) -> None:
    labels = [job.label for job in plan(ask(tmp_path)).jobs]
    assert labels == [
        label
        for seed in (0, 1)
        for label in (
            f"ntkmtl-sr seed {seed}",
            f"ls seed {seed}",
            *(f"stl {task} seed {seed}" for task in "abc"),
        )
    ]


def test_baselines_come_from_the_cache(tmp_path: Path) -> None:
    compare(ask(tmp_path / "one", seeds=[0]))
    notes = Notes()
    sweep = compare(ask(tmp_path / "two", seeds=[0], methods=["si"]), reporter=notes)
    assert (sweep.trained, sweep.cached) == (1, 3)
    assert notes.messages == ["Not trained again: 3 baselines from the cache"]
    for task in "abc":
        one, two = (load_run(tmp_path / d / "toy/stl/seed-0" / task) for d in ("one", "two"))
        assert one.result == two.result
        assert one.steps.weights.tolist() == two.steps.weights.tolist()


def test_a_damaged_entry_of_the_cache_is_said_and_made_anew(tmp_path: Path) -> None:
    compare(ask(tmp_path / "one", seeds=[0]))
    entry = next((tmp_path / "cache" / "stl").iterdir())
    (entry / "steps.npz").write_bytes(b"PK")
    notes = Notes()
    sweep = compare(ask(tmp_path / "two", seeds=[0]), reporter=notes)
    assert (sweep.trained, sweep.cached) == (2 + 1, 2)
    assert any("damaged and discarded" in message for message in notes.messages)
    assert compare(ask(tmp_path / "three", seeds=[0])).cached == 3


def test_the_key_holds_everything_that_determines_a_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(problem: Toy, seed: int = 0, task: str = "a", threads: int = 1) -> str:
        identity = run_identity(problem, "stl", seed, single_task=task)
        return baseline_key(identity, type(problem), threads)

    keys = [
        key(Toy()),
        key(Toy(data_seed=1)),
        key(Toy(), seed=1),
        key(Toy(), task="b"),
        key(Toy(), threads=2),
    ]
    monkeypatch.setattr("ntkmtl.bench.training.baselines.versions", lambda: {"torch": "9"})
    keys.append(key(Toy()))
    monkeypatch.setattr("ntkmtl.bench.training.baselines.source_digest", lambda kind: "edited")
    keys.append(key(Toy()))
    assert len(set(keys)) == len(keys)
    assert key(Toy()) == keys[-1]


def test_two_may_store_the_same_baseline(tmp_path: Path) -> None:
    compare(ask(tmp_path / "one", seeds=[0], methods=["stl"]))
    cache = BaselineCache(tmp_path / "other")
    run = tmp_path / "one/toy/stl/seed-0/a"
    cache.store("k", run)
    shutil.rmtree(tmp_path / "cache")
    cache.store("k", run)
    assert [path.name for path in cache.folder.iterdir()] == ["k"]


def test_without_baselines_and_with_them_alone(tmp_path: Path) -> None:
    compare(ask(tmp_path / "a", seeds=[0], single_task_baselines=False))
    assert paths(tmp_path / "a") == ["toy/ls/seed-0", "toy/ntkmtl-sr/seed-0"]
    compare(ask(tmp_path / "b", seeds=[0], methods=["stl"], tasks=["b"]))
    assert paths(tmp_path / "b") == ["toy/stl/seed-0/b"]


def test_other_runs_are_refused_or_replaced(tmp_path: Path) -> None:
    compare(ask(tmp_path, seeds=[0], single_task_baselines=False))
    before = mtimes(tmp_path)
    other = ask(
        tmp_path,
        seeds=[0],
        single_task_baselines=False,
        method_options={"ntkmtl-sr": {"minibatches": 4}},
    )
    with pytest.raises(SweepError, match=r"minibatches is 2, asked for 4.*another --out"):
        compare(other)
    assert mtimes(tmp_path) == before
    assert json.loads((tmp_path / "compare.json").read_text())["method_options"] == {}
    sweep = compare(other, overwrite=True)
    assert (sweep.trained, sweep.complete) == (1, 1)
    run = load_run(tmp_path / "toy/ntkmtl-sr/seed-0")
    assert run.config.method_options == {"minibatches": 4}


def test_worker_processes_give_the_same_numbers_and_one_s_death_costs_its_run_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    notes = Notes()
    methods = ["ls", "si"]
    # The first run of seed 1 ends its process; what comes after it needs a new one.
    crash = {"crash": str(tmp_path / "crashed")}
    sweep = compare(
        ask(tmp_path / "two", jobs=2, methods=methods, problem_options=crash), reporter=notes
    )
    assert sweep.trained == 9
    assert len(notes.finished) == 9
    (failure,) = sweep.failures
    assert failure.error == "WorkerDied"
    assert failure.message == "the worker process ended with exit code 7"
    assert json.loads((failure.folder / "failure.json").read_text())["error"] == "WorkerDied"

    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path / "another"))
    compare(ask(tmp_path / "one", methods=methods, threads=1))
    assert len(paths(tmp_path / "two")) == 9
    for path in paths(tmp_path / "two"):
        one, two = load_run(tmp_path / "one" / path), load_run(tmp_path / "two" / path)
        assert one.config.hardware["threads"] == two.config.hardware["threads"] == 1
        assert same(one, two)


def test_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    options = {"poison": "b"}
    sweep = compare(ask(tmp_path, seeds=[0], epochs=4, problem_options=options))
    assert sweep.trained == 3
    assert not sweep.interrupted
    assert [f.label for f in sweep.failures] == ["ntkmtl-sr seed 0", "ls seed 0"]
    assert sweep.failures[0].error == "NonFiniteError"
    told = json.loads((tmp_path / "toy/ls/seed-0/failure.json").read_text())
    assert told["error"] == "NonFiniteError"
    assert "loss of task b is nan" in told["message"]
    assert "Traceback" in told["traceback"]
    _, incomplete = load_runs(tmp_path)
    assert [i.reason.split(";")[0][:31] for i in incomplete] == [
        "failed: the loss of task b is n"
    ] * 2
    # It would go on from right before the NaN, and this poison counts the batches of one process.
    for method in ("ls", "ntkmtl-sr"):
        for checkpoint in (tmp_path / f"toy/{method}/seed-0").glob("checkpoint*.pt"):
            checkpoint.unlink()
    # Tried again, and failed again: a failure is not taken for a result.
    assert len(compare(ask(tmp_path, seeds=[0], epochs=4, problem_options=options)).failures) == 2


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".ntkmtl.lock"),
        pytest.raises(RunBusyError, match="another process is working in"),
    ):
        compare(ask(tmp_path))
    assert compare(ask(tmp_path, methods=["ls"], seeds=[0])).trained == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["ls", "nash"]}, "unknown method 'nash'"),
        ({"method_options": {"ntkmtl-sr": {"exponnt": 1}}}, "ntkmtl-sr.*'exponnt'"),
        ({"method_options": {"si": {}}}, "'si', which is not among the methods"),
        ({"method_options": {"ntkmtl-sr": {"minibatches": 0}}}, "minibatches must be"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1]}, "seed must not be negative"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"jobs": "2"}, "jobs must be a whole number, found '2'"),
        ({"threads": 1.5}, "threads must be a whole number, found 1.5"),
        ({"problem": Toy()}, r"problem must be a name, found .*; train\(problem"),
        ({"methods": "ls"}, "methods must be a list, found 'ls'"),
        ({"seeds": 2}, "seeds must be a list, found 2"),
        ({"problem_options": None}, "problem_options must be a dict, found None"),
        ({"method_options": ["ls"]}, "method_options must be a dict"),
        ({"epochs": 1.5}, "epochs must be a whole number. Found 1.5"),
        ({"epochs": "2"}, "epochs must be a whole number. Found '2'"),
        ({"batch_size": True}, "batch_size must be a whole number. Found True"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number. Found '0.1'"),
        ({"training": {"compile": "yes"}}, "compile must be True or False. Found 'yes'"),
        ({"record": 5}, "record must be a dict"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1000}, "batch_size must be at most 96"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"methods": ["stl"], "tasks": ["z"]}, "no task 'z' with a metric; it has a, b, c"),
        ({"method_options": {"ls": {"x": float("inf")}}}, "method ls"),
        (
            {"method_recipes": {"lss": {"learning_rate": 0.1}}},
            "'lss', which is not among the methods compared: ntkmtl-sr, ls, stl",
        ),
        ({"method_recipes": {"si": {}}}, "'si', which is not among the methods"),
        (
            {"method_recipes": {"ls": {"lr": 0.1}}},
            "recipe of ls cannot change 'lr'; it can change epochs, batch_size, learning_rate, ",
        ),
        ({"method_recipes": {"ls": {"training": {"clp": 1.0}}}}, "training has no 'clp'"),
        ({"training": {"precison": "bf16"}}, "no 'precison'; it has precision, accumulate, clip, "),
        ({"training": {"description": "other"}}, "training has no 'description'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        compare(ask(tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("problem", "options", "said"),
    [
        ("no-such", {}, "no problem .*'no-such'"),
        ("no_such_module:Toy", {}, "No module named 'no_such_module'"),
        ("toy_problem:Nothing", {}, "has no class Nothing"),
        ("toy_problem:ToyModel", {}, "ToyModel does not derive from"),
        (TOY, {"data_seed": -1}, "data_seed must not be negative"),
        (TOY, {"sead": 1}, "sead"),
    ],
)
def test_problems_that_are_not(
    tmp_path: Path, problem: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProblemNotFoundError, match=said):
        compare(ask(tmp_path / "runs", problem=problem, problem_options=options))
    assert not (tmp_path / "runs").exists()


def test_all_means_every_method(tmp_path: Path) -> None:
    methods = {job.spec.method for job in plan(ask(tmp_path, methods=["all"])).jobs}
    assert {"ls", "si", "ntkmtl", "ntkmtl-sr", "stl"} <= methods


def test_every_method_trains(tmp_path: Path) -> None:
    sweep = compare(ask(tmp_path, methods=["all"], seeds=[0], epochs=1, batch_size=32))
    assert sweep.failures == ()


def test_a_record_has_the_mini_batches_of_its_methods_own_recipe(tmp_path: Path) -> None:
    recipes = {"ntkmtl-sr": {"minibatches": 4}}
    asked = ask(tmp_path, seeds=[0], methods=["ls", "ntkmtl-sr"], method_recipes=recipes)
    asked = replace(asked, record={"every": 4}, single_task_baselines=False)
    assert compare(asked).trained == 2
    assert compare(asked).complete == 2
    with pytest.raises(SweepError, match="a record has no setting often"):
        compare(replace(asked, record={"often": 4}))


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_whole_files(tmp_path: Path, jobs: int) -> None:
    process, connection = start(compare_two, tmp_path, jobs)
    wait_for_step(connection, 3)
    assert process.pid is not None
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    assert last_word(process, connection) == (True, 2)
    files = sorted(
        path.relative_to(tmp_path / "toy/ls").as_posix()
        for path in (tmp_path / "toy").rglob("*")
        if path.is_file()
    )
    begun = [0] if jobs == 1 else [0, 1]
    assert files == [f"seed-{s}/{f}" for s in begun for f in ("checkpoint.pt", "config.json")]
    notes = Notes()
    compare(ask(tmp_path, methods=["ls"], epochs=None, single_task_baselines=False), reporter=notes)
    assert notes.steps[0][0] > 1, "went on from the checkpoint"
    assert paths(tmp_path) == ["toy/ls/seed-0", "toy/ls/seed-1"]


def test_a_worker_stops_when_its_parent_is_gone(tmp_path: Path) -> None:
    (job,) = plan(
        ask(
            tmp_path,
            methods=["ls"],
            seeds=[0],
            single_task_baselines=False,
            problem_options={"pause": 0.25},
        )
    ).jobs
    process, connection = start(
        serve,
    )
    connection.send(job)
    assert connection.recv()[0] == "step"
    connection.close()
    process.join(20)
    assert process.exitcode == 0
    assert sorted(p.name for p in job.folder.iterdir()) == ["checkpoint.pt", "config.json"]


def test_lines_for_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(ask(tmp_path, seeds=[0], methods=["ls"]), reporter=PlainReporter(sys.stderr))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "4 runs to train"
    assert lines[1].startswith("[1/4] ls seed 0: done in ")


def test_bars_for_terminals(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    reporter = reporter_for(console)
    assert isinstance(reporter, RichReporter)
    options = {"poison": "b"}
    compare(ask(tmp_path, seeds=[0], epochs=4, problem_options=options), reporter=reporter)
    shown = screen.getvalue()
    for text in ("all runs", "5/5 runs", "stl a seed 0: done in", "ls seed 0: FAILED: NonFinite"):
        assert text in shown
    reporter = reporter_for(console)
    compare(
        ask(tmp_path, seeds=[0], methods=["stl"], epochs=4, problem_options=options),
        reporter=reporter,
    )
    assert "3 complete already" in screen.getvalue()
    assert isinstance(reporter_for(Console(file=screen)), PlainReporter)


def test_options_and_seeds_of_other_types(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\n".join(["a,y", *(f"{n * n % 97},{n % 7}.5" for n in range(60))]) + "\n")
    made = {"csv": file, "targets": "y"}
    asked = Comparison("table", ["ls"], [np.int64(2)], tmp_path, problem_options=made, epochs=1)
    assert asked.problem_options == {"csv": str(file), "targets": "y"}
    assert compare(asked).trained == 2
    assert load_run(tmp_path / "table" / "ls" / "seed-2").config.seed == 2
    for wrong in ({"seeds": [1.0]}, {"problem_options": {"csv": {1, 2}}}):
        with pytest.raises(SweepError, match=r"seed must be a whole|must be JSON values or paths"):
            replace(asked, **wrong)
