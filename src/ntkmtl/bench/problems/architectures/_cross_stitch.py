"""Cross-stitch networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.architectures._backbone import Architecture, Backbone, Head


class CrossStitch(Architecture):
    r"""An encoder per task, and after each stage a unit that mixes the outputs of the encoders.

    With x_j the output of task j's stage, what task i's next stage reads, or its head after the
    last, is

        x'_i = sum_j alpha_ij x_j        (Eq. 1, there for two tasks).

    The matrix alpha of a unit is learned with everything else. Its diagonal starts at ``same``
    (alpha_S in the paper) and the rest of each row shares 1 - ``same`` equally (alpha_D for two
    tasks), so that a unit begins as a convex combination. The paper trains units with a larger
    learning rate than the encoders; here all parameters have one.

    Shared are all encoders and all units, as each of their tensors is reached by the losses of all
    tasks; row i of the last unit is reached by task i's loss alone, and so is its part of a
    gradient. A network of one task has no units: there is nothing to mix.

    Args:
        backbone: The encoder of which each task gets its own.
        heads: One maker of a head per task.
        same: What the diagonal of alpha starts at, from 0 to 1.
        per_channel: Whether each channel has its own alpha.

    Raises:
        ValueError: ``same`` is not in [0, 1], or there is no head.

    References:
        Misra, Shrivastava, Gupta, Hebert: Cross-stitch networks for multi-task learning. CVPR 2016,
        Eq. 1; the initialization is theirs too.

    Example:
        >>> import torch
        >>> backbone = Backbone(lambda: [nn.Linear(3, 4)], (4,), gate=lambda x: x, gate_width=3)
        >>> network = CrossStitch(backbone, [lambda: nn.Linear(4, 1)] * 3)
        >>> network.units[0][0].detach()
        tensor([0.9000, 0.0500, 0.0500])
    """

    summary: ClassVar[str] = "an encoder per task, with cross-stitch units after each stage"
    private_below: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[Head],
        *,
        same: float = 0.9,
        per_channel: bool = False,
    ) -> None:
        if not 0.0 <= same <= 1.0:
            raise ValueError(f"same must be in [0, 1]. Found same={same}.")
        self._same = float(same)
        self._per_channel = per_channel
        super().__init__(backbone, heads)

    def add_encoder(self, backbone: Backbone) -> None:
        """Make the encoders and the units."""
        k = self.number_of_tasks
        self.encoders = nn.ModuleList(nn.ModuleList(backbone.made()) for _ in range(k))
        self.units = nn.ParameterList()
        if k == 1:
            return
        alpha = torch.full((k, k), (1.0 - self._same) / (k - 1)).fill_diagonal_(self._same)
        for width in backbone.widths:
            unit = alpha[..., None].repeat(1, 1, width) if self._per_channel else alpha.clone()
            self.units.append(nn.Parameter(unit))

    def represent(self, batch: Any) -> list[Tensor]:
        """Return each task's z, k tensors of shape (b, ...)."""
        xs: list[Any] = [self.backbone.read(batch)] * self.number_of_tasks
        encoders: Any = self.encoders
        for number in range(len(self.backbone.widths)):
            said = [encoder[number](x) for encoder, x in zip(encoders, xs, strict=True)]
            if len(self.units):
                said = self._stitched(self.units[number], torch.stack(said))
            xs = [self.backbone.after(number, *pair) for pair in zip(xs, said, strict=True)]
        return xs

    def _stitched(self, alpha: Tensor, x: Tensor) -> list[Tensor]:
        """Mix outputs of shape (k, b, c, ...)."""
        equation = "jc,jbc...->bc..." if self._per_channel else "j,jb...->b..."
        # One operation per task: each representation is then a tensor of its own in the graph.
        return [torch.einsum(equation, row, x) for row in alpha]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of all encoders and all units."""
        return chain(self.encoders.parameters(), self.units.parameters())
