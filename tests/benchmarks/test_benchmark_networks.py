"""The networks that steps are timed on, against slow and obvious versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import SegNetMTAN, TransformerNetwork, dense_losses
from torch import nn
from torch.nn import functional

from ntkmtl import Balancer
from ntkmtl.bench.problems.dense import MTANNetwork
from ntkmtl.bench.problems.qm9._network import (
    Graphs,
    MessagePassingNetwork,
    random_molecules,
)


def test_edge_convolution_is_the_sum_over_edges_of_a_matrix_each() -> None:
    network = MessagePassingNetwork(heads=1, width=6, hidden=10).double()
    convolve = network.convolve
    batch = Graphs(*(t.double() for t in random_molecules(2, atoms=5)))
    x = torch.randn(2, 5, 6, dtype=torch.float64) * batch.present[:, :, None]
    fast = convolve(x, convolve.of_edges(batch.edges, batch.linked), batch.linked)
    make = nn.Sequential(convolve.first, nn.ReLU(), convolve.second)
    for b in range(2):
        for i in range(5):
            messages = [
                x[b, j] @ make(batch.edges[b, i, j]).view(6, 6)
                for j in range(5)
                if batch.linked[b, i, j]
            ]
            mean = torch.stack(messages).mean(dim=0) if messages else torch.zeros(6)
            torch.testing.assert_close(fast[b, i], convolve.root(x[b, i]) + mean)


def test_padding_and_order_of_atoms_do_not_matter() -> None:
    network = MessagePassingNetwork(heads=2, width=8, hidden=16).double()
    batch = Graphs(*(t.double() for t in random_molecules(3, atoms=6)))
    z = network.represent(batch)
    wider = Graphs(
        functional.pad(batch.nodes, (0, 0, 0, 2), value=9.0),
        functional.pad(batch.edges, (0, 0, 0, 2, 0, 2), value=9.0),
        functional.pad(batch.linked, (0, 2, 0, 2)),
        functional.pad(batch.present, (0, 2)),
    )
    torch.testing.assert_close(network.represent(wider), z)
    order = torch.randperm(6)
    mixed = Graphs(
        batch.nodes[:, order],
        batch.edges[:, order][:, :, order],
        batch.linked[:, order][:, :, order],
        batch.present[:, order],
    )
    torch.testing.assert_close(network.represent(mixed), z)


def test_mtan_keeps_its_tasks_apart() -> None:
    kinds = ("segmentation", "depth", "normals", "depth")
    network = SegNetMTAN(kinds, classes=5, widths=(4, 6, 8), depths=(1, 2, 2))
    z = network.represent(torch.randn(2, 3, 16, 8))
    outputs = network.predict(z)
    assert [y.shape[1] for y in outputs] == [5, 1, 3, 1]
    torch.testing.assert_close(outputs[2].norm(dim=1), torch.ones(2, 16, 8))
    outputs[1].sum().backward()
    touched = {name for name, p in network.named_parameters() if p.grad is not None}
    assert all(name.split(".")[1] == "1" for name in touched if "attention" in name)
    shared = {id(p) for p in network.shared_parameters()}
    in_blocks = {n for n, p in network.named_parameters() if id(p) in shared}
    assert in_blocks == {
        n for n, _ in network.named_parameters() if n.split(".")[0] in ("encoder", "decoder")
    }
    assert in_blocks <= touched


def test_mtan_at_its_published_size() -> None:
    # VGG-16's 13 convolutions have 14.71 million weights, and as many again on the way back.
    with torch.device("meta"):
        network = SegNetMTAN()
    convolutions = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(m.weight.numel() for m in convolutions) == 14_710_464


def test_mtan_goes_through_the_balancer() -> None:
    kinds = ("segmentation", "depth", "normals")
    network = SegNetMTAN(kinds, widths=(4, 8), depths=(1, 1))
    z = network.represent(torch.randn(4, 3, 8, 8))
    labels = [
        torch.randint(13, (4, 8, 8)),
        torch.rand(4, 1, 8, 8) + 0.1,
        functional.normalize(torch.randn(4, 3, 8, 8), dim=1),
    ]
    losses = dense_losses(kinds, network.predict(z), labels)
    out = Balancer("ntkmtl-sr", minibatches=2).backward(losses, features=z)
    assert bool((out.weights > 0).all())


def test_pixels_that_are_not_valid_do_not_count() -> None:
    depth, guess = torch.rand(2, 1, 4, 4) + 0.1, torch.rand(2, 1, 4, 4)
    holes = depth.clone()
    holes[:, :, :2] = 0.0
    (found,) = dense_losses(["depth"], [guess], [holes])
    torch.testing.assert_close(found, (guess - depth).abs()[:, :, 2:].mean())


def test_losses_of_a_batch_without_a_valid_pixel_are_zero() -> None:
    kinds = {"segmentation": 5, "depth": 1, "normals": 3}
    outputs = [torch.randn(2, channels, 4, 4, requires_grad=True) for channels in kinds.values()]
    labels = [
        torch.full((2, 4, 4), -1),
        torch.zeros(2, 1, 4, 4),
        torch.zeros(2, 3, 4, 4),
    ]
    losses = dense_losses(list(kinds), outputs, labels)
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    for gradient in torch.autograd.grad(losses, outputs):
        assert not gradient.any()


def test_segmentation_is_the_mean_over_labeled_pixels() -> None:
    scores = torch.randn(3, 5, 6, 8, requires_grad=True)
    labels = torch.randint(-1, 5, (3, 6, 8))
    (found,) = dense_losses(["segmentation"], [scores], [labels])
    mean = functional.cross_entropy(scores, labels, ignore_index=-1)
    torch.testing.assert_close(found, mean)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (found, mean)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("edges",)}, "tasks must be of segmentation, depth, normals"),
        ({"widths": (4, 8), "depths": (2,)}, "same stages"),
    ],
)
def test_mtan_refuses_what_it_does_not_know(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegNetMTAN(**options)  # type: ignore[arg-type]


def test_transformer_sees_order() -> None:
    network = TransformerNetwork(heads=1, vocabulary=10, length=4, width=16, layers=1)
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    z = network.represent(tokens)
    assert not torch.allclose(z[0], z[1], atol=1e-4)


def test_the_network_of_the_measurements_differs_in_what_its_docstring_says() -> None:
    with torch.device("meta"):
        measured, published = (
            SegNetMTAN(),
            MTANNetwork({"segmentation": 13, "depth": 1, "normals": 3}),
        )
    between = sum(
        9 * before * after + after + 2 * after  # a convolution with bias, and its batch norm
        for before, after in [
            *[(64, 128), (128, 256), (256, 512), (512, 512), (512, 512)],
            *[(512, 512), (512, 256), (256, 128), (128, 64), (64, 64)],
        ]
    )
    count = [sum(p.numel() for p in network.parameters()) for network in (measured, published)]
    narrower = 3 * (256 * 256 + 128 * 128 + 64 * 64)
    assert count[0] - count[1] == 2 * between - narrower
    said = " ".join(str(SegNetMTAN.__doc__).split())
    for number in (*count, 2 * between, narrower):
        assert f"{number:,}" in said
    # A mask of the decoder: after the first convolution here, before it in the published code.
    for place, stage in enumerate(published.decoder):
        here: Any = measured.decoder_attention[0][place]  # type: ignore[index]
        there: Any = published.up_masks[0][place]  # type: ignore[index]
        convolution: Any = stage
        read, after = convolution.first[0].in_channels, convolution.first[0].out_channels
        assert here.mask[0][0].in_channels == after + after
        assert there[0].in_channels == read + after
