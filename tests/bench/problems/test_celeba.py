from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prediction_oracle import check_predictions
from torch import nn
from torchmetrics.functional.classification import binary_f1_score

from ntkmtl.bench import problems
from ntkmtl.bench.problems import _arrays
from ntkmtl.bench.problems._arrays import DataMissingError
from ntkmtl.bench.problems.celeba import (
    ATTRIBUTES,
    CelebA,
    FaceBatch,
    _store,
    f1_scores,
    load,
    prepare,
    read_annotations,
)
from ntkmtl.bench.problems.celeba._network import CelebANetwork
from ntkmtl.bench.problems.celeba._store import PARTITION
from ntkmtl.bench.training import train

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY.parent / "shared" / "data" / "celeba"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs celeba in ../shared/data")

COUNT = 12


def picture(number: int) -> bytes:
    """Return a JPEG of the released size that differs from image to image."""
    y, x = np.mgrid[:218, :178]
    pixels = np.stack([x + 9 * number, y, 3 * x + 2 * y], axis=-1) % 256
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_release(folder: Path, images: str = "folder", parts: bool = False) -> Path:
    """Write files of the released layout, with 12 images."""
    annotations = folder / "Anno" if parts else folder
    evaluation = folder / "Eval" if parts else folder
    place = folder / "Img" if parts else folder
    for path in (annotations, evaluation, place):
        path.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
    lines = [str(COUNT), " ".join(ATTRIBUTES) + " "]
    for row, name in enumerate(names):
        values = [1 if (row + column) % 3 == 0 else -1 for column in range(40)]
        lines.append(f"{name} " + " ".join(f"{value:2d}" for value in values))
    (annotations / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{name} {row % 3}" for row, name in enumerate(names)]
    (evaluation / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    if images == "folder":
        (place / "img_align_celeba").mkdir()
        for number, name in enumerate(names, start=1):
            (place / "img_align_celeba" / name).write_bytes(picture(number))
    elif images == "zip":
        with zipfile.ZipFile(place / "img_align_celeba.zip", "w") as archive:
            for number, name in enumerate(names, start=1):
                archive.writestr(f"img_align_celeba/{name}", picture(number))
    else:
        with tarfile.open(place / "img_align_celeba_some.tar", "w") as tar:
            for number, name in list(enumerate(names, start=1))[::2]:
                entry = tarfile.TarInfo(f"some/{name}")
                entry.size = len(picture(number))
                tar.addfile(entry, io.BytesIO(picture(number)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SHARED.exists():
        pytest.skip("needs celeba in ../shared/data")
    place = tmp_path_factory.mktemp("celeba") / "celeba"
    assert prepare(SHARED, place).startswith("4,000 images (of CelebA's 202,599) in ")
    return place


@pytest.fixture(scope="module")
def problem(folder: Path) -> CelebA:
    return CelebA("small", data=str(folder))


# ------------------------------------------------------------------------------------------------
# The released files


@pytest.mark.parametrize("images", ["folder", "zip"])
@pytest.mark.parametrize("parts", [False, True])
def test_reads_the_released_layout(tmp_path: Path, images: str, parts: bool) -> None:
    source = write_release(tmp_path / "source", images, parts)
    assert prepare(source, tmp_path / "made").startswith("12 images")
    faces, _ = load(tmp_path / "made")
    assert faces.images.shape == (12, 64, 64, 3)
    assert faces.numbers.tolist() == list(range(1, 13))
    assert faces.partition.tolist() == [0, 1, 2] * 4
    assert faces.labels[1].tolist() == [int((1 + c) % 3 == 0) for c in range(40)]
    for row in (0, 7):
        with Image.open(io.BytesIO(picture(row + 1))) as image:
            expected = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(faces.images[row], np.asarray(expected))
    assert isinstance(faces.images, np.memmap)
    assert not faces.images.flags.writeable


def test_a_part_of_the_images(tmp_path: Path) -> None:
    source = write_release(tmp_path / "source", "tar")
    prepare(source, tmp_path / "made")
    faces, _ = load(tmp_path / "made")
    assert faces.numbers.tolist() == [1, 3, 5, 7, 9, 11]
    assert faces.partition.tolist() == [0, 2, 1, 0, 2, 1]


@needs_data
def test_the_real_annotations() -> None:
    annotations = read_annotations(SHARED)
    assert len(annotations.names) == 202_599
    assert np.bincount(annotations.partition).tolist() == list(PARTITION.values())
    # Male, 84,434 of 202,599, is the number that the literature gives.
    assert int(annotations.labels[:, ATTRIBUTES.index("Male")].sum()) == 84_434


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("list_attr_celeba.txt", lambda t: t[: len(t) // 2], "12 images and has lines for"),
        ("list_attr_celeba.txt", lambda t: t.replace("12\n", "13\n", 1), "says 13 images"),
        ("list_attr_celeba.txt", lambda t: t.replace("Bald", "Bold"), "not the 40 attributes"),
        ("list_attr_celeba.txt", lambda t: t.replace(" -1", "  0", 1), "line 3 of .* 1 or -1"),
        ("list_attr_celeba.txt", lambda t: t.replace("000002", "000001"), "must rise"),
        ("list_attr_celeba.txt", lambda t: t[3:], "must begin with the number"),
        ("list_eval_partition.txt", lambda t: t[:-13], "names 11 images"),
        ("list_eval_partition.txt", lambda t: t.replace(" 2", " 3", 1), "0, 1 or 2"),
        ("list_eval_partition.txt", lambda t: t.replace("000004", "000099"), "or others"),
    ],
)
def test_damaged_annotations(tmp_path: Path, name: str, change: object, message: str) -> None:
    source = write_release(tmp_path / "source")
    text = (source / name).read_text()
    (source / name).write_text(change(text))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        read_annotations(source)


def test_damaged_archives_of_annotations(tmp_path: Path) -> None:
    source = write_release(tmp_path / "source")
    text = (source / "list_eval_partition.txt").read_bytes()
    (source / "list_eval_partition.txt").unlink()
    (source / "list_eval_partition.txt.gz").write_bytes(gzip.compress(text)[:-9])
    with pytest.raises(ValueError, match=r"partition\.txt\.gz cannot be read"):
        read_annotations(source)
    (source / "list_eval_partition.txt.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no list_eval_partition\.txt"):
        read_annotations(source)


def test_missing_and_unknown_images(tmp_path: Path) -> None:
    source = write_release(tmp_path / "source")
    images = source / "img_align_celeba"
    (images / "000005.jpg").rename(images / "000044.jpg")
    with pytest.raises(ValueError, match=r"holds 000044\.jpg .*attributes do not name"):
        prepare(source, tmp_path / "made")
    (images / "000044.jpg").unlink()
    with pytest.raises(ValueError, match=r"11 images, .* name 12: 000005\.jpg is missing"):
        prepare(source, tmp_path / "made")
    shutil.rmtree(images)
    with pytest.raises(FileNotFoundError, match="img_align_celeba as a folder"):
        prepare(source, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="must be named"):
        prepare(None, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("damage", [lambda c: c[:2000], lambda c: b"no image at all" + c[:99]])
def test_damaged_image_is_named_and_decoding_goes_on_from_there(
    tmp_path: Path, damage: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "EVERY", 4)
    source = write_release(tmp_path / "source")
    path = source / "img_align_celeba" / "000010.jpg"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"000010\.jpg in .* is not a whole image"):
        prepare(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    path.write_bytes(whole)
    said: list[str] = []
    prepare(source, tmp_path / "made", said.append)
    assert said == ["continuing after 8 images", "12 of 12 images decoded"]
    prepare(source, tmp_path / "again")
    assert load(tmp_path / "made")[1] == load(tmp_path / "again")[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "made", "source"]


def test_decoding_into_the_working_directory_goes_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "EVERY", 4)
    source = write_release(tmp_path / "source")
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    path = source / "img_align_celeba" / "000010.jpg"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole image"):
        prepare(source, Path())
    path.write_bytes(whole)
    for first in ("continuing after 8 images", "4 of 12 images decoded"):
        said: list[str] = []
        prepare(source, Path(), said.append)
        assert said[0] == first
        assert len(load(Path())[0].images) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source"]
    assert {p.suffix for p in Path().iterdir()} == {".npy", ".json"}


def test_decoding_begins_again_for_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "EVERY", 4)
    source = write_release(tmp_path / "source")
    (source / "img_align_celeba" / "000010.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole image"):
        prepare(source, tmp_path / "made")
    other = write_release(tmp_path / "other", "zip")
    said: list[str] = []
    prepare(other, tmp_path / "made", said.append)
    assert said[0] == "4 of 12 images decoded"


def test_cut_off_archive(tmp_path: Path) -> None:
    source = write_release(tmp_path / "source", "zip")
    path = source / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"img_align_celeba\.zip cannot be read"):
        prepare(source, tmp_path / "made")


# ------------------------------------------------------------------------------------------------
# Prepared data


def test_missing_and_damaged_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="`ntkmtl data celeba --source DIR`"):
        CelebA("small", data=str(tmp_path / "none"))
    prepare(write_release(tmp_path / "source"), tmp_path / "made")
    with pytest.raises(ValueError, match=r"takes 202,599 images, and .* holds 12"):
        CelebA(data=str(tmp_path / "made"))
    path = tmp_path / "made" / "images.npy"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.npy cannot be used: its SHA-256"):
        load(tmp_path / "made")
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"images\.npy cannot be used: it has"):
        load(tmp_path / "made")


def test_large_arrays_are_read_again_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    prepare(write_release(tmp_path / "source"), tmp_path / "made")
    monkeypatch.setattr(_arrays, "TRUSTED", 10_000)
    digested: list[str] = []
    digest = _arrays.file_digest
    monkeypatch.setattr(
        _arrays, "file_digest", lambda path: (digested.append(path.name), digest(path))[1]
    )
    load(tmp_path / "made")
    assert sorted(digested) == ["labels.npy", "numbers.npy", "partition.npy"]
    path = tmp_path / "made" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        load(tmp_path / "made")


# ------------------------------------------------------------------------------------------------
# The problem


def test_the_paper_recipe_is_that_of_the_paper() -> None:
    recipe = CelebA.recipes["paper"]
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (15, 256, 3e-4)
    assert (recipe.schedule, recipe.minibatches, recipe.reduced) == ("constant", 4, False)
    assert len(CelebA.tasks) == len(CelebA.metrics) == 40
    assert CelebA.recipes["small"].reduced


def test_parameters_follow_from_the_published_definition(problem: CelebA) -> None:
    def count(width: int, heads: int) -> int:
        channels = [3, *(times * width for times in (1, 2, 2, 4, 4, 8, 8))]
        convolutions = sum(9 * a * b for a, b in itertools.pairwise(channels))
        top = 8 * width
        norms = 2 * sum(channels[1:]) + 2 * 2 * top
        return convolutions + norms + 2 * top * top + heads * (top + 1)

    assert sum(p.numel() for p in CelebANetwork().parameters()) == count(64, 40)
    assert sum(p.numel() for p in problem.model().parameters()) == count(16, 8)
    assert sum(p.numel() for p in problem.model(tasks=["Male"]).parameters()) == count(16, 1)
    layers = [m for m in CelebANetwork().trunk if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 9


def test_small_split_and_attributes(problem: CelebA) -> None:
    assert [problem.size(s) for s in ("train", "val", "test")] == [2800, 400, 800]
    rows = torch.cat([problem._rows[s] for s in ("train", "val", "test")])
    assert len(rows.unique()) == 4000
    share = problem._faces.labels[:4000].mean(axis=0)
    balanced = np.argsort(np.abs(share - 0.5))[:8]
    assert sorted(ATTRIBUTES[i] for i in balanced) == sorted(problem.tasks)
    assert set(problem._faces.partition.tolist()) == {0}


def test_batch_is_the_mean_of_four_pixels(problem: CelebA) -> None:
    batch = problem.batch("val", torch.tensor([3, 0]))
    assert batch.images.shape == (2, 3, 32, 32)
    row = int(problem._rows["val"][3])
    pixels = problem._faces.images[row].astype(float) / 255
    expected = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(batch.images[0].numpy(), expected, atol=1e-6)
    columns = [ATTRIBUTES.index(task) for task in problem.tasks]
    assert batch.labels[0].tolist() == problem._faces.labels[row, columns].tolist()


def test_options_are_json_without_the_place(problem: CelebA, folder: Path) -> None:
    assert json.loads(json.dumps(problem.options)) == problem.options
    assert str(folder) not in json.dumps(problem.options)
    assert "2,800 for training" in problem.describe()


def test_f1_equals_that_of_torchmetrics() -> None:
    labels = torch.rand(200, 5) < torch.tensor([0.5, 0.1, 0.9, 0.0, 0.3])
    predicted = torch.rand(200, 5) < torch.tensor([0.5, 0.3, 0.9, 0.1, 0.0])
    found = f1_scores(predicted, labels)
    for column in range(5):
        expected = binary_f1_score(predicted[:, column].int(), labels[:, column].int())
        assert float(found[column]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("tasks", [None, ["Smiling", "Male"]])
def test_evaluate_equals_torchmetrics(problem: CelebA, tasks: list[str] | None) -> None:
    model = problem.model(tasks)
    batch = problem.batch("val", torch.arange(400))
    # Statistics of batch norm that fit the images, so that not all logits have one sign.
    for _ in range(20):
        model.represent(problem.batch("train", torch.arange(128)))
    found = problem.evaluate(model, "val", tasks)
    assert model.training
    model.eval()
    with torch.no_grad():
        outputs = model.predict(model.represent(batch))
    names = tasks or list(problem.tasks)
    expected = [
        float(
            binary_f1_score(
                outputs[names.index(metric.task)].sigmoid(),
                batch.labels[:, problem.tasks.index(metric.task)].int(),
            )
        )
        for metric in problem.metrics
        if metric.task in names
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert max(expected) > 0


def test_losses_of_some_tasks(problem: CelebA) -> None:
    batch = problem.batch("train", torch.arange(16))
    outputs = list(torch.randn(8, 16).unbind(0))
    losses = problem.losses(outputs, batch)
    for column, task in enumerate(problem.tasks):
        p, y = outputs[column].sigmoid(), batch.labels[:, column]
        expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        torch.testing.assert_close(losses[task], expected)
    some = problem.losses([outputs[3], outputs[0]], batch, ["Male", "Attractive"])
    assert some == {task: losses[task] for task in ("Male", "Attractive")}
    with pytest.raises(ValueError, match="2 outputs for 8 tasks"):
        problem.losses(outputs[:2], batch)
    with pytest.raises(ValueError, match="no task is named 'Bald'"):
        problem.model(["Bald"])


def test_network_takes_a_batch_or_its_images(problem: CelebA) -> None:
    model = problem.model().eval()
    batch = problem.batch("val", torch.arange(4))
    assert isinstance(batch, FaceBatch)
    torch.testing.assert_close(model.represent(batch), model.represent(batch.images))


def test_unknown_recipe(folder: Path) -> None:
    with pytest.raises(ValueError, match="recipe must be one of paper, small"):
        problems.create("celeba", recipe="large", data=str(folder))


def constant_f1(problem: CelebA) -> torch.Tensor:
    """Return the F1 scores of the better constant: always saying yes; saying no scores 0."""
    share = problem._labels[problem._rows["test"]].double().mean(0)
    return 2 * share / (1 + share)


def test_single_task_baseline(problem: CelebA, tmp_path: Path) -> None:
    recipe = dataclasses.replace(problem.recipe, epochs=1, batch_size=400)
    done = train(problem, "stl", 0, tmp_path, recipe=recipe, single_task="Male", threads=1)
    assert done.config.tasks == ("Male",)
    assert len(done.result.test) == 1


def test_two_epochs_learn(problem: CelebA, tmp_path: Path) -> None:
    recipe = dataclasses.replace(problem.recipe, epochs=2)
    done = train(problem, "ls", 0, tmp_path, recipe=recipe, threads=1)
    first, last = done.history
    assert sum(last.train_losses) < 0.95 * sum(first.train_losses)
    assert float(torch.tensor(done.result.test).mean() - constant_f1(problem).mean()) > 0.02


@pytest.mark.slow
def test_small_recipe_learns(problem: CelebA, tmp_path: Path) -> None:
    done = train(problem, "ls", 0, tmp_path, threads=1)
    losses = [sum(epoch.train_losses) for epoch in done.history]
    assert losses[-1] < 0.7 * losses[0]
    assert float(torch.tensor(done.result.test).mean() - constant_f1(problem).mean()) > 0.1


@pytest.mark.parametrize("tasks", [None, ("Male",)])
def test_metrics_follow_from_predictions(problem: CelebA, tasks: tuple[str] | None) -> None:
    check_predictions(problem, tasks)
