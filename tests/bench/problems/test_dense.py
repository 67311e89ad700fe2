from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from ntkmtl.bench.problems.dense import _labels
from ntkmtl.bench.problems.dense._labels import (
    BIN,
    METRICS,
    DepthMeter,
    ImageBatch,
    Kind,
    NormalsMeter,
    SegmentationMeter,
    augment,
)
from ntkmtl.bench.problems.dense._network import ARCHITECTURES, MTANNetwork, SegNetNetwork

KINDS: dict[Kind, int] = {"segmentation": 13, "depth": 1, "normals": 3}


def labeled(count: int = 3, high: int = 6, wide: int = 8, classes: int = 5) -> ImageBatch:
    """Return random labels of which some are missing."""
    segmentation = torch.randint(-1, classes, (count, high, wide))
    depth = torch.rand(count, 1, high, wide) * 5 + 0.2
    depth[torch.rand_like(depth) < 0.2] = 0
    normals = torch.nn.functional.normalize(torch.randn(count, 3, high, wide), dim=1)
    normals = normals * (torch.rand(count, 1, high, wide) > 0.3)
    return ImageBatch(torch.rand(count, 3, high, wide), segmentation, depth, normals)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=1)


# ------------------------------------------------------------------------------------------------
# Losses


def test_losses_equal_loops_over_pixels() -> None:
    torch.manual_seed(0)
    batch = labeled()
    scores = torch.randn(3, 5, 6, 8, dtype=torch.float64)
    depth = torch.randn(3, 1, 6, 8, dtype=torch.float64)
    normals = unit(3, 3, 6, 8).double()
    sums: dict[str, list[float]] = {"segmentation": [], "depth": [], "normals": []}
    assert batch.normals is not None
    for b in range(3):
        for y in range(6):
            for x in range(8):
                label = int(batch.segmentation[b, y, x])
                if label >= 0:
                    row = scores[b, :, y, x]
                    sums["segmentation"].append(float(row.exp().sum().log() - row[label]))
                if batch.depth[b, 0, y, x] > 0:
                    sums["depth"].append(float(abs(depth[b, 0, y, x] - batch.depth[b, 0, y, x])))
                true = batch.normals[b, :, y, x].double()
                if true.norm() > 0:
                    sums["normals"].append(1 - float(true @ normals[b, :, y, x]))
    outputs = {"segmentation": scores, "depth": depth, "normals": normals}
    for kind in KINDS:
        labels = batch.labels(kind)
        labels = labels if kind == "segmentation" else labels.double()
        found = _labels.loss(kind, outputs[kind], labels)
        assert found is not None
        assert float(found) == pytest.approx(np.mean(sums[kind]), rel=1e-9)
        assert int(_labels.valid(kind, labels).sum()) == len(sums[kind])


def test_no_label_is_no_loss() -> None:
    empty = ImageBatch(
        torch.zeros(1, 3, 2, 2),
        torch.full((1, 2, 2), -1),
        torch.zeros(1, 1, 2, 2),
        torch.zeros(1, 3, 2, 2),
    )
    for kind, channels in KINDS.items():
        assert _labels.loss(kind, torch.ones(1, channels, 2, 2), empty.labels(kind)) is None


def test_labels_that_are_not_there() -> None:
    batch = ImageBatch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long(), torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="have no normals"):
        batch.labels("normals")


# ------------------------------------------------------------------------------------------------
# Metrics


def test_segmentation_equals_torchmetrics_over_uneven_batches() -> None:
    torch.manual_seed(1)
    meter = SegmentationMeter(5)
    iou = MulticlassJaccardIndex(5, average="macro", ignore_index=-1)
    accuracy = MulticlassAccuracy(5, average="micro", ignore_index=-1)
    for count in (1, 4, 2):
        batch = labeled(count)
        scores = torch.randn(count, 5, 6, 8)
        meter.update(scores, batch.segmentation)
        iou.update(scores, batch.segmentation)
        accuracy.update(scores, batch.segmentation)
    expected = [100 * float(iou.compute()), 100 * float(accuracy.compute())]
    assert meter.values() == pytest.approx(expected, rel=1e-6)


def test_a_class_that_never_occurs_does_not_count() -> None:
    meter = SegmentationMeter(4)
    meter.update(torch.eye(4)[[0, 1]].T.reshape(1, 4, 1, 2), torch.tensor([[[0, 1]]]))
    assert meter.values() == [100.0, 100.0]


def test_depth_equals_torchmetrics_over_uneven_batches() -> None:
    torch.manual_seed(2)
    meter, absolute, relative = DepthMeter(), MeanAbsoluteError(), []
    for count in (1, 4, 2):
        batch = labeled(count)
        found = torch.rand(count, 1, 6, 8) * 5
        meter.update(found, batch.depth)
        known = batch.depth > 0
        absolute.update(found[known], batch.depth[known])
        relative.append((found[known] - batch.depth[known]).abs() / batch.depth[known])
    expected = [float(absolute.compute()), float(torch.cat(relative).mean())]
    assert meter.values() == pytest.approx(expected, rel=1e-5)


def test_normals_equal_numpy_over_uneven_batches() -> None:
    torch.manual_seed(3)
    meter, angles = NormalsMeter(), []
    for count in (1, 40, 7):
        batch = labeled(count)
        labels = batch.labels("normals")
        found = torch.nn.functional.normalize(labels + 0.4 * torch.randn_like(labels), dim=1)
        meter.update(found, labels)
        known = labels.norm(dim=1).numpy() > 0
        cosine = (found.double() * labels.double()).sum(1).numpy()[known]
        angles.append(np.degrees(np.arccos(cosine.clip(-1, 1))))
    every = np.concatenate(angles)
    mean, median, *within = meter.values()
    assert mean == pytest.approx(every.mean(), rel=1e-6)
    assert abs(median - np.median(every)) <= BIN / 2 + 1e-4
    expected = [100 * (every < limit).mean() for limit in (11.25, 22.5, 30)]
    assert within == pytest.approx(expected, rel=1e-9)
    assert 0 < within[0] < within[1] < within[2] < 100


def test_small_and_straight_angles_are_exact() -> None:
    # An arc cosine in single precision gives 0 or 0.02 for a hundredth of a degree.
    for degrees in (0.0, 0.012, 0.1, 90.0, 180.0):
        angle = math.radians(degrees)
        up = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
        found = torch.tensor([math.sin(angle), 0.0, math.cos(angle)]).reshape(1, 3, 1, 1)
        meter = NormalsMeter()
        meter.update(found, up)
        assert meter.values()[0] == pytest.approx(degrees, abs=1e-4)
        assert abs(meter.values()[1] - degrees) <= BIN


@pytest.mark.parametrize("degrees", [[10.0, 80.0], [10.0, 20.0, 80.0], [5.0, 10.0, 20.0, 80.0]])
def test_the_median_is_that_of_numpy_to_half_a_bin(degrees: list[float]) -> None:
    angles = torch.tensor(degrees).deg2rad()
    found = torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])
    up = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, len(degrees))
    meter = NormalsMeter()
    meter.update(found.reshape(1, 3, 1, -1), up)
    assert abs(meter.values()[1] - np.median(degrees)) <= BIN / 2 + 1e-4


def test_a_predicted_normal_of_zero_length_counts_as_90_degrees() -> None:
    up = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    meter = NormalsMeter()
    meter.update(torch.zeros(1, 3, 1, 1), up)
    mean, median, *within = meter.values()
    assert mean == 90.0
    assert abs(median - 90.0) <= BIN / 2
    assert within == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", list(KINDS))
def test_predictions_that_are_not_finite_are_an_error(kind: Kind, value: float) -> None:
    batch = ImageBatch(
        torch.rand(1, 3, 1, 2),
        torch.tensor([[[1, -1]]]),
        torch.tensor([[[[2.0, 0.0]]]]),
        torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1) * torch.tensor([1.0, 0.0]),
    )
    outputs = torch.rand(1, KINDS[kind], 1, 2)
    outputs[..., 1] = value
    meter = _labels.meter(kind, KINDS[kind])
    meter.update(outputs, batch.labels(kind))  # the pixel has no label
    outputs[0, 0, 0, 0] = value
    message = f"predictions of {kind} must be finite .* found NaN or infinity at 1 of 1 labeled"
    with pytest.raises(ValueError, match=message):
        meter.update(outputs, batch.labels(kind))


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_to_measure_is_an_error(kind: Kind) -> None:
    with pytest.raises(ValueError, match="no pixel of the split has a"):
        _labels.meter(kind, 13).values()
    assert len(METRICS[kind]) == {"segmentation": 2, "depth": 2, "normals": 5}[kind]


# ------------------------------------------------------------------------------------------------
# Augmentation


def positions(high: int = 12, wide: int = 16) -> ImageBatch:
    """Return a batch whose labels say where each pixel was."""
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    normals = torch.stack([x / wide + 0.1, y / high + 0.1, torch.ones(high, wide)])
    image = torch.stack([x / wide, y / high, torch.zeros(high, wide)])
    return ImageBatch(
        image[None], (y * wide + x)[None], (1.0 + x + wide * y)[None, None], normals[None]
    )


@pytest.mark.parametrize("power", [-1, 1])
@pytest.mark.parametrize("scale", [1.0, 1.2, 1.5, 2.0])
def test_crops_keep_labels_together(scale: float, power: int) -> None:
    torch.manual_seed(4)
    before = positions()
    assert before.normals is not None
    mirrored_seen = set()
    for _ in range(12):
        after = augment(before, power, scales=(scale,))
        assert after.normals is not None
        place = after.segmentation[0]
        rows, columns = place // 16, place % 16
        assert len(rows.unique()) == int(12 / scale)
        assert len(columns.unique()) == int(16 / scale)
        expected = before.depth[0, 0].flatten()[place] * scale**power
        torch.testing.assert_close(after.depth[0, 0], expected)
        mirrored = bool(columns[0, 0] > columns[0, -1])
        mirrored_seen.add(mirrored)
        normal = before.normals[0].flatten(1)[:, place.flatten()].reshape(3, 12, 16).clone()
        normal[0] *= -1 if mirrored else 1
        torch.testing.assert_close(after.normals[0], normal)
        # The image is interpolated: within one pixel of the label's place.
        assert ((after.images[0, 0] - columns / 16).abs() <= 1 / 16 + 1e-6).all()
        assert ((after.images[0, 1] - rows / 12).abs() <= 1 / 12 + 1e-6).all()
    assert mirrored_seen == {True, False}


def test_scale_of_one_only_mirrors() -> None:
    torch.manual_seed(5)
    before = labeled()
    after = augment(before, scales=(1.0,))
    for b in range(3):
        same = torch.equal(after.depth[b], before.depth[b])
        other = torch.equal(after.depth[b], before.depth[b].flip(-1))
        assert same != other
        expected = before.images[b] if same else before.images[b].flip(-1)
        torch.testing.assert_close(after.images[b], expected)


def test_augmentation_follows_the_random_state() -> None:
    batch = labeled()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment(batch))
    assert torch.equal(found[0].images, found[1].images)
    assert not torch.equal(found[0].images, found[2].images)


# ------------------------------------------------------------------------------------------------
# Networks


def conv(before: int, after: int) -> int:
    """Return the parameters of a 3 x 3 convolution with bias, and of its batch norm."""
    return 9 * before * after + after + 2 * after


def mask(before: int, after: int) -> int:
    """Return the parameters of two 1 x 1 convolutions with bias, each with batch norm."""
    return before * after + 3 * after + after * after + 3 * after


def head(channels: int) -> int:
    return 9 * 64 * 64 + 64 + 64 * channels + channels


SEGNET = sum(
    conv(*pair)
    for pair in [
        *[(3, 64), (64, 64)],
        *[(64, 128), (128, 128)],
        *[(128, 256), (256, 256), (256, 256)],
        *[(256, 512), (512, 512), (512, 512)],
        *[(512, 512), (512, 512), (512, 512)],
        *[(512, 512), (512, 512), (512, 512)],
        *[(512, 256), (256, 256), (256, 256)],
        *[(256, 128), (128, 128), (128, 128)],
        *[(128, 64), (64, 64)],
        *[(64, 64), (64, 64)],
    ]
)
BETWEEN = sum(
    conv(*pair)
    for pair in [
        *[(64, 128), (128, 256), (256, 512), (512, 512), (512, 512)],
        *[(512, 512), (512, 256), (256, 128), (128, 64), (64, 64)],
    ]
)
MASKS = sum(
    mask(*pair)
    for pair in [
        *[(64, 64), (128 + 128, 128), (256 + 256, 256), (512 + 512, 512), (512 + 512, 512)],
        *[(512 + 512, 512), (512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 64)],
    ]
)


@pytest.mark.parametrize(
    "kinds", [KINDS, {"segmentation": 7, "depth": 1}, {"normals": 3}], ids=["3", "2", "1"]
)
def test_parameters_are_those_of_the_published_definition(kinds: dict[Kind, int]) -> None:
    heads = sum(head(channels) for channels in kinds.values())
    plain, attention = SegNetNetwork(kinds), MTANNetwork(kinds)
    assert sum(p.numel() for p in plain.parameters()) == SEGNET + heads
    assert sum(p.numel() for p in plain.shared_parameters()) == SEGNET
    shared = SEGNET + BETWEEN + len(kinds) * MASKS
    assert sum(p.numel() for p in attention.parameters()) == shared + heads
    assert sum(p.numel() for p in attention.shared_parameters()) == shared


def small(architecture: str, kinds: dict[Kind, int]) -> SegNetNetwork:
    return ARCHITECTURES[architecture](kinds, (4, 6), (2, 3))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_outputs(architecture: str) -> None:
    torch.manual_seed(6)
    network = small(architecture, KINDS)
    images = torch.rand(2, 3, 8, 12)
    outputs = network.predict(network.represent(images))
    assert [tuple(y.shape) for y in outputs] == [(2, c, 8, 12) for c in KINDS.values()]
    torch.testing.assert_close(outputs[2].norm(dim=1), torch.ones(2, 8, 12))
    with pytest.raises(ValueError, match="multiples of 4, found 6 x 8"):
        network.represent(torch.rand(1, 3, 6, 8))
    with pytest.raises(ValueError, match="at least one task"):
        small(architecture, {})


def test_attention_equals_the_definition_written_out() -> None:
    """Follow Figure 2 of the MTAN paper with its indices, for one task of three."""
    torch.manual_seed(7)
    network = small("mtan", KINDS).eval()
    x = torch.rand(2, 3, 8, 12)
    f = torch.nn.functional
    enc, dec = network.encoder, network.decoder
    first0 = enc[0].first(x)
    last0 = enc[0].rest(first0)
    pooled0, where0 = f.max_pool2d(last0, 2, return_indices=True)
    first1 = enc[1].first(pooled0)
    last1 = enc[1].rest(first1)
    pooled1, where1 = f.max_pool2d(last1, 2, return_indices=True)
    unpooled1 = f.max_unpool2d(pooled1, where1, 2)
    back1 = dec[0].rest(dec[0].first(unpooled1))
    unpooled0 = f.max_unpool2d(back1, where0, 2)
    back0 = dec[1].rest(dec[1].first(unpooled0))
    task = 1
    a = network.down_masks[task][0](first0) * last0
    a = f.max_pool2d(network.down_between[0](a), 2)
    a = network.down_masks[task][1](torch.cat([first1, a], 1)) * last1
    a = f.max_pool2d(network.down_between[1](a), 2)

    def larger(z: Tensor) -> Tensor:
        return f.interpolate(z, scale_factor=2, mode="bilinear", align_corners=True)

    a = network.up_between[0](larger(a))
    a = network.up_masks[task][0](torch.cat([unpooled1, a], 1)) * back1
    a = network.up_between[1](larger(a))
    a = network.up_masks[task][1](torch.cat([unpooled0, a], 1)) * back0
    torch.testing.assert_close(network.represent(x)[task], a)
    torch.manual_seed(7)
    plain = small("segnet", KINDS).eval()
    plain.load_state_dict(
        {k: v for k, v in network.state_dict().items() if k in plain.state_dict()}
    )
    torch.testing.assert_close(plain.represent(x), back0)


def test_masks_belong_to_one_task_and_the_rest_to_all() -> None:
    torch.manual_seed(8)
    network = MTANNetwork(KINDS, (4, 6), (2, 2))
    outputs = network.predict(network.represent(torch.rand(2, 3, 8, 12)))
    groups = {
        "segnet": [*network.encoder.parameters(), *network.decoder.parameters()],
        "between": [*network.down_between.parameters(), *network.up_between.parameters()],
    }
    for task, output in enumerate(outputs):
        for other in range(3):
            masks = [*network.down_masks[other].parameters(), *network.up_masks[other].parameters()]
            found = torch.autograd.grad(
                output.square().sum(), masks, retain_graph=True, allow_unused=True
            )
            assert all((g is not None) == (other == task) for g in found)
        for own in groups.values():
            found = torch.autograd.grad(output.sum(), own, retain_graph=True, allow_unused=True)
            assert all(g is not None for g in found)
