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

    Example:
        >>> import torch
        >>> backbone = Backbone(lambda: [nn.Linear(3, 4)], (4,), gate=lambda x: x, gate_width=3)
        >>> network = HardSharing(backbone, [lambda: nn.Linear(4, 1)] * 2)
        >>> z = network.represent(torch.zeros(5, 3))
        >>> z.shape, [tuple(y.shape) for y in network.predict(z)]
        (torch.Size([5, 4]), [(5, 1), (5, 1)])
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
