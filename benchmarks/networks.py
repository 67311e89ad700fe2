"""Networks and losses that only measurements use; the problems have their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.base import MultiTaskModel, linear_outputs

__all__ = ["DENSE_TASKS", "SegNetMTAN", "TransformerNetwork", "celeba_losses", "dense_losses"]

DENSE_TASKS = ("segmentation", "depth", "normals")


class SegNetMTAN(nn.Module):
    """A multi-task attention network on SegNet, for measurements of time and memory.

    It is that of the literature but for what is said below; the problems ``nyuv2`` and
    ``cityscapes`` train :class:`~ntkmtl.bench.problems.dense.MTANNetwork`, which follows
    the published code.

    SegNet is the convolutions of VGG-16 in five stages, each followed by max pooling, and their
    mirror image, each preceded by unpooling to the places of the maxima. Each task owns one
    attention module per stage: from the stage's first feature map and from what the task's module
    of the stage before hands on, two 1 x 1 convolutions and a sigmoid make a mask, and the stage's
    last feature map times that mask goes through a 3 x 3 convolution to the next stage. Heads are a
    3 x 3 and a 1 x 1 convolution. Batch norm and ReLU after every convolution but the last ones.

    What a head reads is its task's own masked features, so :meth:`represent` returns a list of k
    tensors, which go to :meth:`ntkmtl.Balancer.backward` as they are.

    It differs from the published network in two places:

    - The 3 x 3 convolutions between attention modules, one per stage, are each task's own here. In
      the published code all tasks share them, and the masks alone are a task's own.
    - In the decoder a mask is made from the feature map after the stage's first convolution here,
      as in the encoder. In the published code it is made from what that convolution reads, the
      unpooled map, which in three of five stages has twice as many channels.

    Together they make 64,411,345 parameters at the published size with three tasks, where the
    published network has 44,229,073: two further copies of the ten convolutions between modules
    (20,440,320) less the narrower masks (258,048). Two further differences change no shape: weights
    start from torch's own distributions here, and from Xavier's normal distribution with biases of
    0 there; and :meth:`shared_parameters` yields SegNet alone, where comparisons in the literature
    count all before the heads.

    Args:
        tasks: Kinds of the k tasks, each of ``"segmentation"``, ``"depth"``, ``"normals"``; a kind
            may come more than once.
        classes: Number of classes of a segmentation.
        widths: Channels of each stage.
        depths: Convolutions of each stage.

    Raises:
        ValueError: A kind is unknown, or ``widths`` and ``depths`` are of different lengths.

    References:
        Liu, Johns, Davison: End-to-end multi-task learning with attention. CVPR 2019.
        Badrinarayanan, Kendall, Cipolla: SegNet. TPAMI 2017.

    Example:
        >>> import torch
        >>> network = SegNetMTAN(widths=(4, 8), depths=(2, 2))
        >>> z = network.represent(torch.randn(2, 3, 8, 12))
        >>> [tuple(t.shape) for t in z]
        [(2, 4, 8, 12), (2, 4, 8, 12), (2, 4, 8, 12)]
        >>> [tuple(y.shape) for y in network.predict(z)]
        [(2, 13, 8, 12), (2, 1, 8, 12), (2, 3, 8, 12)]
    """

    def __init__(
        self,
        tasks: Sequence[str] = DENSE_TASKS,
        classes: int = 13,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        unknown = sorted(set(tasks) - set(DENSE_TASKS))
        if unknown:
            raise ValueError(f"tasks must be of {', '.join(DENSE_TASKS)}, found {unknown}")
        if len(widths) != len(depths):
            raise ValueError(
                f"widths and depths must name the same stages, found {len(widths)} and "
                f"{len(depths)}"
            )
        self.tasks = tuple(tasks)
        inputs = (3, *widths[:-1])
        outputs = (widths[0], *widths[:-1])
        self.encoder = nn.ModuleList(
            _Stage(before, width, depth)
            for before, width, depth in zip(inputs, widths, depths, strict=True)
        )
        # From the coarsest stage to the finest, as they are run.
        self.decoder = nn.ModuleList(
            _Stage(width, after, depth)
            for width, after, depth in zip(
                reversed(widths), reversed(outputs), reversed(depths), strict=True
            )
        )
        # What the module of the stage before hands on, of this stage's width: nothing at first.
        handed = (0, *widths[1:])
        self.encoder_attention = nn.ModuleList(
            nn.ModuleList(
                _Attention(width + before, width, after)
                for before, width, after in zip(
                    handed, widths, (*widths[1:], widths[-1]), strict=True
                )
            )
            for _ in tasks
        )
        self.decoder_attention = nn.ModuleList(
            nn.ModuleList(
                _UpwardAttention(width, after)
                for width, after in zip(reversed(widths), reversed(outputs), strict=True)
            )
            for _ in tasks
        )
        channels = {"segmentation": classes, "depth": 1, "normals": 3}
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[0], widths[0], 3, padding=1),
                nn.Conv2d(widths[0], channels[task], 1),
            )
            for task in tasks
        )

    def represent(self, batch: Tensor) -> list[Tensor]:
        """Return each task's features, k tensors of shape (B, widths[0], H, W).

        Args:
            batch: Images of shape (B, 3, H, W), H and W multiples of 2 to the number of stages.
        """
        x = batch
        down: list[tuple[Tensor, Tensor]] = []
        indices: list[Tensor] = []
        for stage in self.encoder:
            first, last = stage(x)
            down.append((first, last))
            x, index = functional.max_pool2d(last, 2, return_indices=True)
            indices.append(index)
        up: list[tuple[Tensor, Tensor]] = []
        for stage, index in zip(self.decoder, reversed(indices), strict=True):
            first, last = stage(functional.max_unpool2d(x, index, [2, 2]))
            up.append((first, last))
            x = last
        return [self._attend(i, down, up) for i in range(len(self.tasks))]

    def _attend(
        self, task: int, down: Sequence[tuple[Tensor, Tensor]], up: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Run one task's attention modules along the shared feature maps."""
        handed: Tensor | None = None
        downward: Any = self.encoder_attention[task]
        upward: Any = self.decoder_attention[task]
        for module, (first, last) in zip(downward, down, strict=True):
            handed = functional.max_pool2d(module(first, last, handed), 2)
        for module, (first, last) in zip(upward, up, strict=True):
            handed = module(first, last, handed)
        assert handed is not None
        return handed

    def predict(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return class scores (B, classes, H, W), depths (B, 1, H, W) or unit normals (B, 3, H, W).

        Args:
            features: What :meth:`represent` returned.
        """
        outputs = [head(z) for head, z in zip(self.heads, features, strict=True)]
        return [
            functional.normalize(output, dim=1) if task == "normals" else output
            for task, output in zip(self.tasks, outputs, strict=True)
        ]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of SegNet; those of the attention modules belong to the tasks."""
        yield from self.encoder.parameters()
        yield from self.decoder.parameters()


def _convolution(before: int, after: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2), nn.BatchNorm2d(after), nn.ReLU()
    )


class _Stage(nn.Module):
    """Some convolutions; returns the feature maps after the first and after the last."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.first = _convolution(before, after)
        self.rest = nn.Sequential(*[_convolution(after, after) for _ in range(depth - 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first, self.rest(first)


class _Attention(nn.Module):
    """A mask from the stage's first map and what was handed on; hands on the masked last map."""

    def __init__(self, before: int, width: int, after: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            _convolution(before, width, 1),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.Sigmoid(),
        )
        self.out = _convolution(width, after)

    def forward(self, first: Tensor, last: Tensor, handed: Tensor | None) -> Tensor:
        seen = first if handed is None else torch.cat([first, handed], dim=1)
        masked: Tensor = self.out(self.mask(seen) * last)
        return masked


class _UpwardAttention(nn.Module):
    """The decoder's: what was handed on is enlarged and convolved first."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.enter = _convolution(before, width)
        self.mask = nn.Sequential(
            _convolution(2 * width, width, 1),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.Sigmoid(),
        )

    def forward(self, first: Tensor, last: Tensor, handed: Tensor) -> Tensor:
        larger = functional.interpolate(
            handed, scale_factor=2.0, mode="bilinear", align_corners=True
        )
        mask: Tensor = self.mask(torch.cat([first, self.enter(larger)], dim=1))
        return mask * last


def dense_losses(
    tasks: Sequence[str], outputs: Sequence[Tensor], labels: Sequence[Tensor]
) -> list[Tensor]:
    """Return cross-entropy, mean absolute error and one minus the cosine, each over valid pixels.

    A batch without a valid pixel of a task gives 0.

    Args:
        tasks: Kinds of the k tasks.
        outputs: What :meth:`SegNetMTAN.predict` returned.
        labels: Classes, int64 of shape (B, H, W), -1 where there is none; depths, (B, 1, H, W); or
            unit normals, (B, 3, H, W). Depths and normals of zero are not valid.

    Example:
        >>> import torch
        >>> up = torch.zeros(1, 3, 2, 2)
        >>> up[:, 2] = 1.0
        >>> dense_losses(["depth", "normals"], [torch.zeros(1, 1, 2, 2), up], [up[:, 2:] * 3, up])
        [tensor(3.), tensor(0.)]
    """
    losses = []
    for task, output, label in zip(tasks, outputs, labels, strict=True):
        if task == "segmentation":
            total = functional.cross_entropy(output, label, ignore_index=-1, reduction="sum")
            losses.append(total / (label != -1).sum().clamp_min(1))
            continue
        valid = (label != 0).any(dim=1)
        if task == "depth":
            error = (output - label).abs().squeeze(1)
        else:
            error = 1.0 - (output * label).sum(dim=1)
        losses.append((error * valid).sum() / valid.sum().clamp_min(1))
    return losses


class TransformerNetwork(MultiTaskModel):
    """A small transformer encoder, averaged over positions, with k linear heads.

    Args:
        heads: Number of tasks.
        vocabulary: Number of tokens.
        length: Longest sequence.
        width: Width of a token's state and of z.
        attention_heads: Heads of an attention layer.
        layers: Number of encoder layers.
        dropout: Probability of dropping an entry.

    Example:
        >>> import torch
        >>> network = TransformerNetwork(heads=2, vocabulary=10, length=6, width=8, layers=1)
        >>> z = network.represent(torch.zeros(3, 6, dtype=torch.int64))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([3, 8]), [(3,), (3,)])
    """

    def __init__(
        self,
        heads: int = 11,
        vocabulary: int = 1000,
        length: int = 32,
        width: int = 128,
        attention_heads: int = 4,
        layers: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, attention_heads, 4 * width, dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(heads))

    def represent(self, batch: Tensor) -> Tensor:
        """Return z, shape (B, width), of tokens, int64 of shape (B, T)."""
        places = torch.arange(batch.shape[1], device=batch.device)
        states = self.encoder(self.token(batch) + self.position(places))
        features: Tensor = states.mean(dim=1)
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one number per sequence and task: k tensors of shape (B,)."""
        return linear_outputs(self.heads, features)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the heads'."""
        for module in (self.token, self.position, self.encoder):
            yield from module.parameters()


def celeba_losses(outputs: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """Return the binary cross-entropy of each attribute.

    Args:
        outputs: k logits of shape (B,).
        labels: 0 or 1, shape (B, k).
    """
    return [
        functional.binary_cross_entropy_with_logits(logit, label)
        for logit, label in zip(outputs, labels.unbind(dim=1), strict=True)
    ]
