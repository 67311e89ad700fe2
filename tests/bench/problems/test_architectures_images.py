"""Architectures over SegNet and over the network of CelebA, as nyuv2, cityscapes and celeba."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from architecture_gates import selecting_gate, softmax_gate, weighted
from architecture_runs import SETTINGS, check_command, check_exact_kernel
from released_frames import write_released
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl import Balancer
from ntkmtl.bench.paper._settings import differences, settings
from ntkmtl.bench.problems import architectures
from ntkmtl.bench.problems._arrays import write_array, write_manifest
from ntkmtl.bench.problems._supervised import moved, shuffled
from ntkmtl.bench.problems.architectures import Architecture, HardSharing, choose
from ntkmtl.bench.problems.base import MultiTaskModel, Problem
from ntkmtl.bench.problems.celeba import ATTRIBUTES, CelebA
from ntkmtl.bench.problems.celeba import FaceBatch as Faces
from ntkmtl.bench.problems.celeba import _problem as celeba
from ntkmtl.bench.problems.celeba._network import CelebANetwork
from ntkmtl.bench.problems.celeba._network import backbone as face_backbone
from ntkmtl.bench.problems.celeba._network import head as face_head
from ntkmtl.bench.problems.cityscapes import Cityscapes
from ntkmtl.bench.problems.cityscapes import prepare as prepare_cityscapes
from ntkmtl.bench.problems.dense import _labels
from ntkmtl.bench.problems.dense._labels import ImageBatch, Kind
from ntkmtl.bench.problems.dense._network import MTANNetwork, SegNetNetwork, backbone, heads
from ntkmtl.bench.problems.dense._problem import Part
from ntkmtl.bench.problems.nyuv2 import NYUv2
from ntkmtl.bench.problems.nyuv2 import prepare as prepare_nyuv2
from ntkmtl.bench.training import train

REPOSITORY = Path(__file__).resolve().parents[3]

KINDS: dict[Kind, int] = {"segmentation": 5, "depth": 1, "normals": 3}
K = len(KINDS)
WIDTHS, DEPTHS = (4, 6), (1, 2)
REL = 1e-9
SOFT = tuple(name for name in architectures.names() if name != "hard")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(name: str, widths: Sequence[int] = WIDTHS, **changed: Any) -> Architecture:
    """Build an architecture over SegNet, away from where units and statistics are alike."""
    choice = choose(name, {**SETTINGS[name], **changed})
    return scattered(choice.build(backbone(widths, DEPTHS), heads(KINDS, widths[0])))


def faces(name: str, **changed: Any) -> Architecture:
    choice = choose(name, {**SETTINGS[name], **changed})
    return scattered(choice.build(face_backbone(2), [partial(face_head, 2)] * K))


def scattered(network: Architecture) -> Architecture:
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return network


# ------------------------------------------------------------------------------------------------
# Mixing rules, image by image and expert by expert


def run(stage: Any, x: Tensor) -> Tensor:
    for layer in stage:
        x = layer(x)
    return x


class Way:
    """What one task, or the shared experts, go along: a map and the places it was pooled at."""

    def __init__(self, x: Tensor, stages: int) -> None:
        self.x, self.read, self.stages = x, x.mean(dim=(2, 3))[0], stages
        self.places: list[Tensor] = []

    def next(self, level: int, said: Tensor) -> None:
        self.x, self.read = said, said.mean(dim=(2, 3))[0] if said.ndim == 4 else said[0]
        if level < self.stages:
            self.x, place = functional.max_pool2d(said, 2, return_indices=True)
            self.places.append(place)
        if self.stages - 1 <= level < 2 * self.stages - 1:
            self.x = functional.max_unpool2d(self.x, self.places.pop(), 2)


def whole(encoder: Any, x: Tensor, stages: int) -> Tensor:
    way = Way(x, stages)
    for level, stage in enumerate(encoder):
        way.next(level, run(stage, way.x))
    return way.x


def mixed_by_hand(name: str, network: Any, x: Tensor, stages: int) -> list[Tensor]:
    """Return each task's z of one image; ``stages`` of the encoder are pooled with places."""
    read = x.mean(dim=(2, 3))[0]
    if name == "hard":
        return [whole(network.trunk, x, stages)] * K
    if name in ("mmoe", "dselect-k"):
        gate = softmax_gate if name == "mmoe" else selecting_gate
        said = [whole(expert, x, stages) for expert in network.experts]
        return [weighted(gate(one, read), said) for one in network.gates]
    if name == "cgc":
        (level,) = network.levels
        shared = [whole(expert, x, stages) for expert in level.shared]
        return [
            weighted(softmax_gate(gate, read), [*(whole(e, x, stages) for e in own), *shared])
            for gate, own in zip(level.gates, level.own, strict=True)
        ]
    ways = [Way(x, stages) for _ in range(K)]
    if name == "cross-stitch":
        for number, alpha in enumerate(network.units):
            said = [
                run(encoder[number], way.x)
                for encoder, way in zip(network.encoders, ways, strict=True)
            ]
            for way, row in zip(ways, alpha, strict=True):
                way.next(number, weighted(row, said))
        return [way.x for way in ways]
    common = Way(x, stages)
    for number, level in enumerate(network.levels):
        shared = [run(expert, common.x) for expert in level.shared]
        own = [[run(e, way.x) for e in mine] for mine, way in zip(level.own, ways, strict=True)]
        if level.shared_gate is not None:
            everything = [*itertools.chain(*own), *shared]
            common.next(number, weighted(softmax_gate(level.shared_gate, common.read), everything))
        for way, gate, mine in zip(ways, level.gates, own, strict=True):
            way.next(number, weighted(softmax_gate(gate, way.read), [*mine, *shared]))
    return [way.x for way in ways]


def each_task(z: Tensor | list[Tensor]) -> list[Tensor]:
    return [z] * K if isinstance(z, Tensor) else z


@pytest.mark.parametrize("name", architectures.names())
def test_segnet_is_mixed_as_by_hand(name: str) -> None:
    torch.manual_seed(0)
    network = dense(name).eval()
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    z = network.represent(images)
    outputs = network.predict(z)
    for image in range(2):
        expected = mixed_by_hand(name, network, images[image : image + 1], stages=2)
        for task, kind in enumerate(KINDS):
            found = each_task(z)[task][image : image + 1]
            assert found.shape == (1, 4, 8, 12)
            torch.testing.assert_close(found, expected[task], rtol=REL, atol=1e-11)
            head: Any = network.heads[task]
            output = head[1](head[0](expected[task]))
            if kind == "normals":
                output = output / output.square().sum(dim=1, keepdim=True).sqrt()
            torch.testing.assert_close(
                outputs[task][image : image + 1], output, rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("name", architectures.names())
def test_the_network_of_faces_is_mixed_as_by_hand(name: str) -> None:
    torch.manual_seed(1)
    network = faces(name).eval()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    z = network.represent(images)
    outputs = network.predict(z)
    for image in range(2):
        expected = mixed_by_hand(name, network, images[image : image + 1], stages=0)
        for task in range(K):
            torch.testing.assert_close(
                each_task(z)[task][image], expected[task][0], rtol=REL, atol=1e-11
            )
            head: Any = network.heads[task]
            torch.testing.assert_close(
                outputs[task][image], head[0](expected[task])[0, 0], rtol=REL, atol=1e-11
            )


def test_a_task_unpools_at_the_places_that_it_pooled() -> None:
    """Units that hand all to the other task swap two networks whole, places and all."""
    torch.manual_seed(2)
    outputs: dict[Kind, int] = {"depth": 1, "normals": 3}
    network: Any = choose("cross-stitch").build(backbone(WIDTHS, DEPTHS), heads(outputs, 4))
    with torch.no_grad():
        for unit in network.units:
            unit.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    network.eval()
    x = torch.rand(1, 3, 8, 8)
    first, second = network.represent(x)
    ways = [Way(x, 2), Way(x, 2)]
    for stage in range(4):
        said = [run(network.encoders[task][stage], ways[task].x) for task in range(2)]
        ways[0].next(stage, said[1])
        ways[1].next(stage, said[0])
    torch.testing.assert_close(first, ways[0].x)
    torch.testing.assert_close(second, ways[1].x)


def test_hard_sharing_over_the_stages_is_the_network_of_the_problem() -> None:
    torch.manual_seed(3)
    own = SegNetNetwork(KINDS, WIDTHS, DEPTHS)
    hard = HardSharing(backbone(WIDTHS, DEPTHS), heads(KINDS, WIDTHS[0]))
    with torch.no_grad():
        for mine, theirs in zip(hard.parameters(), own.parameters(), strict=True):
            mine.copy_(theirs)
    x = torch.rand(2, 3, 8, 12)
    pairs = zip(hard.predict(hard.represent(x)), own.predict(own.represent(x)), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)

    torch.manual_seed(4)
    network = CelebANetwork(3, 2)
    torch.manual_seed(4)
    staged = HardSharing(face_backbone(2), [partial(face_head, 2)] * 3)
    x = torch.rand(4, 3, 16, 16)
    pairs = zip(
        staged.predict(staged.represent(x)), network.predict(network.represent(x)), strict=True
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_convolutions_start_as_those_of_segnet() -> None:
    torch.manual_seed(5)
    network = choose("mmoe", {"experts": 2}).build(backbone((16, 32), (2, 2)), heads(KINDS, 16))
    seen = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1_000:
            fan = sum(module.weight.shape[:2]) * module.weight[0, 0].numel()
            assert module.bias is not None
            assert not module.bias.any()
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.1)
            seen += 1
    assert seen > 10


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4, found 6 x 8"):
        dense("ple").represent(torch.rand(1, 3, 6, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"same stages\. Found 2 and 1"):
        backbone((4, 8), (2,))


# ------------------------------------------------------------------------------------------------
# Parameters, counted by hand from the definitions, at the published sizes


def convolution(before: int, after: int) -> int:
    """Return the parameters of a 3 x 3 convolution with bias and of its batch norm."""
    return 9 * before * after + after + 2 * after


DOWN = [
    convolution(3, 64) + convolution(64, 64),
    convolution(64, 128) + convolution(128, 128),
    convolution(128, 256) + 2 * convolution(256, 256),
    convolution(256, 512) + 2 * convolution(512, 512),
    3 * convolution(512, 512),
]
UP = [
    3 * convolution(512, 512),
    convolution(512, 256) + 2 * convolution(256, 256),
    convolution(256, 128) + 2 * convolution(128, 128),
    convolution(128, 64) + convolution(64, 64),
    2 * convolution(64, 64),
]
SEGNET = sum(DOWN) + sum(UP)
SEGNET_HEADS = sum(9 * 64 * 64 + 64 + 64 * channels + channels for channels in (13, 1, 3))
SEGNET_READ = [3, 64, 128, 256, 512, 512, 512, 256, 128, 64]
"""Numbers that the gates of each level of PLE read."""

FACE_STAGES = [
    9 * 3 * 64 + 2 * 64,
    9 * (64 * 128 + 128 * 128) + 4 * 128,
    9 * (128 * 256 + 256 * 256) + 4 * 256,
    9 * (256 * 512 + 512 * 512) + 4 * 512,
    512 * 512 + 2 * 512,
    512 * 512 + 2 * 512,
]
FACE = sum(FACE_STAGES)
FACE_TASKS = 5
FACE_HEADS = FACE_TASKS * 513
FACE_READ = [3, 64, 128, 256, 512, 512]


def counted(
    name: str, k: int, stages: Sequence[int], read: Sequence[int], all_heads: int
) -> tuple[int, int]:
    """Return all parameters and the shared ones, with the default settings."""
    one = sum(stages)
    if name == "hard":
        return one + all_heads, one
    if name == "cross-stitch":
        shared = k * one + len(stages) * k * k
        return shared + all_heads, shared
    if name == "mmoe":
        return 8 * one + k * 3 * 8 + all_heads, 8 * one
    if name == "dselect-k":
        # z: 2 selectors of 3 digits, alpha: 2, each linear in 3 numbers and a constant.
        return 8 * one + k * (6 + 2) * (3 + 1) + all_heads, 8 * one
    if name == "cgc":
        return (1 + k) * one + k * 3 * 2 + all_heads, one
    # ple: a task's gate is over 2 experts, the shared one of each level but the last over k + 1.
    shared_gates = (k + 1) * sum(read[:-1])
    total = (1 + k) * one + 2 * k * sum(read) + shared_gates + all_heads
    shared = (1 + k) * one - k * stages[-1] + 2 * k * sum(read[:-2]) + shared_gates
    return total, shared


@pytest.mark.parametrize("name", architectures.names())
def test_counts_of_parameters_at_the_published_size(name: str) -> None:
    outputs: dict[Kind, int] = {"segmentation": 13, "depth": 1, "normals": 3}
    for made, expected in (
        (
            lambda: choose(name).build(backbone(), heads(outputs)),
            counted(name, 3, [*DOWN, *UP], SEGNET_READ, SEGNET_HEADS),
        ),
        (
            lambda: choose(name).build(face_backbone(64), [partial(face_head, 64)] * FACE_TASKS),
            counted(name, FACE_TASKS, FACE_STAGES, FACE_READ, FACE_HEADS),
        ),
    ):
        with torch.device("meta"):
            network = made()
        total = sum(p.numel() for p in network.parameters())
        assert (total, sum(p.numel() for p in network.shared_parameters())) == expected


@pytest.mark.parametrize("make", [dense, faces])
@pytest.mark.parametrize("name", architectures.names())
def test_shared_is_what_the_losses_of_several_tasks_reach(
    make: Callable[[str], Architecture], name: str
) -> None:
    torch.manual_seed(6)
    network = make(name)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    parameters = list(network.parameters())
    reached = [0] * len(parameters)
    for output in network.predict(network.represent(x)):
        loss = output.square().sum() + output.sum()
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for place, gradient in enumerate(found):
            # A bias before batch norm has a gradient of 0, yet the loss reaches it.
            reached[place] += gradient is not None
    assert min(reached) >= 1
    expected = {id(p) for p, times in zip(parameters, reached, strict=True) if times > 1}
    shared = list(network.shared_parameters())
    assert {id(p) for p in shared} == expected
    assert len(shared) == len(expected)


# ------------------------------------------------------------------------------------------------
# The problems, at sizes at which trainings take seconds


def frame(number: int, high: int, wide: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    label = np.sort(rng.integers(0, 7, high // 16)).repeat(16)[:, None].repeat(wide, 1)
    depth = 0.5 + 0.1 * label[..., None] + 0.01 * rng.random((high, wide, 1))
    normal = np.broadcast_to([0.6, 0.0, -0.8], (high, wide, 3))
    image = (label[..., None] / 8 + 0.1 * rng.random((high, wide, 3))).clip(0, 1)
    return {"image": image, "label": label, "depth": depth, "normal": normal}


TINY: dict[str, Part] = {"small": Part("paper", factor=8, widths=WIDTHS, depths=DEPTHS)}


class Streets(Cityscapes):
    parts: ClassVar[Mapping[str, Part]] = TINY


class Rooms(NYUv2):
    parts: ClassVar[Mapping[str, Part]] = TINY


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for name, (high, wide), prepare in (
        ("cityscapes", (128, 256), prepare_cityscapes),
        ("nyuv2", (288, 384), prepare_nyuv2),
    ):
        for split, count in (("train", 8), ("val", 2)):
            for number in range(count):
                write_released(place / f"{name}-released", split, number, frame(number, high, wide))
        prepare(place / f"{name}-released", place / name)
    rng = np.random.default_rng(0)
    folder = place / "celeba"
    folder.mkdir()
    count = 60
    arrays = {
        "images": rng.integers(0, 256, (count, 64, 64, 3)).astype(np.uint8),
        "labels": rng.integers(0, 2, (count, len(ATTRIBUTES))).astype(np.uint8),
        "partition": np.zeros(count, dtype=np.uint8),
        "numbers": np.arange(1, count + 1, dtype=np.int32),
    }
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", array)
    write_manifest(folder, "celeba 1", list(arrays), {})
    return place


@pytest.fixture(autouse=True)
def _few_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    part = celeba._ImagePart(("Male", "Smiling", "Young"), side=16, width=2)
    monkeypatch.setattr(celeba, "SMALL_SIZES", (10, 10, 40))
    monkeypatch.setitem(celeba.PARTS, "small", part)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "cityscapes": Streets,
    "nyuv2": Rooms,
    "celeba": CelebA,
}
EVERY = [(problem, name) for problem in PROBLEMS for name in architectures.names()]
SOME = [(problem, name) for problem, name in EVERY if name != "hard"]


def create(folders: Path, problem: str, name: str, **options: Any) -> Any:
    options = {"architecture_options": SETTINGS.get(name, {}), **options}
    return PROBLEMS[problem]("small", data=str(folders / problem), architecture=name, **options)


@pytest.mark.parametrize(("problem", "name"), EVERY)
def test_every_architecture_trains(folders: Path, tmp_path: Path, problem: str, name: str) -> None:
    made = create(folders, problem, name)
    recipe = dataclasses.replace(
        made.recipe, epochs=1, batch_size=4, minibatches=2, tested_epochs=1
    )
    done = train(made, "ntkmtl-sr", 0, tmp_path / "run", recipe=recipe, threads=1)
    assert done.result.steps == made.size("train") // 4
    assert all(math.isfinite(value) for value in done.result.test)
    assert done.steps.weights.min() > 0


@pytest.mark.parametrize(("problem", "name"), SOME)
def test_identity_and_reports_name_architecture_and_settings(
    folders: Path, problem: str, name: str
) -> None:
    made = create(folders, problem, name)
    settings_said = made.options["architecture"]
    assert settings_said == {"name": name, **choose(name, SETTINGS[name]).settings}
    assert json.loads(json.dumps(made.options)) == made.options
    assert f"rchitecture {name}: " in made.describe()
    default = create(folders, problem, name, architecture_options=None)
    if SETTINGS[name]:
        assert default.options != made.options
    assert default.options["architecture"] == {"name": name, **choose(name).settings}


def test_identities_of_earlier_networks_stay(folders: Path) -> None:
    data = {problem: create(folders, problem, "hard") for problem in PROBLEMS}
    sums = {problem: made.options.pop("data_sha256") for problem, made in data.items()}
    assert len(set(sums.values())) == 3
    plain = {
        "protocol": "paper",
        "frames": [0, 0],
        "model": "dense 1",
        "architecture": "segnet",
        "widths": [4, 6],
        "depths": [1, 2],
        "factor": 8,
        "augmentation": "geometric",
    }
    for problem, augmentation in (("nyuv2", "geometric"), ("cityscapes", "published")):
        plain["augmentation"] = augmentation
        whole = {"data_sha256": sums[problem], **plain}
        assert create(folders, problem, "hard").options == whole
        assert create(folders, problem, "segnet").options == whole
        mtan = PROBLEMS[problem]("small", data=str(folders / problem))
        assert mtan.options == {**whole, "architecture": "mtan"}
        assert isinstance(mtan.model(), MTANNetwork)
        assert type(create(folders, problem, "hard").model()) is SegNetNetwork
    assert create(folders, "celeba", "hard").options == {
        "data_sha256": sums["celeba"],
        "split": "SHA-256 of the image's number",
        "attributes": ["Male", "Smiling", "Young"],
        "model": "nine-layer 1",
        "side": 16,
        "width": 2,
        "loss": "bce",
    }
    assert isinstance(create(folders, "celeba", "hard").model(), CelebANetwork)


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_wrong_choices_are_refused(folders: Path, problem: str) -> None:
    for name, options, message in (
        ("soft", None, "architecture must be one of .*hard, cross-stitch, mmoe"),
        ("mmoe", {"expert": 2}, "mmoe has no setting 'expert'"),
        ("dselect-k", {"experts": 6}, r"power of two\. Found experts=6"),
        ("hard", {"experts": 6}, "hard has no setting 'experts'"),
    ):
        with pytest.raises(ValueError, match=message):
            create(folders, problem, name, architecture_options=options)
    if problem != "celeba":
        with pytest.raises(ValueError, match=r"mtan has no settings\. Found .*'experts': 2"):
            create(folders, problem, "mtan", architecture_options={"experts": 2})


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_creating_a_problem_draws_no_random_number(folders: Path, problem: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    create(folders, problem, "ple")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("problem", "name"), SOME)
def test_a_single_task_network_is_the_architecture_with_one_head(
    folders: Path, problem: str, name: str
) -> None:
    made = create(folders, problem, name)
    batch = made.batch("train", torch.arange(4))
    task = made.tasks[-1]
    model = made.model([task])
    z = model.represent(batch)
    assert len(z) == 1
    assert list(made.losses(model.predict(z), batch, [task])) == [task]
    wanted = [metric for metric in made.metrics if metric.task == task]
    assert made.evaluate(model, "test", [task]).shape == (len(wanted),)


def eigenvalues_by_hand(problem: Any, batch: Any, minibatches: int) -> tuple[Any, Any, list[float]]:
    """Return losses, features and lambda of Eq. 17: of each mini-batch's gradient summed over z."""
    torch.manual_seed(7)
    model = problem.model().double()
    z = model.represent(batch)
    losses = problem.losses(model.predict(z), batch)
    counts = problem.counts(batch)
    found = []
    for task, loss in enumerate(losses.values()):
        (gradient,) = torch.autograd.grad(
            loss, z if isinstance(z, Tensor) else z[task], retain_graph=True
        )
        size = len(gradient)
        rows = []
        for part in torch.arange(size).chunk(minibatches):
            share = (
                len(part) / size
                if counts is None
                else float(counts[task, part].sum() / counts[task].sum())
            )
            rows.append(gradient[part].sum(dim=0).flatten() / share)
        matrix = torch.stack(rows)
        found.append(float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1]))
    return losses, z, found


def in_float64(batch: Any) -> Any:
    return type(batch)(
        *(
            part.double() if part is not None and part.is_floating_point() else part
            for part in batch
        )
    )


@pytest.mark.parametrize(("problem", "name"), EVERY)
def test_sr_reads_each_tasks_own_representation(folders: Path, problem: str, name: str) -> None:
    made = create(folders, problem, name)
    batch = in_float64(made.batch("train", torch.arange(4)))
    losses, z, expected = eigenvalues_by_hand(made, batch, 2)
    balancer = Balancer("ntkmtl-sr", tasks=list(made.tasks), minibatches=2, pooling="pooled")
    found = balancer.backward(losses, features=z, counts=made.counts(batch))
    assert found.eigenvalues is not None
    assert found.eigenvalues.tolist() == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("problem", list(PROBLEMS))
@pytest.mark.parametrize("name", ["hard", "cgc"])
def test_gramian_methods_read_the_shared_representation_where_there_is_one(
    folders: Path, problem: str, name: str
) -> None:
    made = create(folders, problem, name)
    batch = made.batch("test", torch.arange(2))
    losses, z, _ = eigenvalues_by_hand(made, in_float64(batch), 1)
    balancer = Balancer("imtl-g", source="representation", tasks=list(made.tasks))
    if name != "hard":
        with pytest.raises(ValueError, match="source='exact'"):
            balancer.backward(losses, features=z)
        return
    rows = torch.stack(
        [torch.autograd.grad(v, z, retain_graph=True)[0].flatten() for v in losses.values()]
    )
    gramian = rows @ rows.T
    expected = torch.linalg.solve(gramian, gramian.diagonal().sqrt())
    found = balancer.backward(losses, features=z).weights.double()
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("problem", "name"), [*SOME, ("nyuv2", "hard"), ("nyuv2", "mtan")])
def test_the_trainers_exact_kernel_is_that_of_the_shared_parameters(
    folders: Path, tmp_path: Path, problem: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_exact_kernel(create(folders, problem, name), tmp_path / "run", monkeypatch, 8)


def test_the_command_line_takes_an_architecture(folders: Path, tmp_path: Path) -> None:
    check_command("celeba", folders / "celeba", tmp_path / "runs", 8)


def test_comparisons_with_the_paper_name_the_architecture(folders: Path) -> None:
    facts = {
        "recipe": dataclasses.asdict(NYUv2.recipes["paper"]),
        "sizes": {"train": 795, "val": 0, "test": 654},
        "tasks": ["a"] * 3,
        "problem_options": create(folders, "nyuv2", "mmoe").options,
    }
    assert settings(facts, "nyuv2")["network"] == "mmoe"
    said = [str(one) for one in differences(facts, "nyuv2", "nyuv2")]
    assert "network: mmoe here, mtan published" in said
    facts["problem_options"] = create(folders, "celeba", "ple").options
    said = [str(one) for one in differences(facts, "celeba", "celeba")]
    assert "network: ple here, hard published †" in said
    facts["problem_options"] = create(folders, "celeba", "hard").options
    assert not [one for one in differences(facts, "celeba", "celeba") if one.setting == "network"]


# ------------------------------------------------------------------------------------------------
# Devices


@pytest.mark.parametrize(("problem", "name"), [*EVERY, ("nyuv2", "mtan")])
def test_new_tensors_are_on_the_device_of_the_inputs(
    folders: Path, problem: str, name: str
) -> None:
    """A tensor made without naming a device would be on the default one, and not fit the others."""
    made = create(folders, problem, name)
    model = made.model()
    batch = made.batch("test", torch.arange(2))
    with torch.device("meta"):
        losses = made.losses(model.predict(model.represent(batch)), batch)
        counts = made.counts(batch)
        sum(losses.values()).backward()
    assert {loss.device.type for loss in losses.values()} == {"cpu"}
    assert counts is None or counts.device.type == "cpu"
    assert {p.grad.device.type for p in model.parameters() if p.grad is not None} == {"cpu"}


class SeenError(Exception):
    """Raised with the devices of a batch."""


class Watching(MultiTaskModel):
    """A network on another device, that says where the batch it is given is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device="meta"))

    def represent(self, batch: Any) -> Tensor:
        raise SeenError({part.device.type for part in batch if part is not None})

    def predict(self, features: Any) -> list[Tensor]:
        raise NotImplementedError

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_evaluation_brings_batches_to_the_network(folders: Path, problem: str) -> None:
    with pytest.raises(SeenError) as found:
        create(folders, problem, "hard").evaluate(Watching(), "test")
    assert found.value.args == ({"meta"},)


def test_batches_are_moved_as_they_are() -> None:
    batch = ImageBatch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long(), torch.ones(1, 1, 2, 2))
    there = moved(batch, Watching())
    assert isinstance(there, ImageBatch)
    assert there.normals is None
    assert there.segmentation.dtype == torch.int64
    here = moved(Faces(torch.zeros(2, 3), torch.ones(2)), nn.Linear(1, 1))  # type: ignore[arg-type]
    assert isinstance(here, Faces)


def test_the_counts_in_the_docs_are_those_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the network of faces at its real sizes
    path = REPOSITORY / "scripts" / "count_parameters.py"
    found = importlib.util.spec_from_file_location("count_parameters", path)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    page = (REPOSITORY / "docs" / "architectures.md").read_text(encoding="utf-8")
    tables = script.tables()
    assert len(tables) == 2
    for table in tables:
        assert table in page


def test_a_random_order_depends_on_each_sample_alone() -> None:
    every = shuffled("label", range(50))
    assert sorted(every.tolist()) == list(range(50))
    some = shuffled("label", [n for n in range(50) if n % 3])
    kept = [n for n in every.tolist() if n % 3]
    assert [[n for n in range(50) if n % 3][place] for place in some.tolist()] == kept
    assert shuffled("other", range(50)).tolist() != every.tolist()


def test_metrics_stand_in_the_order_of_the_paper() -> None:
    assert _labels.metrics_of(("segmentation", "depth", "normals")) == NYUv2.metrics
    assert _labels.metrics_of(("segmentation", "depth")) == Cityscapes.metrics
