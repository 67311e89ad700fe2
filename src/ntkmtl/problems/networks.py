"""Networks that the multi-task literature compares on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ntkmtl.problems.base import MultiTaskModel

__all__ = ["CelebANetwork", "celeba_losses"]


class CelebANetwork(MultiTaskModel):
    """The nine-layer convolutional network that the field trains on CelebA.

    Seven 3 x 3 convolutions (64, 128, 128, 256, 256, 512, 512 channels) with max pooling after the
    first, third and fifth, global average pooling, two linear layers of 512, batch norm and ReLU
    after each, and one linear head per attribute.

    Args:
        heads: Number of attributes.

    Example:
        >>> import torch
        >>> network = CelebANetwork(heads=3)
        >>> z = network.represent(torch.randn(2, 3, 64, 64))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([2, 512]), [(2,), (2,), (2,)])
    """

    def __init__(self, heads: int = 40) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, pool in (
            (64, True),
            (128, False),
            (128, True),
            (256, False),
            (256, True),
            (512, False),
            (512, False),
        ):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for _ in range(2):
            layers += [
                nn.Linear(512, 512, bias=False),
                nn.BatchNorm1d(512),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(heads))

    def represent(self, batch: Tensor) -> Tensor:
        """Return z, shape (B, 512), of images of shape (B, 3, H, W)."""
        features: Tensor = self.trunk(batch)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one logit per image and attribute: k tensors of shape (B,)."""
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(view).squeeze(1) for head, view in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the convolutions and the two linear layers."""
        return self.trunk.parameters()


def celeba_losses(outputs: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """Return the binary cross-entropy of each attribute.

    Args:
        outputs: k logits of shape (B,).
        labels: 0 or 1, shape (B, k).
    """
    return [
        torch.nn.functional.binary_cross_entropy_with_logits(logit, label)
        for logit, label in zip(outputs, labels.unbind(dim=1), strict=True)
    ]
