"""SegNet and the multi-task attention network on it, as the field trains them on dense labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.architectures import Backbone, Head
from ntkmtl.bench.problems.base import MultiTaskModel
from ntkmtl.bench.problems.dense._labels import ImageBatch, Kind

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of SegNet's five stages."""

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of SegNet's five stages."""


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _mask(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 1),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 1),
        nn.BatchNorm2d(after),
        nn.Sigmoid(),
    )


def _head(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, before, 3, padding=1), nn.Conv2d(before, channels, 1))


def _initialize(network: nn.Module) -> None:
    """Start weights of convolutions from Xavier's normal distribution, their biases from 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(cast("Tensor", module.bias))


_Plan = list[tuple[int, int, int]]


def _plan(widths: Sequence[int], depths: Sequence[int]) -> tuple[_Plan, _Plan]:
    """Return the stages of the encoder and those of the decoder, from the coarsest, as run.

    Each is its channels before and after it, and its number of convolutions.
    """
    if len(widths) != len(depths) or not widths:
        raise ValueError(
            f"widths and depths must name the same stages. Found {len(widths)} and {len(depths)}."
        )
    down = zip((3, *widths[:-1]), widths, depths, strict=True)
    up = zip(widths, (widths[0], *widths[:-1]), depths, strict=True)
    return list(down), list(up)[::-1]


def _fitting(images: Tensor, stages: int) -> Tensor:
    """Return the images, if they can be halved so many times."""
    multiple = 2**stages
    if images.shape[-2] % multiple or images.shape[-1] % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple}, found "
            f"{images.shape[-2]} x {images.shape[-1]}"
        )
    return images


class _Stage(nn.Module):
    """Some convolutions; returns the feature maps after the first and after the last."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.first = _convolution(before, after)
        self.rest = nn.Sequential(*(_convolution(after, after) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first, self.rest(first)


class SegNetNetwork(MultiTaskModel):
    """SegNet with one head per task on its last feature map.

    The convolutions of VGG-16 in five stages, each followed by max pooling, and their mirror image,
    each stage preceded by unpooling to the places of the maxima. Batch norm and ReLU after each
    convolution. A head is a 3 x 3 and a 1 x 1 convolution; normals are brought to length 1. Weights
    start from Xavier's normal distribution, biases from 0.

    Args:
        outputs: Channels of each task's output, by kind.
        widths: Channels of each stage.
        depths: Convolutions of each stage.

    Raises:
        ValueError: There is no task, or ``widths`` and ``depths`` are of different lengths.

    References:
        Badrinarayanan, Kendall, Cipolla: SegNet. TPAMI 2017.

    Example:
        >>> import torch
        >>> network = SegNetNetwork({"segmentation": 7, "depth": 1}, widths=(4, 8), depths=(2, 2))
        >>> z = network.represent(torch.randn(2, 3, 8, 12))
        >>> tuple(z.shape), [tuple(y.shape) for y in network.predict(z)]
        ((2, 4, 8, 12), [(2, 7, 8, 12), (2, 1, 8, 12)])
    """

    def __init__(
        self,
        outputs: Mapping[Kind, int],
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = DEPTHS,
    ) -> None:
        super().__init__()
        if not outputs:
            raise ValueError("a network needs at least one task")
        self.kinds: tuple[Kind, ...] = tuple(outputs)
        down, up = _plan(widths, depths)
        self.encoder = nn.ModuleList(_Stage(*stage) for stage in down)
        self.decoder = nn.ModuleList(_Stage(*stage) for stage in up)
        self.add_attention(widths)
        self.heads = nn.ModuleList(_head(widths[0], channels) for channels in outputs.values())
        _initialize(self)

    def add_attention(self, widths: Sequence[int]) -> None:
        """Make the layers between SegNet and the heads; none here."""

    def stages(
        self, images: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Run SegNet.

        Args:
            images: Shape (B, 3, H, W), H and W multiples of 2 to the number of stages.

        Returns:
            For each stage of the encoder its first and its last feature map, and for each of the
            decoder, from the coarsest, what it reads and its last feature map.

        Raises:
            ValueError: The images' sides are no such multiples.
        """
        x = _fitting(images, len(self.encoder))
        down, indices = [], []
        for stage in self.encoder:
            first, last = stage(x)
            down.append((first, last))
            x, index = functional.max_pool2d(last, 2, return_indices=True)
            indices.append(index)
        up = []
        for stage, index in zip(self.decoder, reversed(indices), strict=True):
            larger = _unpooled(x, index)
            x = stage(larger)[1]
            up.append((larger, x))
        return down, up

    def represent(self, batch: ImageBatch | Tensor) -> Tensor | list[Tensor]:
        """Return z of a batch, or of its images: the last feature map, (B, widths[0], H, W)."""
        return self.stages(_images(batch))[1][-1][1]

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return class scores (B, C, H, W), depths (B, 1, H, W) or unit normals (B, 3, H, W)."""
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        outputs = [head(view) for head, view in zip(self.heads, views, strict=True)]
        return [
            functional.normalize(output, dim=1) if kind == "normals" else output
            for kind, output in zip(self.kinds, outputs, strict=True)
        ]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of SegNet."""
        return chain(self.encoder.parameters(), self.decoder.parameters())


class MTANNetwork(SegNetNetwork):
    """The multi-task attention network on SegNet, with separate features for each task.

    At each stage a task makes a mask, from two 1 x 1 convolutions, of values from 0 to 1, and
    multiplies SegNet's last feature map of the stage by it. On the way down the mask is made from
    the stage's first feature map and from what comes from the stage before, and the product goes
    through a 3 x 3 convolution and max pooling to the next stage. On the way up what comes from the
    stage before is enlarged by linear interpolation, goes through a 3 x 3 convolution, and makes
    the mask with the unpooled map that the stage of SegNet reads. Masks are the task's own, and
    the 3 x 3 convolutions are shared by all tasks, as in the published code.

    :meth:`represent` returns one tensor per task. All before the heads counts as shared, as in the
    literature's comparisons: the masks' parameters get gradients from their own task alone.
    Arguments are those of :class:`SegNetNetwork`.

    References:
        Liu, Johns, Davison: End-to-end multi-task learning with attention. CVPR 2019.

    Example:
        >>> import torch
        >>> network = MTANNetwork({"segmentation": 7, "depth": 1}, widths=(4, 8), depths=(2, 2))
        >>> [tuple(z.shape) for z in network.represent(torch.randn(2, 3, 8, 12))]
        [(2, 4, 8, 12), (2, 4, 8, 12)]
    """

    def add_attention(self, widths: Sequence[int]) -> None:
        """Make the masks of each task, and the convolutions between the stages."""
        coming = (0, *widths[1:])
        leaving = (*widths[1:], widths[-1])
        back = (widths[0], *widths[:-1])
        self.down_between = nn.ModuleList(
            _convolution(width, after) for width, after in zip(widths, leaving, strict=True)
        )
        self.up_between = nn.ModuleList(
            _convolution(width, after)
            for width, after in zip(reversed(widths), reversed(back), strict=True)
        )
        self.down_masks = nn.ModuleList(
            nn.ModuleList(
                _mask(width + more, width) for width, more in zip(widths, coming, strict=True)
            )
            for _ in self.kinds
        )
        self.up_masks = nn.ModuleList(
            nn.ModuleList(
                _mask(width + after, after)
                for width, after in zip(reversed(widths), reversed(back), strict=True)
            )
            for _ in self.kinds
        )

    def represent(self, batch: ImageBatch | Tensor) -> list[Tensor]:
        """Return each task's z of a batch, or of its images: k tensors (B, widths[0], H, W)."""
        down, up = self.stages(_images(batch))
        return [self._attend(task, down, up) for task in range(len(self.kinds))]

    def _attend(
        self, task: int, down: Sequence[tuple[Tensor, Tensor]], up: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        coming: list[Tensor] = []
        down_masks: Any = self.down_masks[task]
        up_masks: Any = self.up_masks[task]
        for mask, between, (first, last) in zip(down_masks, self.down_between, down, strict=True):
            masked = mask(torch.cat([first, *coming], dim=1)) * last
            coming = [functional.max_pool2d(between(masked), 2)]
        (z,) = coming
        for mask, between, (larger, last) in zip(up_masks, self.up_between, up, strict=True):
            z = functional.interpolate(z, scale_factor=2.0, mode="bilinear", align_corners=True)
            z = mask(torch.cat([larger, between(z)], dim=1)) * last
        return z

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but those of the heads."""
        heads = {id(parameter) for parameter in self.heads.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in heads)


ARCHITECTURES: Mapping[str, type[SegNetNetwork]] = MappingProxyType(
    {"mtan": MTANNetwork, "segnet": SegNetNetwork}
)
"""Networks by name; further ones are made of :func:`backbone` and :func:`heads`."""


# ------------------------------------------------------------------------------------------------
# SegNet for the architectures that any encoder takes


class _CarriedMap(NamedTuple):
    """The input of a stage of SegNet, and the places of maxima that unpooling will still need."""

    x: Tensor
    places: tuple[Tensor, ...] = ()


class _Convolutions(nn.Sequential):
    """A stage of SegNet, from what is carried to its last feature map."""

    def forward(self, carried: _CarriedMap) -> Tensor:
        x = carried.x
        for layer in self:
            x = layer(x)
        return x


class _Normalized(nn.Module):
    """Vectors along dimension 1 brought to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1)


def _stages(widths: Sequence[int], depths: Sequence[int]) -> list[nn.Module]:
    down, up = _plan(widths, depths)
    made = [
        _Convolutions(
            _convolution(before, after), *(_convolution(after, after) for _ in range(depth - 1))
        )
        for before, after, depth in (*down, *up)
    ]
    for stage in made:
        _initialize(stage)
    return list(made)


def _read(stages: int, batch: ImageBatch | Tensor) -> _CarriedMap:
    return _CarriedMap(_fitting(_images(batch), stages))


def _carry(stages: int, number: int, read: _CarriedMap, said: Tensor) -> _CarriedMap:
    """Pool the map of a stage of the encoder, and enlarge what a stage of the decoder reads."""
    x, places = said, read.places
    if number < stages:
        x, place = functional.max_pool2d(said, 2, return_indices=True)
        places = (*places, place)
    if number >= stages - 1:
        x, places = _unpooled(x, places[-1]), places[:-1]
    return _CarriedMap(x, places)


def backbone(widths: Sequence[int] = WIDTHS, depths: Sequence[int] = DEPTHS) -> Backbone:
    """Return SegNet, encoder and decoder, for architectures: each of its stages is one.

    Units between stages mix the last feature maps before these are pooled, so each path
    through the network pools its own mixtures and unpools to the places of their maxima. Gates read
    means over pixels, of the image or of the feature map.

    Raises:
        ValueError: ``widths`` and ``depths`` are of different lengths.

    Example:
        >>> import torch
        >>> segnet = backbone(widths=(4, 8), depths=(2, 2))
        >>> segnet.widths
        (4, 8, 4, 4)
        >>> segnet.encoder()(segnet.read(torch.zeros(2, 3, 8, 12))).shape
        torch.Size([2, 4, 8, 12])
    """
    _plan(widths, depths)  # refuses stages that do not fit before one is made
    return Backbone(
        partial(_stages, tuple(widths), tuple(depths)),
        widths=(*widths, *reversed((widths[0], *widths[:-1]))),
        gate=_images,
        gate_width=3,
        read=partial(_read, len(widths)),
        carry=partial(_carry, len(widths)),
    )


def _made_head(kind: Kind, before: int, channels: int) -> nn.Module:
    head = _head(before, channels)
    _initialize(head)
    return head.append(_Normalized()) if kind == "normals" else head


def heads(outputs: Mapping[Kind, int], width: int = WIDTHS[0]) -> list[Head]:
    """Return one maker of a head per task, those of :class:`SegNetNetwork`."""
    return [partial(_made_head, kind, width, channels) for kind, channels in outputs.items()]


def _unpooled(x: Tensor, index: Tensor) -> Tensor:
    """Return a map of twice the height and width with ``x`` at the places of the maxima, else 0.

    torch's own unpooling refuses to run where deterministic algorithms are asked for, as places
    might coincide; those of windows side by side never do.
    """
    shape = (*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1])
    flat = x.new_zeros(*shape[:-2], shape[-2] * shape[-1])
    return flat.scatter(-1, index.flatten(-2), x.flatten(-2)).view(shape)


def _images(batch: ImageBatch | Tensor) -> Tensor:
    return batch.images if isinstance(batch, ImageBatch) else batch
