"""Faults made on purpose, a few of each; ``benchmarks/reliability.py`` makes many."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import Outcome, disk, inputs, kills, long_run
from faults.runs import COMPARISON, MOLECULES, OWN, numbers, unreadable

REPOSITORY = Path(__file__).parents[3]


def held(outcome: Outcome, tried: int) -> None:
    assert outcome.broken == []
    assert outcome.tried == tried


# ------------------------------------------------------------------------------------------------
# Killed and stopped


def test_killed_at_random_moments(tmp_path: Path) -> None:
    held(kills.kill_at_random(OWN, 3, tmp_path, seed=1), 3)


def test_a_comparison_killed_at_random_moments(tmp_path: Path) -> None:
    held(kills.kill_at_random(COMPARISON, 2, tmp_path, seed=1), 2)


@pytest.mark.slow
def test_molecules_killed_at_random_moments(tmp_path: Path) -> None:
    held(kills.kill_at_random(MOLECULES, 4, tmp_path), 4)


def test_killed_within_a_write(tmp_path: Path) -> None:
    """The second checkpoint moves the first away before it takes its place."""
    held(kills.kill_within_writes(OWN, 2, tmp_path), 6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(tmp_path: Path, number: signal.Signals) -> None:
    held(kills.stop(number, 1, tmp_path), 1)


@pytest.mark.slow
def test_a_worker_dies(tmp_path: Path) -> None:
    held(kills.worker_dies(1, tmp_path), 1)


@pytest.mark.slow
def test_two_at_once(tmp_path: Path) -> None:
    held(kills.two_at_once(1, tmp_path), 2)


def test_two_trainings_at_once_in_one_folder(tmp_path: Path) -> None:
    from faults.runs import start

    both = [start(OWN, tmp_path / "run") for _ in range(2)]
    for process in both:
        process.join()
    # The second waited, and found the run complete; on a slow machine it was refused.
    assert sorted(process.exitcode or 0 for process in both) in ([0, 0], [0, 1])
    inputs._train(tmp_path / "other")
    assert unreadable(tmp_path / "run") == []
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
        p.name for p in (tmp_path / "other").iterdir()
    )


def test_a_folder_in_which_another_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    from ntkmtl.bench.runs.folder import LOCK
    from ntkmtl.bench.training import RunBusyError

    monkeypatch.setattr("ntkmtl.bench.runs.folder.PATIENCE", 0.1)
    tmp_path.joinpath("run").mkdir()
    with (
        FileLock(tmp_path / "run" / LOCK),
        pytest.raises(RunBusyError, match=r"another process is training in .*run"),
    ):
        inputs._train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    inputs._train(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_killed_processes_left_unfinished_is_removed(tmp_path: Path) -> None:
    from ntkmtl.bench.runs import load_run

    COMPARISON(tmp_path)
    run = tmp_path / "runs" / "my-problem" / "ls" / "seed-0"
    left = [
        tmp_path / "runs" / ".compare.json.abcd1234.tmp",
        tmp_path / "runs" / "my-problem" / "fixed" / "tuning" / ".study.json.abcd1234.tmp",
        run / ".result.json.abcd1234.tmp",
    ]
    mine = tmp_path / "runs" / ".notes.txt.abcd1234.tmp"
    for path in (*left, mine):
        path.write_text("{")
    entries = sorted(path.name for path in (tmp_path / "cache" / "stl").glob("*"))
    (tmp_path / "cache" / "stl" / ".new-abcd1234").mkdir()
    COMPARISON(tmp_path)
    assert not any(path.exists() for path in left)
    assert mine.exists()
    # The next baseline that is kept clears up after the one that was not.
    from ntkmtl.bench.training.baselines import BaselineCache

    BaselineCache(tmp_path / "cache").store("another", run)
    found = sorted(path.name for path in (tmp_path / "cache" / "stl").glob("*"))
    assert found == sorted([*entries, "another"])
    assert load_run(tmp_path / "cache" / "stl" / "another").result == load_run(run).result


# ------------------------------------------------------------------------------------------------
# Disks and clocks


@pytest.mark.skipif(not disk.mountable(), reason="needs the right to mount a tmpfs")
def test_a_full_disk(tmp_path: Path) -> None:
    held(disk.full_tmpfs(3, tmp_path), 3)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_files_that_cannot_grow(tmp_path: Path) -> None:
    held(disk.size_limit(4, tmp_path), 4)


def test_no_space_at_each_file_of_a_run(tmp_path: Path) -> None:
    outcome = disk.no_space_at_each_sync(6, tmp_path)
    assert outcome.broken == []
    # config.json, a checkpoint, history.json, steps.npz, result.json
    assert outcome.tried >= 5


def test_an_error_of_the_caller_keeps_its_own_name(tmp_path: Path) -> None:
    from ntkmtl.files import atomic_write

    missing = tmp_path / "missing"
    with (
        pytest.raises(FileNotFoundError, match="missing") as said,
        atomic_write(tmp_path / "copy") as file,
    ):
        file.write(missing.read_bytes())
    assert "copy" not in str(said.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    held(disk.read_only_folder(2, tmp_path / "work"), 3)


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    held(disk.clock_jumps(1, tmp_path), 1)


# ------------------------------------------------------------------------------------------------
# Inputs


def test_damaged_checkpoints(tmp_path: Path) -> None:
    held(inputs.damaged_checkpoint(5, tmp_path), 5)


def test_without_its_last_checkpoint_a_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """What a kill between the two renames of a write leaves behind: no damage, so no warning."""
    import warnings

    from ntkmtl.bench.training import RunInterrupted

    inputs._train(tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        inputs._train(tmp_path / "run", stop_after=9)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert (tmp_path / "run" / "checkpoint.previous.pt").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs._train(tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_damaged_results(tmp_path: Path) -> None:
    held(inputs.damaged_results(120, tmp_path), 120)


def test_damaged_data(tmp_path: Path) -> None:
    held(inputs.damaged_data(60, tmp_path), 60)


def test_a_configuration_of_another_version(tmp_path: Path) -> None:
    held(inputs.foreign_version(5, tmp_path), 10)


@pytest.mark.parametrize("name", inputs.TABLES)
def test_a_table_that_cannot_be_trained_on(tmp_path: Path, name: str) -> None:
    held(inputs.spoilt_table(name, tmp_path), 1)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_its_mark(tmp_path: Path, encoding: str) -> None:
    """Of ASCII texts it is valid UTF-8, each second character a null byte."""
    from ntkmtl.bench.problems.table import Table, TableError

    path = tmp_path / "t.csv"
    path.write_bytes(
        "\n".join(["y,x", *(f"{i * i % 41},{i % 7}" for i in range(60))]).encode(encoding)
    )
    with pytest.raises(TableError, match=r"t\.csv is not text: byte 0x00 in line 1"):
        Table(path, "y")
    if encoding != "utf-32-le":
        assert Table(path, "y", encoding=encoding).size("train") > 30


# ------------------------------------------------------------------------------------------------
# Long runs


@pytest.mark.slow
def test_a_run_of_ten_thousand_steps_holds_its_memory_and_step_time(tmp_path: Path) -> None:
    held(long_run.long_run(10_000, tmp_path), 10_000)


# ------------------------------------------------------------------------------------------------
# The judges judge


def test_another_number_is_seen(tmp_path: Path) -> None:
    inputs._train(tmp_path / "run")
    before = numbers(tmp_path / "run")
    for name, key in (("result.json", "test"), ("history.json", "epochs")):
        path = tmp_path / "run" / name
        content = path.read_text()
        value: dict[str, Any] = json.loads(content)
        if key == "test":
            value[key][0] = value[key][0] * (1 + 2**-52)
        else:
            value[key][0]["train_losses"][0] *= 1 + 2**-52
        path.write_text(json.dumps(value))
        assert numbers(tmp_path / "run") != before
        path.write_text(content)
    assert numbers(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["config.json", "result.json", "history.json", "steps.npz"])
def test_a_file_cut_off_is_seen(tmp_path: Path, name: str) -> None:
    inputs._train(tmp_path / "run")
    assert unreadable(tmp_path / "run") == []
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-9])
    assert any(name in text for text in unreadable(tmp_path / "run"))


def test_writing_in_place_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is not atomic does not pass the faults above."""
    from contextlib import contextmanager

    @contextmanager
    def in_place(path: Path, previous: Path | None = None) -> Any:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield file

    for module in (
        "ntkmtl.files",
        "ntkmtl.bench.runs.folder",
        "ntkmtl.bench.runs.run",
    ):
        monkeypatch.setattr(f"{module}.atomic_write", in_place)
    assert disk.size_limit(4, tmp_path).broken


def test_the_page_holds_the_table_that_was_measured() -> None:
    import reliability

    record = json.loads(reliability.RECORD.read_text("utf-8"))["faults"]
    page = reliability.PAGE.read_text("utf-8")
    shown = page.partition(reliability.BEGIN)[2].partition(reliability.END)[0].strip()
    assert shown == reliability.table(record)
    names = {fault.name for fault in reliability.faults(200_000, 100_000)}
    assert {row["name"] for row in record if row["kind"] != "disk"} <= names
    assert all(row["broken"] == [] for row in record)
    assert sum(row["tried"] for row in record if row["kind"] == "fuzz") >= 200_000
    killed = [row["tried"] for row in record if row["name"].startswith("killed, ")]
    assert sum(killed) == 50
