"""Networks with random data to time steps on: a step costs the same whatever the data show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from networks import DENSE_TASKS, SegNetMTAN, TransformerNetwork
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.celeba._network import CelebANetwork
from ntkmtl.bench.problems.qm9._network import MessagePassingNetwork, random_molecules

__all__ = ["WORKLOADS", "Workload"]

Representation = Tensor | list[Tensor]


@dataclass
class Workload:
    """A network, a batch, and its losses.

    Attributes:
        model: The network.
        inputs: One batch.
        sample_losses: From outputs to k losses per sample, each of shape (B,).
        losses: From outputs to k scalar losses, as plain training has them.
        shared: The shared parameters.
        own: The other parameters, one task after the other.
        modules: The modules of the trunk.
    """

    model: Any
    inputs: Any
    sample_losses: Callable[[Sequence[Tensor]], list[Tensor]]
    losses: Callable[[Sequence[Tensor]], list[Tensor]]
    shared: list[nn.Parameter]
    own: list[list[nn.Parameter]]
    modules: list[nn.Module]

    def represent(self) -> Representation:
        """Run the trunk; returns one tensor, or one per task."""
        features: Representation = self.model.represent(self.inputs)
        return features

    def predict(self, features: Any) -> list[Tensor]:
        """Run the heads."""
        outputs: list[Tensor] = self.model.predict(features)
        return outputs


def _scored(model: Any, inputs: Any, labels: Tensor, modules: list[nn.Module]) -> Workload:
    """Binary tasks with one logit each."""
    columns = labels.unbind(dim=1)

    def sample_losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [
            functional.binary_cross_entropy_with_logits(y, t, reduction="none")
            for y, t in zip(outputs, columns, strict=True)
        ]

    def losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [
            functional.binary_cross_entropy_with_logits(y, t)
            for y, t in zip(outputs, columns, strict=True)
        ]

    return Workload(
        model,
        inputs,
        sample_losses,
        losses,
        list(model.shared_parameters()),
        [list(head.parameters()) for head in model.heads],
        modules,
    )


def _celeba(tasks: int, batch: int, scale: float, device: str) -> Workload:
    side = max(8, int(64 * scale))
    model = CelebANetwork(tasks).to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = (torch.rand(batch, tasks, device=device) < 0.5).float()
    return _scored(model, images, labels, [model.trunk])


def _transformer(tasks: int, batch: int, scale: float, device: str) -> Workload:
    length, width = max(4, int(32 * scale)), max(16, int(128 * scale) // 4 * 4)
    model = TransformerNetwork(tasks, length=length, width=width).to(device)
    tokens = torch.randint(1000, (batch, length), device=device)
    labels = (torch.rand(batch, tasks, device=device) < 0.5).float()
    return _scored(model, tokens, labels, [model.token, model.position, model.encoder])


def _qm9(tasks: int, batch: int, scale: float, device: str) -> Workload:
    width = max(8, int(64 * scale))
    model = MessagePassingNetwork(tasks, width=width, hidden=2 * width).to(device)
    molecules = random_molecules(batch, atoms=max(4, int(18 * scale))).to(device)
    targets = torch.randn(tasks, batch, device=device)

    def sample_losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [(y - t).square() for y, t in zip(outputs, targets, strict=True)]

    def losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [functional.mse_loss(y, t) for y, t in zip(outputs, targets, strict=True)]

    return Workload(
        model,
        molecules,
        sample_losses,
        losses,
        list(model.shared_parameters()),
        [list(head.parameters()) for head in model.heads],
        [model.embed, model.convolve, model.update, model.readout, model.last],
    )


def _mtan(tasks: int, batch: int, scale: float, device: str) -> Workload:
    kinds = [DENSE_TASKS[i % len(DENSE_TASKS)] for i in range(tasks)]
    base = max(4, int(16 * scale))
    model = SegNetMTAN(kinds, widths=[base * m for m in (1, 2, 4, 8, 8)]).to(device)
    side = 32
    images = torch.randn(batch, 3, side, side, device=device)
    classes = torch.randint(13, (batch, side, side), device=device)
    depth = torch.rand(batch, 1, side, side, device=device) + 0.1
    normals = functional.normalize(torch.randn(batch, 3, side, side, device=device), dim=1)

    def pixels(kind: str, output: Tensor) -> Tensor:
        if kind == "segmentation":
            return functional.cross_entropy(output, classes, reduction="none")
        if kind == "depth":
            return (output - depth).abs().squeeze(1)
        return 1.0 - (output * normals).sum(dim=1)

    def sample_losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [pixels(k, y).mean(dim=(1, 2)) for k, y in zip(kinds, outputs, strict=True)]

    def losses(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [pixels(k, y).mean() for k, y in zip(kinds, outputs, strict=True)]

    attention = zip(model.encoder_attention, model.decoder_attention, model.heads, strict=True)
    return Workload(
        model,
        images,
        sample_losses,
        losses,
        list(model.shared_parameters()),
        [[p for module in parts for p in module.parameters()] for parts in attention],
        [model.encoder, model.decoder],
    )


@dataclass(frozen=True)
class Kind:
    """A network that can be timed.

    Attributes:
        make: From number of tasks, batch, scale and device to a workload.
        title: Name for tables.
        size: What is run, in words.
        tasks: Number of tasks that the field trains it with.
        batch: Samples per step.
        separate: Whether each task has features of its own.
    """

    make: Callable[[int, int, float, str], Workload]
    title: str
    size: str
    tasks: int
    batch: int
    separate: bool = False


WORKLOADS: dict[str, Kind] = {
    "celeba": Kind(
        _celeba, "CelebA network", "nine layers, images of 64 x 64, heads of one layer", 40, 32
    ),
    "qm9": Kind(
        _qm9,
        "QM9 message passing",
        "width 64, molecules of 9 to 18 atoms, heads of one layer",
        11,
        32,
    ),
    "mtan": Kind(
        _mtan,
        "SegNet-MTAN",
        "widths 16 to 128 (a quarter of the published ones), images of 32 x 32, features per task",
        3,
        16,
        separate=True,
    ),
    "transformer": Kind(
        _transformer,
        "Transformer",
        "3 layers, width 128, 4 attention heads, 32 tokens, heads of one layer",
        2,
        32,
    ),
}
