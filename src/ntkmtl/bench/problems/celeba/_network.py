"""The network of ``celeba``: nine layers as they are, and in stages for architectures."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.networks import CelebANetwork

__all__ = ["Batch", "Network", "backbone", "head"]


class Batch(NamedTuple):
    """b images.

    Attributes:
        images: From 0 to 1, float32 of shape (b, 3, side, side).
        labels: 0 or 1, float32 of shape (b, k).
    """

    images: Tensor
    labels: Tensor


def _images(batch: Batch | Tensor) -> Tensor:
    return batch.images if isinstance(batch, Batch) else batch


class Network(CelebANetwork):
    """The network on batches of the problem."""

    def represent(self, batch: Batch | Tensor) -> Tensor:
        """Return z of a batch, or of its images."""
        return super().represent(_images(batch))


def _stages(width: int) -> list[nn.Module]:
    """Make the trunk, cut after each pooling and after each linear layer."""
    made: list[nn.Module] = []
    stage: list[nn.Module] = []
    for layer in CelebANetwork(heads=0, width=width).trunk:
        stage.append(layer)
        of_a_linear_layer = isinstance(stage[0], nn.Linear) and isinstance(layer, nn.ReLU)
        if of_a_linear_layer or isinstance(layer, nn.MaxPool2d | nn.Flatten):
            made.append(nn.Sequential(*stage))
            stage = []
    return made


def backbone(width: int) -> Backbone:
    """Return the trunk of :class:`~ntkmtl.bench.problems.networks.CelebANetwork` in six stages.

    They are the convolutions up to each pooling, the fourth of which is over all places, and the
    two linear layers. Gates read the mean of the image over its pixels, and of feature maps the
    mean over their places.

    Args:
        width: Channels of the first convolution.

    Example:
        >>> import torch
        >>> trunk = backbone(4)
        >>> trunk.widths, trunk.encoder()(torch.zeros(2, 3, 32, 32)).shape
        ((4, 8, 16, 32, 32, 32), torch.Size([2, 32]))
    """
    return Backbone(
        partial(_stages, width),
        widths=tuple(times * width for times in (1, 2, 4, 8, 8, 8)),
        gate=_images,
        gate_width=3,
        read=_images,
    )


def head(width: int) -> nn.Module:
    """Make a head, which maps z of shape (b, 8 width) to logits of shape (b,)."""
    return nn.Sequential(nn.Linear(8 * width, 1), nn.Flatten(0))
