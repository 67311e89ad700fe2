"""The network of ``celeba``: nine layers as they are, and in stages for architectures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from ntkmtl.bench.problems.architectures import Backbone
from ntkmtl.bench.problems.base import MultiTaskModel, linear_outputs


class FaceBatch(NamedTuple):
    """b images.

    Attributes:
        images: From 0 to 1, float32 of shape (b, 3, side, side).
        labels: 0 or 1, float32 of shape (b, k).
    """

    images: Tensor
    labels: Tensor


def _images(batch: FaceBatch | Tensor) -> Tensor:
    return batch.images if isinstance(batch, FaceBatch) else batch


class CelebANetwork(MultiTaskModel):
    """The nine-layer convolutional network that the field trains on CelebA.

    Seven 3 x 3 convolutions (64, 128, 128, 256, 256, 512, 512 channels) with max pooling after the
    first, third and fifth, global average pooling, two linear layers of 512, batch norm and ReLU
    after each, and one linear head per attribute.

    Args:
        heads: Number of attributes.
        width: Channels of the first convolution, 64 in the literature; the other layers keep their
            proportion to it.

    Example:
        >>> import torch
        >>> network = CelebANetwork(heads=3)
        >>> z = network.represent(torch.randn(2, 3, 64, 64))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([2, 512]), [(2,), (2,), (2,)])
    """

    def __init__(self, heads: int = 40, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for times, pool in (
            (1, True),
            (2, False),
            (2, True),
            (4, False),
            (4, True),
            (8, False),
            (8, False),
        ):
            layers += [
                nn.Conv2d(channels, times * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(times * width),
                nn.ReLU(inplace=True),
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = times * width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            layers += [
                nn.Linear(channels, channels, bias=False),
                nn.BatchNorm1d(channels),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(channels, 1) for _ in range(heads))

    def represent(self, batch: FaceBatch | Tensor) -> Tensor:
        """Return z, shape (B, 8 width), of a batch, or of images of shape (B, 3, H, W)."""
        features: Tensor = self.trunk(_images(batch))
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one logit per image and attribute: k tensors of shape (B,)."""
        return linear_outputs(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the convolutions and the two linear layers."""
        return self.trunk.parameters()


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
    """Return the trunk of :class:`CelebANetwork` in six stages.

    They are the convolutions up to each pooling, the fourth of which is over all places, and the
    two linear layers. Gates read the mean of the image over its pixels, and of feature maps the
    mean over their places.

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
