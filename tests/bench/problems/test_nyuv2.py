from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prediction_oracle import check_predictions
from released_frames import write_released

from ntkmtl import Balancer
from ntkmtl.bench import problems
from ntkmtl.bench.problems._arrays import DataMissingError
from ntkmtl.bench.problems.dense import _store as dense_store
from ntkmtl.bench.problems.dense._labels import ImageBatch, meter
from ntkmtl.bench.problems.dense._problem import clean_split
from ntkmtl.bench.problems.dense._store import load_frames
from ntkmtl.bench.problems.nyuv2 import NYUv2, normals_from_depth, prepare
from ntkmtl.bench.problems.nyuv2._problem import INTRINSICS, LAYOUT
from ntkmtl.bench.training import train
from ntkmtl.kernel import branch

REPOSITORY = Path(__file__).resolve().parents[3]
ARCHIVE = REPOSITORY.parent / "shared" / "data" / "nyuv2" / "nyuv2_quarter.tar"

H, W = 288, 384


def camera(high: int = H, wide: int = W) -> tuple[float, float, float, float]:
    fx, fy, cx, cy = INTRINSICS
    return fx * wide / 640, fy * high / 480, cx * wide / 640, cy * high / 480


def plane(normal: np.ndarray, distance: float, high: int = H, wide: int = W) -> np.ndarray:
    """Return the depth of a plane ``normal . X = -distance``, by rays through each pixel."""
    fx, fy, cx, cy = camera(high, wide)
    v, u = np.mgrid[:high, :wide]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones((high, wide))], axis=-1)
    depth: np.ndarray = -distance / (rays @ normal)
    return depth


# ------------------------------------------------------------------------------------------------
# Normals from depth


@pytest.mark.parametrize(
    "normal", [(0, 0, -1), (0.1, -0.95, -0.3), (0.6, 0.1, -0.8), (-0.5, 0.2, -0.84)]
)
def test_a_plane_has_its_normal_everywhere(normal: tuple[float, float, float]) -> None:
    n = np.array(normal) / np.linalg.norm(normal)
    depth = plane(n, 1.5, 72, 96)
    seen = depth > 0  # beyond the horizon a plane is behind the camera
    found = normals_from_depth(np.where(seen, depth, 0), window=7)
    known = np.linalg.norm(found, axis=-1) > 0
    assert known.mean() > 0.4
    assert not known[~seen].any()
    np.testing.assert_allclose(found[known], np.broadcast_to(n, found[known].shape), atol=1e-6)


def test_normals_equal_least_squares_in_each_window() -> None:
    rng = np.random.default_rng(0)
    high, wide, window = 12, 16, 5
    depth = rng.uniform(1, 4, (high, wide))
    depth[rng.random((high, wide)) < 0.2] = 0
    found = normals_from_depth(depth, window)
    fx, fy, cx, cy = camera(high, wide)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    seen = 0
    for row, column in itertools.product(range(high), range(wide)):
        cells = [
            (y, x)
            for y in range(max(0, row - 2), min(high, row + 3))
            for x in range(max(0, column - 2), min(wide, column + 3))
        ]
        inside = [(y, x) for y, x in cells if depth[y, x] > 0]
        if depth[row, column] == 0 or 2 * len(inside) < len(cells):
            assert (found[row, column] == 0).all()
            continue
        design = np.array([[x, y, 1] for y, x in inside], dtype=float)
        target = np.array([1 / depth[cell] for cell in inside])
        n = matrix.T @ np.linalg.lstsq(design, target, rcond=None)[0]
        n /= np.linalg.norm(n)
        ray = np.linalg.inv(matrix) @ [column, row, 1]
        np.testing.assert_allclose(found[row, column], -n if n @ ray > 0 else n, rtol=1e-8)
        seen += 1
    assert seen > 100


def test_normals_of_mirrored_depth_are_mirrored() -> None:
    """With a camera in the middle, as augmentation takes it to be."""
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 4, (12, 16))
    middle = (500.0, 500.0, (15 / 2) * 640 / 16, (11 / 2) * 480 / 12)
    found = normals_from_depth(depth, 5, middle)
    mirrored = normals_from_depth(depth[:, ::-1], 5, middle)[:, ::-1]
    np.testing.assert_allclose(mirrored, found * [-1, 1, 1], atol=1e-9)


def test_wrong_depth_or_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"odd number of at least 3\. Found 4"):
        normals_from_depth(np.ones((4, 4)), window=4)
    with pytest.raises(ValueError, match="finite and not negative"):
        normals_from_depth(np.full((4, 4), -1.0))


# ------------------------------------------------------------------------------------------------
# The released layout


def frame(number: int) -> dict[str, np.ndarray]:
    """Return one frame as released, that differs from number to number."""
    rng = np.random.default_rng(number)
    normal = np.array([0.1 * number, -0.3, -1.0])
    normal /= np.linalg.norm(normal)
    label = np.repeat(np.repeat(rng.integers(-1, 13, (H // 8, W // 8)), 8, 0), 8, 1)
    # Released normals were resized: some are shorter than 1.
    normals = np.broadcast_to(0.8 * normal, (H, W, 3)).copy()
    normals[:8] = 0
    depth = rng.uniform(0.5, 9.0, (H, W, 1))
    depth[:, :8] = 0
    return {
        "image": rng.random((H // 4, W // 4, 3)).repeat(4, 0).repeat(4, 1),
        "label": label.astype(np.float64),
        "depth": depth,
        "normal": normals,
    }


def write_layout(folder: Path, training: int = 2, testing: int = 1) -> Path:
    for split, count, first in (("train", training, 0), ("val", testing, 50)):
        for number in range(count):
            write_released(folder, split, number, frame(first + number))
    return folder


@pytest.mark.parametrize(
    ("array", "factor", "said"),
    [
        ("depth", 0.1, r"depths must be in meters, .* found a median of 0\.4\d*: are they in"),
        ("depth", 0.0, "some pixels must have depths, found none"),
        ("normal", 0.0, "some pixels must have normals, found none"),
        ("label", None, "some pixels must have labels, found none"),
    ],
)
def test_labels_that_are_empty_or_in_another_unit_are_refused(
    tmp_path: Path, array: str, factor: float | None, said: str
) -> None:
    for split in ("train", "val"):
        arrays = frame(3)
        arrays[array] = np.full((H, W), -1.0) if factor is None else arrays[array] * factor
        write_released(tmp_path / "source", split, 0, arrays)
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "source", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_reads_the_released_layout(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "source")
    line = prepare(source, tmp_path / "made")
    assert line.startswith("2 training and 1 test frames in ")
    assert line.endswith("normals are released")
    frames = load_frames(tmp_path / "made", LAYOUT)
    assert (len(frames), frames.training) == (3, 2)
    assert isinstance(frames.depths, np.memmap)
    assert frames.normals is not None
    for row, number in enumerate((0, 1, 50)):
        expected = frame(number)
        np.testing.assert_array_equal(frames.labels[row], expected["label"])
        np.testing.assert_array_equal(
            frames.depths[row], expected["depth"][..., 0].astype(np.float32)
        )
        assert np.abs(frames.images[row] / 255 - expected["image"]).max() <= 0.5 / 255 + 1e-9
        # Half precision turns a normal by less than 0.03 degrees.
        found = frames.normals[row].astype(np.float64)
        sine = np.linalg.norm(np.cross(found, expected["normal"] / 0.8), axis=-1)
        assert np.abs(np.linalg.norm(found[8:], axis=-1) - 1).max() < 1e-3
        assert np.degrees(sine).max() < 0.03
        assert (found[:8] == 0).all()


def changed(name: str, change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / "train" / name / "1.npy"
        array = np.load(path)
        np.save(path, change(array))

    return apply


def put(value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[5, 5] = value
        return array

    return change


def cut(path: str) -> Any:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut("train/depth/1.npy"), r"train.depth.1\.npy cannot be read"),
        (lambda f: (f / "train/image/1.npy").write_bytes(b"no"), "cannot be read"),
        (lambda f: (f / "train/normal/0.npy").unlink(), r"0\.npy is missing"),
        (lambda f: (f / "val/label/0.npy").unlink(), "different numbers of files: 1 of images"),
        (changed("image", put(7.0)), "must be from 0 to 1"),
        (changed("label", put(13.0)), "must hold classes from 0 to 12, or -1"),
        (changed("label", put(0.5)), "must hold classes from 0 to 12, or -1"),
        (changed("depth", put(-1.0)), r"must be from 0 to 20\. Found -1"),
        (changed("depth", put(np.nan)), "not finite"),
        (changed("normal", put(3.0)), r"unit vectors or 0\. Found a length of 5"),
        (changed("depth", lambda a: a[:100]), r"holds float64 \(100, 384, 1\), not numbers"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, spoil: Any, message: str) -> None:
    source = write_layout(tmp_path / "source")
    spoil(source)
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Found archives: none"):
        prepare(tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="must be named"):
        prepare(None, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="is not there"):
        prepare(tmp_path / "x.tar", tmp_path / "made")
    with pytest.raises(DataMissingError, match="`ntkmtl data nyuv2 --source PATH`"):
        NYUv2(data=str(tmp_path / "nothing"))


def test_a_stopped_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_store, "EVERY", 1)
    source = write_layout(tmp_path / "source", training=3)
    prepare(source, tmp_path / "whole")
    said: list[str] = []

    class StopError(Exception):
        pass

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("2 of 4"):
            raise StopError

    with pytest.raises(StopError):
        prepare(source, tmp_path / "made", stop)
    assert not (tmp_path / "made").exists()
    said.clear()
    prepare(source, tmp_path / "made", said.append)
    assert said == ["continuing after 2 frames", "3 of 4 frames decoded", "4 of 4 frames decoded"]
    assert (
        load_frames(tmp_path / "made", LAYOUT).sha256
        == load_frames(tmp_path / "whole", LAYOUT).sha256
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source", "whole"]


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    prepare(write_layout(tmp_path / "source"), tmp_path / "made")
    path = tmp_path / "made" / "labels.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.npy cannot be used: its SHA-256"):
        load_frames(tmp_path / "made", LAYOUT)


def test_the_paper_takes_all_frames(tmp_path: Path) -> None:
    prepare(write_layout(tmp_path / "source"), tmp_path / "made")
    with pytest.raises(ValueError, match="takes 795 training and 654 test frames"):
        NYUv2("paper", data=str(tmp_path / "made"))
    with pytest.raises(ValueError, match="at least 2 training frames"):
        clean_split(1)


# ------------------------------------------------------------------------------------------------
# Pictures in an archive


def picture(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def write_pictures(path: Path, change: dict[str, bytes | None] | None = None) -> Path:
    depth = np.clip(np.round(plane(np.array([0.0, -0.6, -0.8]), 2.0) * 25.5 - 0.5), 1, 254)
    label = np.full((H, W), 255, dtype=np.uint8)
    label[100:] = 12
    files: dict[str, bytes | None] = {}
    for split, name in (("train", "0003"), ("train", "0007"), ("val", "0001")):
        files[f"{split}/image/{name}.jpg"] = picture(np.full((H, W, 3), 90, np.uint8), "JPEG")
        files[f"{split}/label13/{name}.png"] = picture(label, "PNG")
        files[f"{split}/depth8/{name}.png"] = picture(depth.astype(np.uint8), "PNG")
    files.update(change or {})
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def test_pictures_give_derived_normals(tmp_path: Path) -> None:
    line = prepare(write_pictures(tmp_path / "nyuv2_x.tar"), tmp_path / "made")
    assert "normals are derived from depth" in line
    frames = load_frames(tmp_path / "made", LAYOUT)
    assert frames.facts["normals"].startswith("derived")
    assert frames.facts["depth"] == "8 bit, steps of 4 cm"
    assert (frames.labels[0][:100] == -1).all()
    assert (frames.labels[0][100:] == 12).all()
    assert (frames.images[0] == 90).all()
    steps = frames.depths[0].astype(np.float64) * 25.5 - 0.5
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert frames.normals is not None
    # Steps of 4 cm leave some degrees of error on a plane near the camera.
    cosine = frames.normals[0][150:].astype(float) @ [0.0, -0.6, -0.8]
    assert np.degrees(np.arccos(np.median(cosine).clip(-1, 1))) < 3


def test_an_archive_in_a_folder_is_found(tmp_path: Path) -> None:
    write_pictures(tmp_path / "nyuv2_x.tar")
    assert prepare(tmp_path, tmp_path / "made" / "a").startswith("2 training and 1 test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/depth8/0007.png": None}, r"has no train/depth8/0007\.png"),
        ({"train/image/0007.jpg": b"nothing"}, r"0007\.jpg in .* cannot be used"),
        (
            {"train/label13/0007.png": picture(np.full((H, W), 13, np.uint8), "PNG")},
            r"must hold 0 to 12, or 255 for none\. Found 13",
        ),
        (
            {"train/depth8/0007.png": picture(np.full((10, W), 13, np.uint8), "PNG")},
            "it is L of 10 x 384, not L of 288 x 384",
        ),
    ],
)
def test_damaged_pictures_are_named(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    path = write_pictures(tmp_path / "nyuv2_x.tar", change)
    with pytest.raises(ValueError, match=message):
        prepare(path, tmp_path / "made")


def test_cut_and_foreign_archives(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "nyuv2_x.tar")
    path.write_bytes(path.read_bytes()[:9_000])
    with pytest.raises(ValueError, match=r"nyuv2_x\.tar"):
        prepare(path, tmp_path / "made")
    path.write_bytes(b"no archive" * 200)
    with pytest.raises(ValueError, match="cannot be read"):
        prepare(path, tmp_path / "made")


# ------------------------------------------------------------------------------------------------
# The problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ARCHIVE.exists():
        pytest.skip("needs nyuv2 in ../shared/data")
    place = tmp_path_factory.mktemp("nyuv2") / "nyuv2"
    line = prepare(ARCHIVE, place)
    assert line.startswith("199 training and 164 test frames in ")
    return place


@pytest.fixture(scope="module")
def problem(folder: Path) -> NYUv2:
    return NYUv2("small", data=str(folder))


def test_clean_split_parts_the_frames() -> None:
    for count, held in ((795, 75), (199, 16), (80, 8)):
        train_rows, val_rows = clean_split(count)
        assert len(val_rows) == held
        assert sorted([*train_rows.tolist(), *val_rows.tolist()]) == list(range(count))


def test_the_real_frames(problem: NYUv2, folder: Path) -> None:
    assert [problem.size(split) for split in ("train", "val", "test")] == [183, 16, 164]
    frames = load_frames(folder, LAYOUT)
    assert frames.normals is not None
    lengths = np.linalg.norm(frames.normals[::40].astype(np.float32), axis=-1)
    assert np.abs(lengths - 1).max() < 2e-3
    assert float(frames.depths[::40].min()) > 0.7
    assert float(frames.depths[::40].max()) < 10
    batch = problem.batch("test", torch.arange(164))
    assert tuple(batch.images.shape) == (164, 3, 72, 96)
    assert 0 <= batch.images.min() < 0.05
    assert 0.95 < batch.images.max() <= 1
    assert batch.segmentation.unique().tolist() == list(range(-1, 13))
    assert (batch.depth > 0).all()


def test_small_frames_are_means_and_middle_pixels(problem: NYUv2, folder: Path) -> None:
    frames = load_frames(folder, LAYOUT)
    batch = problem.batch("test", torch.tensor([3]))
    row = frames.training + 3
    blocks = frames.images[row].astype(np.float64).reshape(72, 4, 96, 4, 3).mean((1, 3))
    found = batch.images[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - blocks).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(batch.segmentation[0], frames.labels[row][2::4, 2::4])
    np.testing.assert_array_equal(batch.depth[0, 0], frames.depths[row][2::4, 2::4])


def test_training_frames_are_augmented_others_are_not(problem: NYUv2, folder: Path) -> None:
    torch.manual_seed(0)
    rows = torch.arange(4)
    assert not torch.equal(problem.batch("train", rows)[0], problem.batch("train", rows)[0])
    assert torch.equal(problem.batch("val", rows)[0], problem.batch("val", rows)[0])
    plain = NYUv2("small", data=str(folder), augmentation="none")
    assert torch.equal(plain.batch("train", rows)[0], plain.batch("train", rows)[0])


def test_counts_are_labeled_pixels(problem: NYUv2) -> None:
    batch = problem.batch("val", torch.arange(5))
    counts = problem.counts(batch)
    assert counts.shape == (3, 5)
    for b in range(5):
        assert int(counts[0, b]) == int((batch.segmentation[b] >= 0).sum())
    assert counts[0].unique().numel() > 1
    assert torch.equal(problem.counts(batch, ["depth"]), counts[1:2])


def test_evaluation_is_over_all_pixels(problem: NYUv2, monkeypatch: pytest.MonkeyPatch) -> None:
    from ntkmtl.bench.problems.dense import _problem as dense_problem

    torch.manual_seed(0)
    model = problem.model()
    expected = problem.evaluate(model, "val")
    monkeypatch.setattr(dense_problem, "EVALUATED_PIXELS", 3 * 4 * 72 * 96)
    torch.testing.assert_close(problem.evaluate(model, "val"), expected, rtol=1e-4, atol=0.02)
    assert model.training
    model.eval()
    with torch.no_grad():
        batch = problem.batch("val", torch.arange(16))
        outputs = model.predict(model.represent(batch))
    values = []
    for kind, output in zip(problem.tasks, outputs, strict=True):
        one = meter(kind, 13)  # type: ignore[arg-type]
        one.update(output, batch.labels(kind))  # type: ignore[arg-type]
        values += one.values()
    torch.testing.assert_close(expected, torch.tensor(values, dtype=torch.float64))


def test_options_are_checked(problem: NYUv2, folder: Path) -> None:
    for name in ("recipe", "architecture", "protocol", "augmentation"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            problems.create(
                "nyuv2", **{"recipe": "small", "data": str(folder), name: "none at all"}
            )
    assert json.loads(json.dumps(problem.options)) == problem.options
    other = NYUv2("small", data=str(folder), protocol="paper")
    assert (other.size("train"), other.size("val")) == (199, 0)
    assert (other.recipe.tested_epochs, problem.recipe.tested_epochs) == (10, 1)
    assert "derived from depth" in problem.describe()
    assert "4 cm" in problem.notice()
    assert "averages" not in problem.notice()
    assert "last 10 epochs, and the recipe has 10 epochs" in other.notice()
    assert "4 cm" in other.notice()
    with pytest.raises(ValueError, match="no task is named 'sky'"):
        problem.model(["sky"])


def test_metrics_are_the_papers() -> None:
    from ntkmtl.bench import paper

    columns = [c for c in paper.table(1).columns if c.name not in ("mr", "delta_m")]
    for metric, column in zip(NYUv2.metrics, columns, strict=True):
        assert (metric.name, metric.label, metric.unit) == (column.name, column.label, column.unit)
        assert metric.higher_is_better == column.higher_is_better


@pytest.mark.parametrize("architecture", ["mtan", "segnet"])
@pytest.mark.parametrize("method", ["ls", "si", "uw", "famo", "fairgrad", "ntkmtl", "ntkmtl-sr"])
def test_methods_run_on_it(folder: Path, architecture: str, method: str) -> None:
    problem = NYUv2("small", data=str(folder), architecture=architecture)
    torch.manual_seed(0)
    model = problem.model()
    balancer = Balancer(
        method, tasks=problem.tasks, **({"minibatches": 2} if method == "ntkmtl-sr" else {})
    )
    batch = problem.batch("train", torch.arange(2))
    features = model.represent(batch)
    views = branch(features, 3) if isinstance(features, torch.Tensor) else features
    losses = problem.losses(model.predict(views), batch)
    balancer.backward(losses, features=views, counts=problem.counts(batch))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_single_task_networks(problem: NYUv2) -> None:
    batch = problem.batch("val", torch.arange(2))
    for task, count in (("segmentation", 2), ("depth", 2), ("normals", 5)):
        model = problem.model([task])
        losses = problem.losses(model.predict(model.represent(batch)), batch, [task])
        assert list(losses) == [task]
        assert problem.evaluate(model, "val", [task]).shape == (count,)


def trivial(folder: Path) -> torch.Tensor:
    """Return the test metrics of the best constant: commonest class, mean depth, mean normal."""
    plain = NYUv2("small", data=str(folder), augmentation="none")
    seen: ImageBatch = plain.batch("train", torch.arange(plain.size("train")))
    asked: ImageBatch = plain.batch("test", torch.arange(plain.size("test")))
    known = seen.segmentation[seen.segmentation >= 0]
    assert seen.normals is not None
    normal = torch.nn.functional.normalize(seen.normals.sum(dim=(0, 2, 3)), dim=0)
    shape = (len(asked.images), -1, 72, 96)
    scores = torch.nn.functional.one_hot(known.bincount().argmax(), 13).float()
    values = []
    for kind, constant in (
        ("segmentation", scores),
        ("depth", seen.depth.mean().reshape(1)),
        ("normals", normal),
    ):
        one = meter(kind, 13)  # type: ignore[arg-type]
        one.update(constant.reshape(1, -1, 1, 1).expand(shape), asked.labels(kind))  # type: ignore[arg-type]
        values += one.values()
    return torch.tensor(values, dtype=torch.float64)


MARGINS = {
    "miou": 3.0,
    "pixel_accuracy": 6.0,
    "abs_error": 0.07,
    "rel_error": 0.05,
    "normal_mean": 3.0,
    "normal_median": 4.0,
}
"""By how much, in the metric's unit, the small recipe must beat the best constant."""


@pytest.mark.slow
def test_small_recipe_beats_the_best_constant(problem: NYUv2, folder: Path, tmp_path: Path) -> None:
    run = train(problem, "ls", 0, tmp_path / "run", threads=1)
    constant = trivial(folder).tolist()
    for metric, found, other in zip(problem.metrics, run.result.test, constant, strict=True):
        gain = found - other if metric.higher_is_better else other - found
        assert gain > MARGINS.get(metric.name, -math.inf), (metric.name, found, other)


@pytest.mark.parametrize("tasks", [None, ("normals",)])
def test_metrics_follow_from_predictions(problem: NYUv2, tasks: tuple[str] | None) -> None:
    check_predictions(problem, tasks)
