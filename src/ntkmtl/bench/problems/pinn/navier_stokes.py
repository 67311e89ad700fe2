"""The Navier-Stokes equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.pinn._problem import PINN, Batch, Equation, gradient

REYNOLDS = 40.0
DECAY = REYNOLDS / 2 - math.sqrt(REYNOLDS**2 / 4 + 4 * math.pi**2)


class NavierStokes(PINN):
    r"""Steady flow behind a grid, the solution of Kovasznay (1948) at a Reynolds number of 40.

    Momentum in x and y and continuity on (-0.5, 1) x (-0.5, 1.5), with velocities given at the
    sides. The pressure is known up to a constant, so errors are those of the velocities.
    """

    name: ClassVar[str] = "pinn-navier-stokes"
    summary: ClassVar[str] = PROBLEMS["pinn-navier-stokes"].summary
    equation = Equation(
        (-0.5, -0.5),
        (1.0, 1.5),
        ("momentum-x", "momentum-y", "continuity", "boundary"),
        outputs=3,
        compared=2,
    )

    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions; the three equations have the same points."""
        found: dict[int, Tensor] = {}
        if set(wanted) & {0, 1, 2}:
            inside = batch[0].detach().requires_grad_()
            u, v, p = field(inside).unbind(dim=1)
            slope_u, slope_v, slope_p = (gradient(value, inside) for value in (u, v, p))
            found[2] = slope_u[:, 0] + slope_v[:, 1]
            for column, slope in ((0, slope_u), (1, slope_v)):
                bend = gradient(slope[:, 0], inside)[:, 0] + gradient(slope[:, 1], inside)[:, 1]
                flow = u * slope[:, 0] + v * slope[:, 1]
                found[column] = flow + slope_p[:, column] - bend / REYNOLDS
        if 3 in wanted:
            found[3] = (field(batch[3])[:, :2] - _velocity(batch[3])).flatten()
        return found

    def solution(self, points: Tensor) -> Tensor:
        """Return both velocities."""
        return _velocity(points)


def _velocity(points: Tensor) -> Tensor:
    x, y = points[:, 0], 2 * math.pi * points[:, 1]
    growth = torch.exp(DECAY * x)
    return torch.stack(
        [1 - growth * torch.cos(y), DECAY / (2 * math.pi) * growth * torch.sin(y)], dim=1
    )
