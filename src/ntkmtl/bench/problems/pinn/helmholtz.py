"""Helmholtz' equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.pinn._problem import PINN, Batch, Equation, gradient, sloped

WAVES = (1.0, 4.0)


class Helmholtz(PINN):
    r""":math:`u_{xx} + u_{yy} + u = q` on the square (-1, 1), 0 at its sides.

    The example of Wang, Teng, Perdikaris (2021), whose q makes the solution
    :math:`\sin(\pi x) \sin(4 \pi y)`.
    """

    name: ClassVar[str] = "pinn-helmholtz"
    summary: ClassVar[str] = PROBLEMS["pinn-helmholtz"].summary
    equation = Equation((-1.0, -1.0), (1.0, 1.0), ("residual", "boundary"))

    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions."""
        found: dict[int, Tensor] = {}
        if 0 in wanted:
            inside, u, slope = sloped(field, batch[0])
            bend = gradient(slope[:, 0], inside)[:, 0] + gradient(slope[:, 1], inside)[:, 1]
            source = 1.0 - math.pi**2 * (WAVES[0] ** 2 + WAVES[1] ** 2)
            found[0] = bend + u - source * _sines(batch[0])
        if 1 in wanted:
            found[1] = field(batch[1])[:, 0]
        return found

    def solution(self, points: Tensor) -> Tensor:
        """Return u."""
        return _sines(points)[:, None]


def _sines(points: Tensor) -> Tensor:
    return torch.prod(torch.sin(math.pi * points * points.new_tensor(WAVES)), dim=1)
