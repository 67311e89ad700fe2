"""What an architecture is built over: an encoder in stages, heads, and what gates read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ntkmtl.bench.problems.base import MultiTaskModel

Head = Callable[[], nn.Module]
"""Makes a fresh head, which maps a representation to a task's output."""


def _whole(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Backbone:
    """An encoder that can be made any number of times.

    Attributes:
        stages: Makes the fresh modules of one encoder, run one after the other. The first reads
            ``read(batch)``; the last one's output is z, samples along dimension 0 and features or
            channels along dimension 1. Units of cross-stitch networks stand between stages, and
            each is a level of PLE.
        widths: Size of dimension 1 of each stage's output.
        gate: What gates read of a batch: shape (b, gate_width), or (b, gate_width, ...), of which
            the mean over the dimensions at the end is taken.
        gate_width: Above.
        read: What the first stage reads of a batch; the batch itself unless said.
        carry: What the next stage reads, of the stage's number, of what the stage read and of its
            output, or of the mixture of outputs that stands for it; the output itself unless said.
            It has no parameters. Networks whose later stages need what earlier ones found along the
            same way carry it here, as SegNet does the places of maxima.
        seen: What gates after a stage read, of the same three; the output's mean over places unless
            said.

    Example:
        >>> import torch
        >>> stages = lambda: [nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 4)]
        >>> backbone = Backbone(stages, widths=(8, 4), gate=lambda x: x, gate_width=3)
        >>> backbone.encoder()(torch.zeros(5, 3)).shape
        torch.Size([5, 4])
        >>> backbone.whole().widths
        (4,)
    """

    stages: Callable[[], Sequence[nn.Module]]
    widths: tuple[int, ...]
    gate: Callable[[Any], Tensor]
    gate_width: int
    read: Callable[[Any], Any] = _whole
    carry: Callable[[int, Any, Tensor], Any] | None = None
    seen: Callable[[int, Any, Tensor], Tensor] | None = None

    def encoder(self) -> nn.Module:
        """Make one encoder, from what the first stage reads to z."""
        return _Encoder(self)

    def after(self, number: int, read: Any, said: Tensor) -> Any:
        """Return what comes after a stage: what the next one reads, or z after the last.

        Args:
            number: The stage's, from 0.
            read: What it read.
            said: Its output, or the mixture of outputs that stands for it.
        """
        if self.carry is None or number == len(self.widths) - 1:
            return said
        return self.carry(number, read, said)

    def gated(self, number: int, read: Any, said: Tensor) -> Tensor:
        """Return what gates after a stage read, shape (b, width of the stage's output).

        Arguments are those of :meth:`after`.
        """
        return pooled(said) if self.seen is None else self.seen(number, read, said)

    def made(self) -> list[nn.Module]:
        """Make the stages of one encoder.

        Raises:
            ValueError: Their number is not that of ``widths``.
        """
        stages = list(self.stages())
        if len(stages) != len(self.widths) or not stages:
            raise ValueError(
                "stages and widths must name the same stages, at least one. Found "
                f"{len(stages)} and {len(self.widths)}."
            )
        return stages

    def whole(self) -> Backbone:
        """Return the same encoder as one stage."""
        return Backbone(
            lambda: [self.encoder()], self.widths[-1:], self.gate, self.gate_width, self.read
        )


class _Encoder(nn.Sequential):
    """The stages of one encoder, one after the other."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(*backbone.made())
        self._after = backbone.after

    def forward(self, x: Any) -> Any:
        for number, stage in enumerate(self):
            x = self._after(number, x, stage(x))
        return x


class Represent(nn.Module):
    """The trunk of a custom network as a stage: its ``represent``.

    Args:
        network: A network, best without heads, as they would be parameters that nothing trains.
    """

    def __init__(self, network: MultiTaskModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Any) -> Any:
        """Return the network's representation."""
        return self.network.represent(batch)


def pooled(x: Tensor) -> Tensor:
    """Return the mean over all dimensions but the first two, shape (b, c).

    Raises:
        ValueError: There is no second dimension.

    Example:
        >>> import torch
        >>> pooled(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """
    if x.ndim < 2:
        raise ValueError(f"gates read features along dimension 1. Found shape {tuple(x.shape)}.")
    return x if x.ndim == 2 else x.flatten(2).mean(dim=2)


class Architecture(MultiTaskModel):
    """A network over a :class:`Backbone` with one head per task.

    Args:
        backbone: The encoder.
        heads: One maker of a head per task; a single one makes the single-task network.

    Attributes:
        summary: One sentence for tables and reports.

    Raises:
        ValueError: There is no head.
    """

    summary: ClassVar[str]

    def __init__(self, backbone: Backbone, heads: Sequence[Head]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("a network needs at least one head")
        self.backbone = backbone
        self.number_of_tasks = len(heads)
        self.add_encoder(backbone)
        self.heads = nn.ModuleList(make() for make in heads)

    @abstractmethod
    def add_encoder(self, backbone: Backbone) -> None:
        """Make all that is below the heads."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the losses of several tasks reach."""

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one output per head.

        Args:
            features: One tensor per head; or one tensor z, where :meth:`represent` returns one.

        Raises:
            ValueError: There are not as many tensors as heads.
        """
        if isinstance(features, Tensor):
            if self.private_below:
                raise ValueError(
                    f"{type(self).__name__} has a representation for each of its {len(self.heads)} "
                    "tasks: pass the list that represent returned. Found one tensor."
                )
            features = [features] * len(self.heads)
        if len(features) != len(self.heads):
            raise ValueError(f"{len(features)} representations for {len(self.heads)} heads")
        return [head(z) for head, z in zip(self.heads, features, strict=True)]


class HardSharing(Architecture):
    """One encoder that all heads read: y_i = h_i(f(x)).

    Shared is the encoder.

    Args:
        backbone: The encoder f.
        heads: One maker of a head h_i per task.

    References:
        Caruana: Multitask learning. Machine Learning 28, 1997.
    """

    summary: ClassVar[str] = "one encoder that all heads read"

    def add_encoder(self, backbone: Backbone) -> None:
        """Make the encoder."""
        self.trunk = backbone.encoder()

    def represent(self, batch: Any) -> Tensor:
        """Return z, shape (b, ...)."""
        z: Tensor = self.trunk(self.backbone.read(batch))
        return z

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the encoder."""
        return self.trunk.parameters()
