"""Lists of the user for the three splits, and sets that are smaller than the recipe."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ntkmtl.bench.problems._supervised import custom_split, shares
from ntkmtl.bench.problems.celeba import CelebA
from ntkmtl.bench.problems.celeba import prepare as prepare_celeba
from ntkmtl.bench.problems.nyuv2 import NYUv2
from ntkmtl.bench.problems.nyuv2 import prepare as prepare_nyuv2
from ntkmtl.bench.problems.qm9 import QM9
from ntkmtl.bench.problems.qm9 import prepare as prepare_qm9
from ntkmtl.bench.problems.qm9_mini import QM9Mini
from ntkmtl.bench.runs import load_run
from ntkmtl.bench.training import train

if TYPE_CHECKING:
    from ntkmtl.bench.problems.base import Split

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
KNOWN = {"a": 0, "b": 1, "c": 2, "1": 0, "2": 1, "3": 2, "4": 3}


def lists(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_lists_of_either_form_give_the_same_rows(tmp_path: Path) -> None:
    as_json = lists(tmp_path / "a.json", {"test": [4], "train": ["b", 1], "val": ["c"]})
    as_csv = lists(tmp_path / "a.csv", "id,split\nb,train\n4,test\n\na, train\n3,val\n")
    found = custom_split(as_json, KNOWN, "samples", "")
    assert {name: rows.tolist() for name, rows in found.rows.items()} == {
        "train": [0, 1],
        "val": [2],
        "test": [3],
    }
    assert custom_split(as_csv, KNOWN, "samples", "").digest == found.digest
    other = lists(tmp_path / "b.json", {"test": [3], "train": ["b", 1], "val": ["4"]})
    assert custom_split(other, KNOWN, "samples", "").digest != found.digest


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "{}", r"must end in \.json or \.csv"),
        ("a.json", "{", "split=.*a.json: Expecting"),
        ("a.json", "[" * 300 + "]" * 300, "more than 100 levels deep"),
        ("a.json", [1, 2], "found a list"),
        ("a.json", {"train": [1], "validation": [2], "test": [3]}, "found 'validation'"),
        ("a.json", {"train": [1], "test": [3]}, "list val is empty or missing"),
        ("a.json", {"train": [1], "val": [], "test": [3]}, "list val is empty"),
        ("a.json", {"train": 1, "val": [2], "test": [3]}, "train must be a list, found a int"),
        ("a.json", {"train": [1.5], "val": [2], "test": [3]}, "found 1.5"),
        ("a.json", {"train": [True], "val": [2], "test": [3]}, "found True"),
        ("a.json", {"train": [1, 9], "val": [2], "test": [3]}, r"'9', .*\(1 such names\); ids"),
        ("a.json", {"train": [1, "a"], "val": [2], "test": [3]}, "'a', which train names already"),
        ("a.json", {"train": [1], "val": [2], "test": ["b"]}, "'b', which val names .* as '2'"),
        ("a.csv", "id,split\n1,train,x\n", "line 2 must have two columns, found 3"),
        ("a.csv", "id,split\n1,dev\n", "line 2 must end in train, val or test, found 'dev'"),
        ("a.csv", "", "list train is empty"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        custom_split(lists(tmp_path / name, content), KNOWN, "samples", "ids are 1 to 4")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"split=.*none\.json is not there"):
        custom_split(tmp_path / "none.json", KNOWN, "samples", "")
    with pytest.raises(OSError, match="not a regular file but a folder"):
        custom_split(tmp_path, KNOWN, "samples", "")
    with pytest.raises(ValueError, match="must be the name of a file, found 5"):
        QM9Mini(split=5)  # type: ignore[arg-type]


def test_shares_are_in_proportion_and_leave_nothing_out() -> None:
    assert shares(4_000, (800, 400, 2_800)) == (800, 400, 2_800)
    for found in range(20, 4_000, 37):
        sizes = shares(found, (800, 400, 2_800))
        assert sum(sizes) == found
        assert min(sizes) >= 1
        assert abs(sizes[2] - 0.7 * found) < 3


def test_molecules_of_the_user(tmp_path: Path) -> None:
    usual = QM9Mini()
    index = torch.randperm(4_000, generator=torch.Generator().manual_seed(0)).tolist()
    from ntkmtl.bench.problems.qm9_mini._data import read

    gdb = read()[0].index
    named = {
        split: [int(gdb[row]) for row in rows]
        for split, rows in (("train", index[:40]), ("val", index[40:50]), ("test", index[50:65]))
    }
    problem = QM9Mini(split=lists(tmp_path / "own.json", named))
    assert [problem.size(split) for split in ("train", "val", "test")] == [40, 10, 15]
    assert (problem.recipe.batch_size, problem.recipe.reduced) == (40, True)
    assert "Split by own.json: 40 molecules for training" in problem.recipe.description
    assert "Batches of 40 instead of 60" in problem.recipe.description
    assert problem.notice().startswith("Split by own.json")
    # Inputs and targets are scaled by its own training molecules, the same in raw units.
    targets = problem.batch("train", torch.arange(40)).targets
    assert targets.mean(0).abs().max() < 1e-5
    assert torch.isfinite(torch.cat([part.flatten() for part in problem._all])).all()
    rows = sorted(index[:40])
    raw = QM9Mini(targets="raw")
    expected = torch.cat([raw.batch(s, torch.arange(raw.size(s))).targets for s in raw._rows])
    found = targets * problem._scale.float() + problem._center.float()
    torch.testing.assert_close(found, expected[rows], rtol=1e-4, atol=1e-3)
    assert problem.options["split"] != usual.options["split"]
    few = lists(tmp_path / "few.json", {**named, "train": named["train"][:5]})
    with pytest.raises(ValueError, match=r"train must name at least 20 molecules, .* found 5"):
        QM9Mini(split=few)
    run = train(problem, "ls", 0, tmp_path / "run", recipe=replace(problem.recipe, epochs=1))
    assert load_run(run.path).config.sizes == {"train": 40, "val": 10, "test": 15}


# ------------------------------------------------------------------------------------------------
# Small sets of real data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 300 molecules, 60 faces and 40 rooms, prepared."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    place = tmp_path_factory.mktemp("small")
    with np.load(SHARED / "qm9" / "qm9_10k.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    atoms, bonds = int(arrays["N"][:300].sum()), int(arrays["n_bonds"][:300].sum())
    first = {"Z": atoms, "R": atoms, "bonds": bonds}
    kept = {
        name: array if name.startswith("y_") else array[: first.get(name, 300)]
        for name, array in arrays.items()
    }
    np.savez(place / "some.npz", **kept)
    prepare_qm9(place / "some.npz", place / "qm9")

    faces = place / "faces"
    faces.mkdir()
    for name in ("list_attr_celeba.zip", "list_eval_partition.txt.gz"):
        shutil.copy(SHARED / "celeba" / name, faces)
    some(SHARED / "celeba" / "img_align_celeba_half_4000.tar", faces / "img_align_celeba_60.tar")
    prepare_celeba(faces, place / "celeba")

    some(SHARED / "nyuv2" / "nyuv2_quarter.tar", place / "nyuv2_40.tar")
    prepare_nyuv2(place / "nyuv2_40.tar", place / "nyuv2")
    return place


def some(archive: Path, to: Path) -> None:
    """Copy 60 faces, or 30 training and 10 test rooms."""
    left = {"train": 30, "val": 10}
    taken: set[str] = set()
    with tarfile.open(archive) as source, tarfile.open(to, "w") as target:
        for member in source.getmembers():
            parts = Path(member.name).parts
            if not member.isfile():
                continue
            key = "/".join((parts[-3], Path(parts[-1]).stem)) if len(parts) > 2 else parts[-1]
            split = parts[-3] if len(parts) > 2 else ""
            if key not in taken:
                if split in left and left[split] == 0:
                    continue
                if split in left:
                    left[split] -= 1
                elif len(taken) == 60:
                    continue
                taken.add(key)
            target.addfile(member, source.extractfile(member))


@needs_data
@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        (QM9, [201, 33, 66], "Only 300 of 4,500 molecules are there: 201 for training"),
        (CelebA, [42, 6, 12], "Only 60 of 4,000 images are there"),
        (NYUv2, [27, 3, 10], "Only 40 of 363 frames are there"),
    ],
)
def test_small_sets_are_trained_and_said_to_be_small(
    small: Path, tmp_path: Path, kind: Any, sizes: list[int], said: str
) -> None:
    problem = kind("small", data=str(small / kind.name))
    assert [problem.size(split) for split in ("train", "val", "test")] == sizes
    assert said in problem.notice()
    assert said in problem.recipe.description
    assert problem.recipe.batch_size <= sizes[0]
    rows = torch.cat([problem._rows[split] for split in ("train", "val", "test")])
    assert len(rows.unique()) == sum(sizes)
    run = train(problem, "ls", 0, tmp_path / "run", recipe=replace(problem.recipe, epochs=1))
    assert np.isfinite(run.result.test).all()


@needs_data
@pytest.mark.parametrize("recipe", ["small", "paper"])
@pytest.mark.parametrize("kind", [QM9, CelebA, NYUv2])
def test_lists_of_the_user_on_real_data(
    small: Path, tmp_path: Path, kind: Any, recipe: str
) -> None:
    folder = str(small / kind.name)
    usual = kind("small", data=folder)
    called: list[Any] = {
        "qm9": lambda: usual._molecules.index.tolist(),
        "celeba": lambda: [f"{number:06d}.jpg" for number in usual._faces.numbers],
        "nyuv2": lambda: list(usual._frames.facts["names"]),
    }[kind.name]()
    named = {"train": called[3:23], "val": called[:3], "test": called[-7:]}
    problem = kind(recipe, data=folder, split=lists(tmp_path / "own.json", named))
    split: Split
    for split, rows in (
        ("train", range(3, 23)),
        ("val", range(3)),
        ("test", range(len(called) - 7, len(called))),
    ):
        assert problem._rows[split].tolist() == list(rows)
    assert problem.recipe.reduced
    assert problem.options["split"].startswith("custom, SHA-256 ")
    with pytest.raises(ValueError, match=r"which is not among the .* they are called"):
        kind(recipe, data=folder, split=lists(tmp_path / "no.json", {**named, "val": ["x"]}))


@needs_data
def test_frames_are_also_called_by_their_row(small: Path, tmp_path: Path) -> None:
    path = lists(tmp_path / "rows.csv", "id,split\n0,train\n1,train\n39,test\n5,val\n")
    problem = NYUv2("small", data=str(small / "nyuv2"), split=path)
    assert problem._rows["test"].tolist() == [39]
    assert problem.recipe.batch_size == 2
