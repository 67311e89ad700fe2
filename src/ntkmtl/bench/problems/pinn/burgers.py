"""Burgers' equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.pinn._problem import PINN, Batch, Equation, gradient, sloped

VISCOSITY = 0.01 / math.pi
NODES = 100


class Burgers(PINN):
    r""":math:`u_t + u u_x = (0.01 / \pi) u_{xx}` for t in (0, 1) and x in (-1, 1), 0 at the sides.

    It starts from :math:`-\sin(\pi x)`. The example of Raissi, Perdikaris, Karniadakis
    (2019). The solution is the integral of Cole and
    Hopf, by Gauss-Hermite quadrature of 100 nodes (Basdevant et al. 1986).
    """

    name: ClassVar[str] = "pinn-burgers"
    summary: ClassVar[str] = PROBLEMS["pinn-burgers"].summary
    equation = Equation((0.0, -1.0), (1.0, 1.0), ("residual", "initial", "boundary"))

    boundary = PINN.ends  # of x: what is at the end of time is not known

    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions."""
        found: dict[int, Tensor] = {}
        if 0 in wanted:
            inside, u, slope = sloped(field, batch[0])
            bend = gradient(slope[:, 1], inside)[:, 1]
            found[0] = slope[:, 0] + u * slope[:, 1] - VISCOSITY * bend
        if 1 in wanted:
            found[1] = field(batch[1])[:, 0] + torch.sin(math.pi * batch[1][:, 1])
        if 2 in wanted:
            found[2] = field(batch[2])[:, 0]
        return found

    def solution(self, points: Tensor) -> Tensor:
        """Return u."""
        t, x = points[:, :1].numpy().clip(1e-9), points[:, 1:].numpy()
        nodes, weights = np.polynomial.hermite.hermgauss(NODES)
        y = x - np.sqrt(4 * VISCOSITY * t) * nodes
        density = weights * np.exp(-np.cos(np.pi * y) / (2 * np.pi * VISCOSITY))
        u = -(density * np.sin(np.pi * y)).sum(1) / density.sum(1)
        return torch.from_numpy(u)[:, None]
