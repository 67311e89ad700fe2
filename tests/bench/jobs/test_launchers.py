"""Any launcher may drive `ntkmtl run`: runs lock their own folders, and are idempotent."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ntkmtl.bench.report import build_table
from ntkmtl.bench.runs import RunBusyError
from ntkmtl.bench.runs.folder import run_lock, sweep_lock
from ntkmtl.bench.training import Comparison, compare, load_runs

TRAINING = Path(__file__).parents[1] / "training"


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": "toy_problem:Toy",
        "methods": ["ls"],
        "seeds": [0],
        "out": out,
        "epochs": 1,
        "single_task_baselines": False,
    }
    return Comparison(**{**values, **changes})


def test_commands_train_side_by_side_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    words = ["--epochs", "1", "--threads", "1", "--out", str(tmp_path)]
    commands = [
        [sys.executable, "-m", "ntkmtl", "run", "toy_problem:Toy", *words, "--method", *own]
        for own in (["ls"], ["uw"], ["stl", "--task", "a"])
    ]
    processes = [
        subprocess.Popen(command, cwd=TRAINING, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    told = [process.communicate(timeout=180)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, told
    again = subprocess.run(
        commands[0], cwd=TRAINING, capture_output=True, text=True, check=True, timeout=180
    )
    assert "Not trained again: 1 complete already" in again.stderr
    found, incomplete = load_runs(tmp_path)
    assert incomplete == []
    assert sorted(run.path.relative_to(tmp_path).as_posix() for run in found) == [
        "toy/ls/seed-0",
        "toy/stl/seed-0/a",
        "toy/uw/seed-0",
    ]
    assert [row.label for row in build_table(tmp_path).rows] == ["stl", "ls", "uw"]


def test_a_run_that_another_process_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkmtl.bench.runs.folder.PATIENCE", 0.1)
    folder = tmp_path / "toy" / "ls" / "seed-0"
    with run_lock(folder):
        (failure,) = compare(ask(tmp_path), share_folder=True).failures
        assert failure.error == "RunBusyError"
        assert [path.name for path in folder.iterdir()] == [".ntkmtl.lock"]
    assert compare(ask(tmp_path), share_folder=True).trained == 1


def test_a_run_of_another_launcher_is_not_refused_by_a_comparison_in_the_folder(
    tmp_path: Path,
) -> None:
    with sweep_lock(tmp_path):
        with pytest.raises(RunBusyError, match="another process is working in"):
            compare(ask(tmp_path))
        assert compare(ask(tmp_path), share_folder=True).trained == 1


def test_a_comparison_leaves_unfinished_files_of_a_run_in_progress(tmp_path: Path) -> None:
    live, dead = (tmp_path / "toy" / "ls" / f"seed-{seed}" for seed in (0, 1))
    for folder in (live, dead):
        folder.mkdir(parents=True)
        (folder / ".result.json.abcdefgh.tmp").touch()
    held, done = threading.Event(), threading.Event()

    def train() -> None:
        with run_lock(live):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=train)
    thread.start()
    held.wait(30)
    try:
        with sweep_lock(tmp_path):
            assert (live / ".result.json.abcdefgh.tmp").exists()
            assert not (dead / ".result.json.abcdefgh.tmp").exists()
    finally:
        done.set()
        thread.join()
