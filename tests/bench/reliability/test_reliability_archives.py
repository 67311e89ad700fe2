"""Archives whose members name other places, and what is not an archive of data at all."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ntkmtl.bench.problems import celeba, nyuv2, qm9
from ntkmtl.bench.problems.celeba import ATTRIBUTES
from ntkmtl.bench.runs.folder import CheckpointError, read_checkpoint
from ntkmtl.bench.training import RunFileError, load_run

NAMES = (
    "../../outside.jpg",
    "/tmp/ntkmtl-outside.jpg",
    "a/../../../outside.jpg",
    "..\\outside.jpg",
)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in, beside which nothing may appear."""
    (tmp_path / "secret.txt").write_text("secret")
    place = tmp_path / "work" / "deep"
    place.mkdir(parents=True)
    yield place
    beside = {name for name in tree(tmp_path) if not name.startswith("work/deep")}
    assert beside == {"secret.txt", "work"}
    assert not Path("/tmp/ntkmtl-outside.jpg").exists()
    assert (tmp_path / "secret.txt").read_text() == "secret"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((218, 178, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def annotations(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name} {' '.join(['1'] * 40)}" for name in names]
    head = [str(len(names)), " ".join(ATTRIBUTES)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([*head, *rows]) + "\n")
    parts = [f"{name} {i % 3}" for i, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")


def images_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, jpeg())


def images_tar(path: Path, names: list[str], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(jpeg())
            tar.addfile(entry, io.BytesIO(jpeg()))
        for name, target in (links or {}).items():
            for kind, suffix in ((tarfile.SYMTYPE, "s"), (tarfile.LNKTYPE, "h")):
                entry = tarfile.TarInfo(f"{name}-{suffix}.jpg")
                entry.type, entry.linkname = kind, target
                tar.addfile(entry)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_members_that_climb_are_read_and_never_written(guarded: Path, suffix: str) -> None:
    """Images are read from the archive by their last name; nothing is unpacked anywhere."""
    source = guarded / "source"
    names = [f"00000{i}.jpg" for i in range(1, 4)]
    annotations(source, names)
    climbing = [f"{place}{name}" for place, name in zip(("../../", "/tmp/", "a/"), names)]  # noqa: B905
    path = source / f"img_align_celeba.{suffix}"
    (images_zip if suffix == "zip" else images_tar)(path, climbing)
    assert celeba.prepare(source, guarded / "made", accept_implausible=True).startswith("3 images")
    assert {name.partition("/")[0] for name in tree(guarded)} == {"source", "made"}


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_members_with_foreign_names_are_refused(guarded: Path, suffix: str) -> None:
    source = guarded / "source"
    annotations(source, ["000001.jpg"])
    path = source / f"img_align_celeba.{suffix}"
    (images_zip if suffix == "zip" else images_tar)(path, list(NAMES))
    with pytest.raises(ValueError, match="img_align_celeba"):
        celeba.prepare(source, guarded / "made")
    assert "made" not in tree(guarded)


def test_links_in_an_archive_are_not_followed(guarded: Path) -> None:
    source = guarded / "source"
    names = ["000001.jpg"]
    annotations(source, names)
    secret = str(guarded.parents[1] / "secret.txt")
    links = {"000002": secret, "000003": "../../secret.txt", "000004": "/etc/passwd"}
    images_tar(source / "img_align_celeba.tar", names, links)
    annotations(source, [*names, "000002-s.jpg"])
    with pytest.raises((ValueError, FileNotFoundError)) as said:
        celeba.prepare(source, guarded / "made")
    assert "secret" not in str(said.value)
    annotations(source, names)
    assert celeba.prepare(source, guarded / "made", accept_implausible=True).startswith("1 images")


def test_frames_that_are_links_are_not_read(guarded: Path) -> None:
    path = guarded / "nyuv2_x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("train/image/0.png", "train/label13/0.png", "train/depth8/0.png"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    with pytest.raises(ValueError, match=r"nyuv2_x\.tar"):
        nyuv2.prepare(path, guarded / "made")


def test_a_package_of_molecules_that_climbs_is_refused(guarded: Path) -> None:
    path = guarded / "qm9pack.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in NAMES:
            archive.writestr(name, "Index\n1\n")
    with pytest.raises((ValueError, FileNotFoundError), match="qm9pack"):
        qm9.prepare(path, guarded / "made")


# ------------------------------------------------------------------------------------------------
# Pickles


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY)


def test_a_pickle_for_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "checkpoint.pt"
    torch.save({"step": 1, "bomb": Bomb(mark)}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        read_checkpoint(path)
    assert not mark.exists()
    # The bomb is one: what is tested is not that it fails by itself.
    os.close(pickle.loads(pickle.dumps(Bomb(mark))))  # noqa: S301
    assert mark.exists()


def test_a_pickle_for_an_array_is_not_run(tmp_path: Path) -> None:
    from faults.inputs import _train

    mark = tmp_path / "mark"
    _train(tmp_path / "run")
    objects = np.array([Bomb(mark)], dtype=object)
    np.savez(tmp_path / "run" / "steps.npz", step=objects, weights=objects)
    with pytest.raises(RunFileError, match=r"steps\.npz"):
        _ = load_run(tmp_path / "run").steps
    assert not mark.exists()
