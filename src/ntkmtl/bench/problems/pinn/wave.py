"""The wave equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.pinn._problem import PINN, Batch, Equation, gradient, sloped

SPEED = 2.0


class Wave(PINN):
    r""":math:`u_{tt} = 4 u_{xx}` on the unit square, at rest at first, 0 at the sides.

    The example of Wang, Yu, Perdikaris (2022), with the solution
    :math:`\sin(\pi x) \cos(2 \pi t) + \sin(4 \pi x) \cos(8 \pi t) / 2`.
    """

    name: ClassVar[str] = "pinn-wave"
    summary: ClassVar[str] = PROBLEMS["pinn-wave"].summary
    equation = Equation((0.0, 0.0), (1.0, 1.0), ("residual", "initial", "velocity", "boundary"))

    boundary = PINN.ends  # of x: what is at the end of time is not known

    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions."""
        found: dict[int, Tensor] = {}
        if 0 in wanted:
            inside, _, slope = sloped(field, batch[0])
            bend_t = gradient(slope[:, 0], inside)[:, 0]
            bend_x = gradient(slope[:, 1], inside)[:, 1]
            found[0] = bend_t - SPEED**2 * bend_x
        if 1 in wanted:
            found[1] = field(batch[1])[:, 0] - _solution(batch[1])
        if 2 in wanted:
            found[2] = sloped(field, batch[2])[2][:, 0]
        if 3 in wanted:
            found[3] = field(batch[3])[:, 0]
        return found

    def solution(self, points: Tensor) -> Tensor:
        """Return u."""
        return _solution(points)[:, None]


def _solution(points: Tensor) -> Tensor:
    t, x = math.pi * points.unbind(dim=1)[0], math.pi * points.unbind(dim=1)[1]
    low = torch.sin(x) * torch.cos(SPEED * t)
    return low + torch.sin(4 * x) * torch.cos(4 * SPEED * t) / 2
