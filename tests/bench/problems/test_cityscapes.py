from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from prediction_oracle import check_predictions
from released_frames import write_released

from ntkmtl import Balancer
from ntkmtl.bench.problems._arrays import DataMissingError
from ntkmtl.bench.problems.base import Problem, Recipe
from ntkmtl.bench.problems.cityscapes import Cityscapes, ImageBatch, prepare
from ntkmtl.bench.problems.cityscapes._problem import LAYOUT
from ntkmtl.bench.problems.dense._problem import Part
from ntkmtl.bench.problems.dense._store import load_frames
from ntkmtl.bench.training import train, trainer

# CityScapes with disparity is not to be had without its licence: all files are made here.

H, W = 128, 256
TRAINING, TESTING = 84, 5


def frame(number: int) -> dict[str, np.ndarray]:
    """Return one frame as released: classes in bands, of colors and disparities of their own."""
    rng = np.random.default_rng(number)
    label = np.sort(rng.integers(0, 7, H // 16)).repeat(16)[:, None].repeat(W, 1)
    label[:, :16] = -1
    depth = 0.02 + 0.05 * label.clip(0)[..., None] + 0.001 * rng.random((H, W, 1))
    depth[:, -16:] = 0
    image = (label.clip(0)[..., None] / 8 + 0.1 * rng.random((H, W, 3))).clip(0, 1)
    return {
        "image": image.astype(np.float32),
        "label_7": label.astype(np.float32),
        "label_19": label.astype(np.float32),
        "depth": depth.astype(np.float32),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cityscapes") / "released"
    for split, count, first in (("train", TRAINING, 0), ("val", TESTING, 1000)):
        for number in range(count):
            write_released(place, split, number, frame(first + number))
    return place


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    place = source.parent / "prepared"
    assert prepare(source, place).startswith(f"{TRAINING} training and {TESTING} test frames in ")
    return place


@pytest.fixture(scope="module")
def problem(folder: Path) -> Cityscapes:
    return Cityscapes("small", data=str(folder))


def test_reads_the_released_layout(folder: Path) -> None:
    frames = load_frames(folder, LAYOUT)
    assert (len(frames), frames.training, frames.normals) == (TRAINING + TESTING, TRAINING, None)
    for row, number in ((0, 0), (TRAINING, 1000)):
        expected = frame(number)
        np.testing.assert_array_equal(frames.labels[row], expected["label_7"])
        np.testing.assert_array_equal(frames.depths[row], expected["depth"][..., 0])
        assert np.abs(frames.images[row] / 255 - expected["image"]).max() <= 0.5 / 255 + 1e-6


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train/image/0\.npy"):
        prepare(tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="must be named"):
        prepare(None, tmp_path / "made")
    with pytest.raises(DataMissingError, match="`ntkmtl data cityscapes --source DIR`"):
        Cityscapes(data=str(tmp_path / "nothing"))
    place = tmp_path / "released"
    for split in ("train", "val"):
        arrays = {name: array for name, array in frame(0).items() if name != "label_7"}
        write_released(place, split, 0, arrays)
    with pytest.raises(ValueError, match="must have a folder label_7 or label"):
        prepare(place, tmp_path / "made")


def test_the_paper_takes_all_frames(folder: Path) -> None:
    with pytest.raises(ValueError, match="takes 2,975 training and 500 test frames"):
        Cityscapes(data=str(folder))


def test_metrics_are_the_papers() -> None:
    from ntkmtl.bench import paper

    columns = [c for c in paper.table(7).columns if c.name not in ("mr", "delta_m")]
    for metric, column in zip(Cityscapes.metrics, columns, strict=True):
        assert (metric.name, metric.label, metric.unit) == (column.name, column.label, column.unit)
        assert metric.higher_is_better == column.higher_is_better


@pytest.mark.parametrize(("augmentation", "power"), [("published", -1), ("geometric", 1)])
def test_disparity_in_enlarged_crops(folder: Path, augmentation: str, power: int) -> None:
    problem = Cityscapes("small", data=str(folder), augmentation=augmentation)
    plain = Cityscapes("small", data=str(folder), augmentation="none")
    torch.manual_seed(0)
    rows = torch.arange(24)
    found, expected = problem.batch("train", rows), plain.batch("train", rows)
    seen = set()
    for b in range(24):
        # Disparity is 0.02 + 0.05 times the class, and at most 0.001 more.
        label = int(found.segmentation[b].max())
        pixels = (found.segmentation[b] == label) & (found.depth[b, 0] > 0)
        factor = float(found.depth[b, 0][pixels].min()) / (0.02 + 0.05 * label)
        scale = min((1.0, 1.2, 1.5), key=lambda s: abs(s**power - factor))
        assert factor == pytest.approx(scale**power, rel=0.06)
        seen.add(scale)
    assert seen == {1.0, 1.2, 1.5}
    assert expected.normals is None


def test_counts_and_losses(problem: Cityscapes) -> None:
    batch = problem.batch("test", torch.arange(3))
    assert problem.counts(batch).tolist() == [[64 * 120] * 3] * 2
    model = problem.model()
    assert sorted(problem.losses(model.predict(model.represent(batch)), batch)) == [
        "depth",
        "segmentation",
    ]
    empty = ImageBatch(batch.images, batch.segmentation, torch.zeros_like(batch.depth))
    assert problem.losses(model.predict(model.represent(empty)), empty)["depth"] is None
    assert problem.counts(empty).tolist() == [[64 * 120] * 3, [0] * 3]


# ------------------------------------------------------------------------------------------------
# Training


class Tiny(Cityscapes):
    """At 16 x 32, so that trainings take seconds."""

    parts: ClassVar[Mapping[str, Part]] = {
        "small": Part("clean", factor=8, widths=(4, 6), depths=(1, 2))
    }


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Tiny:
    return Tiny("small", data=str(folder))


def short(problem: Problem, **changes: Any) -> Recipe:
    return dataclasses.replace(problem.recipe, epochs=2, batch_size=20, minibatches=2, **changes)


@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr"])
def test_training_passes_features_and_counts(
    tiny: Tiny, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    backward = Balancer.backward

    def watched(self: Any, losses: Any, features: Any = None, **options: Any) -> Any:
        seen.append((type(features), len(features), tuple(options["counts"].shape)))
        return backward(self, losses, features, **options)

    monkeypatch.setattr(Balancer, "backward", watched)
    run = train(tiny, method, 0, tmp_path / "run", recipe=short(tiny), threads=1)
    assert seen == [(list, 2, (2, 20))] * (2 * (tiny.size("train") // 20))
    assert len(run.result.test) == 4


def test_counts_change_what_a_minibatch_weighs(tiny: Tiny) -> None:
    """Pixels of one half of the batch are missing in depth: its share is what is left."""
    from ntkmtl import Balancer

    batch = tiny.batch("test", torch.arange(4))
    depth = batch.depth.clone()
    depth[:2, ..., 10:] = 0
    batch = batch._replace(depth=depth)
    eigenvalues = []
    for counts in (None, tiny.counts(batch)):
        torch.manual_seed(0)
        model = tiny.model()
        features = model.represent(batch)
        losses = tiny.losses(model.predict(features), batch)
        balancer = Balancer("ntkmtl-sr", tasks=tiny.tasks, minibatches=2)
        found = balancer.backward(losses, features=features, counts=counts).eigenvalues
        assert found is not None
        eigenvalues.append(found)
    assert float(eigenvalues[0][0]) == pytest.approx(float(eigenvalues[1][0]), rel=1e-6)
    assert abs(float(eigenvalues[0][1] / eigenvalues[1][1]) - 1) > 0.05


def test_paper_protocol_averages_the_last_epochs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Tiny("small", data=str(folder), protocol="paper")
    assert problem.recipe.tested_epochs == 10
    found: list[list[float]] = []
    evaluate = Cityscapes.evaluate

    def watched(self: Cityscapes, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
        values = evaluate(self, model, split, tasks)
        if split == "test":
            found.append(values.tolist())
        return values

    monkeypatch.setattr(Cityscapes, "evaluate", watched)
    recipe = dataclasses.replace(short(problem), epochs=3, batch_size=40, tested_epochs=2)
    run = train(problem, "ls", 0, tmp_path / "run", recipe=recipe, threads=1)
    assert len(found) == 2
    assert found[0] != found[1]
    np.testing.assert_allclose(run.result.test, np.mean(found, axis=0), rtol=1e-12)


def test_the_description_says_how_many_epochs_are_tested(folder: Path) -> None:
    problem = Tiny("small", data=str(folder), protocol="paper")
    assert "after each of the last 10 epochs" in problem.describe()
    problem.recipe = dataclasses.replace(problem.recipe, epochs=3)
    assert "after each of the last 3 epochs" in problem.describe()


def test_a_stopped_run_ends_equal(folder: Path, tmp_path: Path) -> None:
    problem = Tiny("small", data=str(folder), protocol="paper")
    recipe = dataclasses.replace(short(problem), batch_size=28, tested_epochs=2)
    whole = train(problem, "ls", 0, tmp_path / "whole", recipe=recipe, threads=1)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 4

    with pytest.raises(trainer.RunInterrupted):
        train(problem, "ls", 0, tmp_path / "cut", recipe=recipe, threads=1, should_stop=stop)
    cut = train(problem, "ls", 0, tmp_path / "cut", recipe=recipe, threads=1)
    assert cut.result.test == whole.result.test
    assert [e.train_losses for e in cut.history] == [e.train_losses for e in whole.history]


def test_learning_rate_is_halved_in_the_second_half(tiny: Tiny, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        short(tiny), epochs=4, batch_size=76, schedule="halved", learning_rate=1e-4
    )
    run = train(tiny, "ls", 0, tmp_path / "run", recipe=recipe, threads=1)
    assert [e.learning_rate for e in run.history] == [1e-4, 1e-4, 5e-5, 5e-5]
    paper = Cityscapes.recipes["paper"]
    assert (paper.schedule, paper.epochs, paper.learning_rate) == ("halved", 200, 1e-4)


def test_tested_epochs_must_be_positive(tiny: Tiny, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.recipe, tested_epochs=0)
    with pytest.raises(ValueError, match="tested_epochs must be at least 1"):
        train(tiny, "ls", 0, tmp_path / "run", recipe=recipe)


@pytest.mark.parametrize("tasks", [None, ("depth",)])
def test_metrics_follow_from_predictions(problem: Cityscapes, tasks: tuple[str] | None) -> None:
    check_predictions(problem, tasks)
