"""Hard parameter sharing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from ntkmtl.bench.problems.architectures._backbone import Architecture, Backbone


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
