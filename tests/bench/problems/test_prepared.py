"""Prepared data that take the place of others: whatever goes wrong, no folder looks whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ntkmtl.bench.problems import _arrays
from ntkmtl.bench.problems._arrays import (
    MANIFEST,
    DataMissingError,
    PreparedData,
    replacing,
    write_array,
    write_manifest,
)

KIND = "numbers 1"


def make(folder: Path, value: int, *more: str) -> None:
    """Replace what a folder holds by arrays of one number."""
    names = ["one", "two", *more]
    with replacing(folder) as new:
        for name in names:
            write_array(new / f"{name}.npy", np.full(5, value))
        write_manifest(new, KIND, names, {})


def value(folder: Path) -> int:
    found = PreparedData(folder, KIND, "")
    assert (found["one"] == found["two"]).all()
    return int(found["one"][0])


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = [MANIFEST, "one.npy", "two.npy"]


def refuse_renames(
    monkeypatch: pytest.MonkeyPatch, number: int, refused: Callable[[Path, Path], bool]
) -> None:
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if refused(path, Path(to)):
            raise OSError(number, os.strerror(number), str(path))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)


def test_data_take_the_place_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    make(folder, 1, "three")
    make(folder, 2)
    assert value(folder) == 2
    assert listed(folder) == WHOLE
    assert listed(folder.parent) == ["data"]


def test_a_link_is_kept_and_its_folder_replaced(tmp_path: Path) -> None:
    link, folder = tmp_path / "link", tmp_path / "disk" / "data"
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("links may not be made here")
    for number in (1, 2):
        make(link, number)
        assert value(folder) == number
    assert link.is_symlink()
    assert listed(tmp_path) == ["disk", "link"]
    assert listed(folder.parent) == ["data"]


@pytest.mark.parametrize("name", [".", "../data"])
def test_the_working_directory_is_replaced_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for number in (1, 2):
        make(Path(name), number)
        assert value(Path.cwd()) == number, "the working directory is the one that it was"
    assert listed(tmp_path / "data") == WHOLE
    assert listed(tmp_path) == ["data"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("seen", [True, False])
def test_a_mount_point_is_replaced_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, seen: bool
) -> None:
    folder = tmp_path / "data"
    make(folder, 1, "three")
    refuse_renames(monkeypatch, number, lambda path, to: folder in (path, to))
    monkeypatch.setattr(os.path, "ismount", lambda path: seen and Path(path) == folder)
    make(folder, 2)
    assert value(folder) == 2
    assert listed(folder) == WHOLE
    assert listed(tmp_path) == ["data"]


def test_arrays_are_copied_to_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    make(folder, 1)
    refuse_renames(monkeypatch, errno.EBUSY, lambda path, to: folder in (path, to))

    def fail(path: Path, to: Path) -> Path:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))

    monkeypatch.setattr(Path, "replace", fail)
    make(folder, 2)
    assert value(folder) == 2
    for name, entry in json.loads((folder / MANIFEST).read_text())["arrays"].items():
        # Large arrays are trusted by their time of change.
        assert (folder / f"{name}.npy").stat().st_mtime_ns == entry["changed"]
    assert listed(folder) == WHOLE
    assert listed(tmp_path) == ["data"]


def test_new_data_are_made_within_where_the_folder_above_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    make(folder, 1)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode)
    )
    with replacing(folder) as new:
        assert new.parent == folder
        for name in ("one", "two"):
            write_array(new / f"{name}.npy", np.full(5, 2))
        write_manifest(new, KIND, ["one", "two"], {})
        assert value(folder) == 1
    assert value(folder) == 2
    assert listed(folder) == WHOLE


@pytest.mark.parametrize("there", [True, False])
def test_data_that_cannot_be_put_in_place_leave_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "data"
    if there:
        make(folder, 1)
    with monkeypatch.context() as patch:
        seen: list[Path] = []

        def first(path: Path, to: Path) -> bool:
            """Refuse the new folder, and not the earlier one on its way back."""
            seen.append(to)
            return to == folder and seen.count(folder) == 1

        refuse_renames(patch, errno.ENOSPC, first)
        with pytest.raises(OSError, match="No space"):
            make(folder, 2)
    assert listed(tmp_path) == (["data"] if there else [])
    if there:
        assert value(folder) == 1


def test_a_replacement_within_that_is_interrupted_does_not_look_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    make(folder, 1)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    move = _arrays._move
    moved: list[str] = []

    def stop(path: Path, to: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(path.name)
        move(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(_arrays, "_move", stop)
        with pytest.raises(KeyboardInterrupt):
            make(folder, 2)
    with pytest.raises(DataMissingError, match="holds no prepared data"):
        value(folder)
    make(folder, 3)
    assert value(folder) == 3


def test_what_was_left_of_new_data_within_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (folder / ".data-partial").mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    make(folder, 1)
    assert listed(folder) == WHOLE
    (folder / ".other-partial").mkdir()
    with pytest.raises(ValueError, match=r"holds \.other-partial"):
        make(folder, 2)
