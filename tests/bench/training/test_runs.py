from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkmtl.bench.runs import (
    Epoch,
    RunConfig,
    RunFileError,
    RunMetric,
    Steps,
    differences,
    folder_name,
    load_run,
    load_runs,
    read_config,
    run_folder,
    write_history,
    write_steps,
)

CONFIG = RunConfig(
    problem="toy",
    problem_class="toy:Toy",
    problem_options={"a": 1},
    method="ls",
    method_options={},
    seed=0,
    recipe={
        "epochs": 1,
        "batch_size": 2,
        "learning_rate": 0.1,
        "minibatches": 1,
        "reduced": False,
        "description": "",
    },
    tasks=("x", "y"),
    metrics=(RunMetric("x", "x"), RunMetric("y", "y", "eV", True, "Y")),
    sizes={"train": 4, "val": 2, "test": 2},
    parameters=3,
    versions={"python": "3"},
    hardware={"threads": 1},
)
RESULT = {
    "schema": 1,
    "test": [1.0, 2.0],
    "val": [1.5, 2],
    "seconds_per_epoch": 0.1,
    "train_seconds": 0.1,
    "wall_seconds": 0.2,
    "steps": 2,
    "finished": "2026-01-01T00:00:00+00:00",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = run_folder(tmp_path, "toy", "ls", 0)
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(CONFIG.to_json()))
    write_history(run / "history.json", [Epoch(0, (1.0, None), (1.5, 2.0), 0.1, 0.1, 0.05)])
    write_steps(
        run / "steps.npz",
        Steps(np.arange(2), np.ones((2, 2), np.float32), np.full((2, 2), 3, np.float32)),
    )
    (run / "result.json").write_text(json.dumps(RESULT))
    return run


def test_round_trip(folder: Path) -> None:
    run = load_run(folder)
    assert run.config == CONFIG
    assert run.result.test == (1.0, 2.0)
    assert run.history == (Epoch(0, (1.0, None), (1.5, 2.0), 0.1, 0.1, 0.05),)
    assert run.steps.weights.dtype == np.float32
    assert run.steps.eigenvalues is not None
    assert run.steps.eigenvalues.tolist() == [[3, 3], [3, 3]]


def test_a_result_without_its_settings_is_no_run_that_may_be_left_out(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(RunFileError, match=r"config\.json: is not there, and result\.json is"):
        load_runs(folder.parents[2])
    with pytest.raises(RunFileError, match=r"config\.json: cannot be read: .* the folder of a run"):
        load_run(folder)


def test_reading_runs_does_not_import_torch() -> None:
    code = (
        "import sys; from ntkmtl.bench.training import load_runs, RunFileError; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_steps_give_the_same_bytes(tmp_path: Path) -> None:
    steps = Steps(np.arange(2), np.ones((2, 2), np.float32), None)
    for name in ("a", "b"):
        write_steps(tmp_path / name, steps)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_incomplete_runs_are_told_apart(folder: Path, tmp_path: Path) -> None:
    for seed, failed in ((1, False), (2, True)):
        other = run_folder(tmp_path, "toy", "ls", seed)
        other.mkdir()
        (other / "config.json").write_text("{")
        if failed:
            (other / "failure.json").write_text(json.dumps({"message": "loss of task x is nan"}))
    runs, incomplete = load_runs(tmp_path)
    assert [run.path for run in runs] == [folder]
    assert [(i.path.name, i.reason) for i in incomplete] == [
        ("seed-1", "unfinished"),
        ("seed-2", "failed: loss of task x is nan"),
    ]
    (folder / "result.json").unlink()
    with pytest.raises(RunFileError, match="the run is not complete"):
        load_run(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_runs(tmp_path / "none")


def read_all(folder: Path) -> None:
    run = load_run(folder)
    _ = run.history, run.steps


def changed(content: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**content, **changes}).encode()


def nested(depth: int) -> bytes:
    deep: dict[str, Any] = {}
    for _ in range(depth):
        deep = {"a": deep}
    return changed(CONFIG_JSON, problem_options=deep)


CONFIG_JSON = CONFIG.to_json()
EPOCHS = (
    b'{"epochs": [{"epoch": 0, "train_losses": [1.0, null], "val": [1.5, 2.0], '
    b'"learning_rate": 0.1, "train_seconds": 0.1, "eval_seconds": 0.05}]}'
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"", "not valid JSON"),
        ("config.json", b"[1]", "must be an object"),
        ("config.json", b"\xff\xfe", "not UTF-8"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", b'{"schema": NaN}', "NaN"),
        ("config.json", b'{"schema": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ("config.json", changed(CONFIG_JSON, schema=2), "schema 2"),
        ("config.json", changed(CONFIG_JSON, seed="0"), "'seed' must be an integer, found '0'"),
        ("config.json", changed(CONFIG_JSON, seed=True), "'seed' must be an integer, found True"),
        ("config.json", changed(CONFIG_JSON, recipe={}), "'recipe.epochs' is missing"),
        ("config.json", changed(CONFIG_JSON, tasks=[]), "at least one task"),
        (
            "config.json",
            changed(CONFIG_JSON, recipe={**CONFIG_JSON["recipe"], "batch_size": 0}),
            "'recipe.batch_size' must be a whole number from 1, found 0",
        ),
        (
            "config.json",
            changed(CONFIG_JSON, recipe={**CONFIG_JSON["recipe"], "tested_epochs": []}),
            r"'recipe.tested_epochs' must be an integer, found \[\]",
        ),
        (
            "config.json",
            changed(CONFIG_JSON, metrics=[{**CONFIG_JSON["metrics"][0], "task": "z"}]),
            r"'metrics\[0\].task' must be one of the tasks 'x', 'y', found 'z'",
        ),
        ("config.json", changed(CONFIG_JSON, metrics=[{"name": 1}]), r"metrics\[0\].name"),
        ("result.json", b'{"schema": 1}', "'test' is missing"),
        ("result.json", changed(RESULT, test=[1]), "must hold 2 numbers, found 1"),
        (
            "result.json",
            changed(RESULT, test=[1, None]),
            r"key 'test\[1\]' must be a number, found None",
        ),
        ("result.json", changed(RESULT, test=[1, 10**400]), "finite"),
        ("result.json", changed(RESULT, test="1" * 10_000), "must be a list"),
        (
            "result.json",
            changed(RESULT, steps=-1),
            "'steps' must be a whole number from 0, found -1",
        ),
        ("result.json", changed(RESULT, wall_seconds=-1), "'wall_seconds' must be a number from 0"),
        ("result.json", changed(RESULT, cpu_share=-0.5), "'cpu_share' must be a number from 0"),
        ("result.json", changed(RESULT, epoch=77), r"'epoch' must be below the \d+ epochs of the"),
        (
            "result.json",
            changed(RESULT, model={"bytes": 3, "sha256": "ab" * 33}),
            "'model.sha256' must be a SHA-256 in hexadecimal, found 'abab",
        ),
        (
            "result.json",
            changed(RESULT, model={"bytes": 0, "sha256": "ab" * 32}),
            "'model.bytes' must be a whole number from 1, found 0",
        ),
        (
            "history.json",
            EPOCHS.replace(b"0.05", b"-0.05"),
            r"'epochs\[0\].eval_seconds' must be a number from 0, found -0.05",
        ),
        ("history.json", b'{"epochs": [{}]}', r"'epochs\[0\].epoch' is missing"),
        ("history.json", b'{"epochs": 3}', "'epochs' must be a list"),
        (
            "history.json",
            EPOCHS.replace(b"null", b'"1"'),
            r"'epochs\[0\].train_losses\[1\]' mus",
        ),
        ("history.json", EPOCHS.replace(b", null", b""), "must hold 2 numbers or null, found"),
        (
            "history.json",
            EPOCHS.replace(b"0.05", b"1e999"),
            "eval_seconds' must be a finite numb",
        ),
        ("config.json", nested(400), "nested more than 100 levels deep"),
        ("config.json", changed(CONFIG_JSON, sizes={"train": 1}), "'sizes.val' is missing"),
        ("config.json", changed(CONFIG_JSON, metrics=[{"name": "x"}] * 2), "is missing"),
        ("steps.npz", b"", "not a readable .npz"),
        ("steps.npz", b"PK\x03\x04 and no more", "not a readable .npz"),
    ],
)
def test_damaged_and_foreign_files(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(RunFileError, match=said) as caught:
        read_all(folder)
    assert caught.value.path == folder / name
    assert str(folder / name) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "result.json").unlink()
    os.mkfifo(folder / "result.json")
    with pytest.raises(RunFileError, match=r"result\.json: is not a regular file"):
        load_run(folder)


def test_arrays_that_are_not_what_they_should_be(folder: Path) -> None:
    path = folder / "steps.npz"
    np.savez(path, step=np.arange(2), weights=np.ones((2, 3), np.float32))
    with pytest.raises(RunFileError, match=r"'weights' must be floats of shape \(2, 2\)"):
        _ = load_run(folder).steps
    np.savez(path, step=np.arange(2.0), weights=np.ones((2, 2), np.float32))
    with pytest.raises(RunFileError, match="'step' must be integers"):
        _ = load_run(folder).steps
    np.savez(path, step=np.arange(2))
    with pytest.raises(RunFileError, match="must hold 'step' and 'weights'"):
        _ = load_run(folder).steps
    np.savez(path, step=np.arange(2), weights=np.array([{}, {}]))
    with pytest.raises(RunFileError, match="allow_pickle"):
        _ = load_run(folder).steps
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(RunFileError, match="not a readable"):
        _ = load_run(folder).steps
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("step.npy", "no array")
        archive.writestr("weights.npy", "no array")
    with pytest.raises(RunFileError, match=r"not a readable .* magic string"):
        _ = load_run(folder).steps


def test_differences_name_the_keys(folder: Path) -> None:
    config = read_config(folder / "config.json")
    other = {**config.identity(), "seed": 1, "problem_options": {"b": 2}}
    assert differences(config.identity(), other) == [
        "problem_options.a is 1, asked for none",
        "problem_options.b is absent, asked for 2",
        "seed is 0, asked for 1",
    ]


def test_a_description_is_told_where_nothing_else_of_the_recipe_differs() -> None:
    one = {"recipe": {"epochs": 1, "description": "Short."}, "seed": 0}
    other = {"recipe": {"epochs": 2, "description": "Long."}, "seed": 1}
    assert differences(one, other) == ["recipe.epochs is 1, asked for 2", "seed is 0, asked for 1"]
    other["recipe"] = {"epochs": 1, "description": "Long."}
    assert differences(one, other)[0] == "recipe.description is 'Short.', asked for 'Long.'"


def test_names_become_one_folder_each() -> None:
    names = ["U0", "U_0", "a/b", "a%2Fb", "../x", "C:\\x", "ε", "a b", "stl"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(Path(name).name == name for name in folders)
    for name in ("", ".", ".."):
        with pytest.raises(ValueError, match="needs a name"):
            folder_name(name)


def test_names_longer_than_a_folder_s_are_cut_and_stay_distinct(tmp_path: Path) -> None:
    names = ["ü" * 190, "ü" * 189 + "u", "x" * 255, "x" * 256, "x" * 180 + "y" * 200]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[2] == names[2]
    for folder in folders:
        (tmp_path / folder).mkdir()
