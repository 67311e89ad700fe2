"""Values in another unit, empty labels and wrong files are refused, unless the user insists."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from released_frames import write_released
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems.celeba import ATTRIBUTES
from ntkmtl.bench.problems.celeba import prepare as prepare_celeba
from ntkmtl.bench.problems.celeba._store import implausible
from ntkmtl.bench.problems.cityscapes import Cityscapes
from ntkmtl.bench.problems.cityscapes import prepare as prepare_cityscapes
from ntkmtl.bench.problems.nyuv2 import NYUv2
from ntkmtl.bench.problems.nyuv2 import prepare as prepare_nyuv2
from ntkmtl.bench.problems.qm9 import QM9, read_source
from ntkmtl.bench.problems.qm9 import prepare as prepare_qm9

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
HOW_TO_INSIST = "--accept-implausible"


# ------------------------------------------------------------------------------------------------
# Molecules: 200 real ones, one thing changed


def molecules(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    with np.load(SHARED / "qm9" / "qm9_10k.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    atoms, bonds = int(arrays["N"][:200].sum()), int(arrays["n_bonds"][:200].sum())
    first = {"Z": atoms, "R": atoms, "bonds": bonds, "hyb": atoms}
    arrays = {
        name: array if name.startswith("y_") else array[: first.get(name, 200)].copy()
        for name, array in arrays.items()
    }
    change(arrays)
    np.savez(path, **arrays)
    return path


def times(column: str, factor: float) -> Callable[[dict[str, Any]], object]:
    def change(arrays: dict[str, Any]) -> None:
        arrays["y"][:, list(arrays["y_names"]).index(column)] *= factor

    return change


def converted_with_factors_of_one(arrays: dict[str, Any]) -> None:
    arrays["y"] = arrays["y"] * arrays["y_to_pyg"]
    arrays["y_to_pyg"] = np.ones_like(arrays["y_to_pyg"])


@needs_data
def test_values_that_are_converted_already_are_right_with_factors_of_one(tmp_path: Path) -> None:
    plain = read_source(molecules(tmp_path / "a.npz", lambda arrays: None))
    same = read_source(molecules(tmp_path / "b.npz", converted_with_factors_of_one))
    np.testing.assert_allclose(plain.targets, same.targets, rtol=1e-12)


@needs_data
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(y_to_pyg=np.ones(19)), "u0 must be in eV, from -300"),
        (lambda a: a.update(y=a["y"] * a["y_to_pyg"]), "homo must be in eV, .* found -1"),
        (times("homo", 1 / 27.2114), "homo must be in eV, with a median of -12 to -3, found -0.2"),
        (times("homo", 23.06), "homo must be in eV, from -25 to 0, found -1"),
        (times("homo", -1), "homo must be in eV, from -25 to 0, found"),
        (times("lumo", 1 / 27.2114), "lumo must be in eV, with 5 % and 95 %"),
        (times("zpve", 1 / 27.2114), "zpve must be in eV, from 0.1"),
        (times("zpve", 23.06), "zpve must be in eV, from 0.1 to 20"),
        (times("u0_atom", 1 / 23.06), "u0 must be in eV, with a median per atom of -7 to -2.5"),
        (times("g298_atom", 4.184), "g must be in eV, from -300"),
        (times("h298_atom", 0.1), "h must be in eV, with a median per atom"),
        (times("alpha", 0.148185), "alpha must be in a0"),
        (times("r2", 0.28), "r2 must be in a0.2, 0.8 to 6 times"),
        (times("r2", 10), "r2 must be in a0.2"),
        (times("cv", 4.184), "cv must be in cal"),
        (times("mu", 0.393), "mu must be in D, with a median of 1.2 to 8"),
        (lambda a: a.update(R=a["R"] / 0.529177), "places must be in Angstrom, .* found 2.0"),
        (lambda a: a.update(R=a["R"] / 10), "places must be in Angstrom, .* found 0.1"),
        (lambda a: a.update(y=a["y"][::-1]), "targets and places of different molecules"),
    ],
)
def test_molecules_in_other_units(tmp_path: Path, change: Any, said: str) -> None:
    path = molecules(tmp_path / "x.npz", change)
    with pytest.raises(ValueError, match=said) as caught:
        prepare_qm9(path, tmp_path / "made")
    assert HOW_TO_INSIST in str(caught.value)
    assert not (tmp_path / "made").exists()


@needs_data
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("y_to_pyg"), "has no array y_to_pyg; it has .*1 where y is in these"),
        (lambda a: a.pop("bonds"), "has no array bonds"),
        (
            lambda a: a.update(y_names=np.array([f"c{k}" for k in range(19)])),
            "y_names has no mu, alpha, homo, .*; it has c0, c1",
        ),
        (lambda a: a.update(y=a["y"][:, :4]), r"y must have shape \(200, 19\), .* \(200, 4\)"),
    ],
)
def test_missing_columns_are_told(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_source(molecules(tmp_path / "x.npz", change))


@needs_data
def test_who_insists_is_obeyed_and_reminded(tmp_path: Path) -> None:
    path = molecules(tmp_path / "x.npz", times("mu", 0.393))
    command = ["data", "qm9", "--source", str(path), "--data", str(tmp_path / "made")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "mu must be in D" in refused.stderr
    assert CliRunner().invoke(app, [*command, HOW_TO_INSIST]).exit_code == 0
    problem = QM9("small", data=str(tmp_path / "made"))
    assert problem.notice().startswith("These data were accepted though mu must be in D")


def test_insisting_goes_with_a_problem() -> None:
    result = CliRunner().invoke(app, ["data", HOW_TO_INSIST])
    assert result.exit_code == 2
    assert "--accept-implausible goes with a PROBLEM" in result.stderr


# ------------------------------------------------------------------------------------------------
# Rooms and streets, in the released layout


def room(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    label = rng.integers(0, 13, (36, 48)).repeat(8, 0).repeat(8, 1).astype(float)
    normal = np.broadcast_to(np.array([0.6, 0.0, -0.8]), (288, 384, 3)).copy()
    return {
        "image": rng.random((36, 48, 3)).repeat(8, 0).repeat(8, 1),
        "label": label,
        "depth": rng.uniform(1.0, 4.0, (288, 384, 1)),
        "normal": normal,
    }


def street(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    label = rng.integers(0, 7, (16, 32)).repeat(8, 0).repeat(8, 1).astype(float)
    # The road below is nearer than what is above: from 0.01 to 0.1.
    rows = np.linspace(0.01, 0.1, 128)[:, None, None]
    return {
        "image": rng.random((16, 32, 3)).repeat(8, 0).repeat(8, 1),
        "label": label,
        "depth": rows * rng.uniform(0.8, 1.2, (128, 256, 1)),
    }


def written(folder: Path, frame: Any, change: Any, count: int = 2) -> Path:
    for split in ("train", "val"):
        for number in range(count):
            arrays = frame(number)
            change(arrays)
            write_released(folder, split, number, arrays)
    return folder


def put(name: str, change: Any) -> Any:
    return lambda arrays: arrays.update({name: change(arrays[name])})


@pytest.mark.parametrize(
    ("change", "said", "insisting"),
    [
        (
            put("depth", lambda a: a / 10),
            "depths must be in meters, .* found a median of 0.2",
            True,
        ),
        (put("depth", lambda a: a * 10), "must be from 0 to 20. Found", True),
        (put("depth", lambda a: a * 1000), "must be from 0 to 20. Found", True),
        (put("depth", lambda a: np.full_like(a, 2.0)), "must differ .* found 2 everywhere", True),
        (put("normal", lambda a: a * 10), "unit vectors or 0. Found a length of 10", True),
        (put("normal", lambda a: a * 0.5), "unit vectors or 0. Found a median length of 0.5", True),
        (put("normal", np.abs), "no component below 0: are they colors", True),
        (put("normal", lambda a: (a + 1) / 2 * 255), "Found a length of", True),
        (put("normal", lambda a: a * 0), "some pixels must have normals, found none", False),
        (put("label", lambda a: a + 1), "must hold classes from 0 to 12, or -1", False),
        (put("label", lambda a: a * 0 - 1), "some pixels must have labels", False),
        (put("image", lambda a: a * 255), "must be from 0 to 1. Found", False),
        (put("image", lambda a: a / 255), "images must show something, found a mean of 0.00", True),
    ],
)
def test_rooms_in_other_units(tmp_path: Path, change: Any, said: str, insisting: bool) -> None:
    source = written(tmp_path / "source", room, change)
    with pytest.raises(ValueError, match=said) as caught:
        prepare_nyuv2(source, tmp_path / "made")
    assert (HOW_TO_INSIST in str(caught.value)) == insisting
    assert not (tmp_path / "made").exists()
    if insisting:
        prepare_nyuv2(source, tmp_path / "made", accept_implausible=True)


def test_rooms_of_one_class_only(tmp_path: Path) -> None:
    source = written(tmp_path / "source", room, put("label", lambda a: a * 0 + 3), count=10)
    with pytest.raises(ValueError, match="of several classes, found class 3 only"):
        prepare_nyuv2(source, tmp_path / "made")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("depth", lambda a: a * 256), "disparities must be in the released scale, .* 13"),
        (put("depth", lambda a: a * 65536), "must be from -1 to 256"),
        (put("depth", lambda a: a / 10), "disparities must be in the released scale"),
        (put("depth", lambda a: 0.01 / a), "road is near, .*are they depths"),
        (put("depth", lambda a: 0.2 / a), "disparities must be in the released scale"),
        (put("depth", lambda a: a * 0), "some pixels must have depths"),
        (put("label", lambda a: a * 3), "must hold classes from 0 to 6, or -1"),
    ],
)
def test_streets_in_other_units(tmp_path: Path, change: Any, said: str) -> None:
    source = written(tmp_path / "source", street, change)
    with pytest.raises(ValueError, match=said):
        prepare_cityscapes(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_rooms_and_streets_as_they_should_be(tmp_path: Path) -> None:
    prepare_nyuv2(written(tmp_path / "a", room, lambda arrays: None, 11), tmp_path / "rooms")
    assert "accepted" not in NYUv2("small", data=str(tmp_path / "rooms")).notice()
    prepare_cityscapes(written(tmp_path / "b", street, lambda arrays: None, 11), tmp_path / "roads")
    assert "accepted" not in Cityscapes("small", data=str(tmp_path / "roads")).notice()


@needs_data
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: np.minimum(a.astype(float) * 10, 255).astype(np.uint8), "depths must be"),
        (lambda a: a // 10, "depths must be in meters"),
        (lambda a: np.full_like(a, 60), "depths must differ from pixel to pixel"),
    ],
)
def test_real_rooms_with_depths_in_other_units(tmp_path: Path, change: Any, said: str) -> None:
    left = {"train": 4, "val": 2}
    taken: set[tuple[str, str]] = set()
    with (
        tarfile.open(SHARED / "nyuv2" / "nyuv2_quarter.tar") as source,
        tarfile.open(tmp_path / "nyuv2_x.tar", "w") as target,
    ):
        for member in filter(tarfile.TarInfo.isfile, source.getmembers()):
            split, kind, name = Path(member.name).parts[-3:]
            frame = (split, Path(name).stem)
            if frame not in taken and len([f for f in taken if f[0] == split]) == left[split]:
                continue
            taken.add(frame)
            file = source.extractfile(member)
            assert file is not None
            content = file.read()
            if kind == "depth8":
                pixels = np.asarray(Image.open(io.BytesIO(content)))
                made = io.BytesIO()
                Image.fromarray(change(pixels)).save(made, "PNG")
                content = made.getvalue()
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=said):
        prepare_nyuv2(tmp_path / "nyuv2_x.tar", tmp_path / "made")


# ------------------------------------------------------------------------------------------------
# Faces


def faces(folder: Path, size: tuple[int, int], count: int = 3, value: int | None = None) -> Path:
    folder.mkdir()
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    lines = [str(count), " ".join(ATTRIBUTES)]
    for row, name in enumerate(names):
        values = [1 if (row + k) % 3 == 0 else -1 for k in range(40)]
        lines.append(f"{name} " + " ".join(map(str, values)))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parted = "\n".join(f"{name} {row % 3}" for row, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(parted + "\n")
    (folder / "img_align_celeba").mkdir()
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        if value is not None:
            pixels[:] = value
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name, "JPEG")
    return folder


@pytest.mark.parametrize("size", [(9, 300), (300, 9), (20, 24), (178, 400)])
def test_images_of_a_shape_that_no_face_has(tmp_path: Path, size: tuple[int, int]) -> None:
    source = faces(tmp_path / "source", size)
    said = rf"000001.jpg in .* 178 x 218 .*found {size[0]} x {size[1]}\. .*{HOW_TO_INSIST}"
    with pytest.raises(ValueError, match=said):
        prepare_celeba(source, tmp_path / "made")
    prepare_celeba(source, tmp_path / "made", accept_implausible=True)


@pytest.mark.parametrize("size", [(178, 218), (89, 109), (64, 64), (128, 160)])
def test_images_of_other_sizes_are_taken(tmp_path: Path, size: tuple[int, int]) -> None:
    assert prepare_celeba(faces(tmp_path / "source", size), tmp_path / "made").startswith("3 ")


@pytest.mark.parametrize(("value", "said"), [(0, "found a mean of 0.0"), (90, "equal ones of 3")])
def test_images_that_show_nothing(tmp_path: Path, value: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"images must .*{said}"):
        prepare_celeba(faces(tmp_path / "source", (178, 218), value=value), tmp_path / "made")


@needs_data
def test_attributes_with_one_value_only(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(SHARED / "celeba" / "list_attr_celeba.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()[2:4002]
    labels = np.array([[v == "1" for v in line.split()[1:]] for line in lines], dtype=np.uint8)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (100, 64, 64, 3), dtype=np.uint8)
    # Any real part of any size is taken.
    for count in (1, 2, 5, 20, 100, 300, 1000, 4000):
        assert implausible(labels[:count], images) == []
    always = labels.copy()
    always[:, ATTRIBUTES.index("Smiling")] = 1
    assert implausible(always[:10], images) == []
    said = implausible(always[:100], images)[0]
    assert said.endswith("found 1 of 40 with one value only, as Smiling")
    assert "found 40 of 40" in implausible(np.zeros_like(labels), images)[0]


@needs_data
@pytest.mark.parametrize("value", ["0", "2", "yes"])
def test_attributes_of_other_values(tmp_path: Path, value: str) -> None:
    source = faces(tmp_path / "source", (178, 218))
    path = source / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace(" -1", f" {value}", 1))
    with pytest.raises(ValueError, match=f"40 times 1 or -1, found '{value}'"):
        prepare_celeba(source, tmp_path / "made")
    shutil.rmtree(source)


def test_what_was_accepted_stands_in_the_manifest(tmp_path: Path) -> None:
    source = faces(tmp_path / "source", (178, 218), value=90)
    prepare_celeba(source, tmp_path / "made", accept_implausible=True)
    facts = json.loads((tmp_path / "made" / "manifest.json").read_text())["facts"]
    assert facts["accepted_as_implausible"] == ["images must differ, found 3 equal ones of 3"]
