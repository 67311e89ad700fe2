"""The Allen-Cahn equation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._registry import PROBLEMS
from ntkmtl.bench.problems.pinn._problem import PINN, Batch, Equation, gradient, sloped
from ntkmtl.errors import imports_for

DIFFUSION = 1e-4
MODES = 512
TIMES = 101


class AllenCahn(PINN):
    r""":math:`u_t = 10^{-4} u_{xx} + 5 (u - u^3)` for t in (0, 1) and x in (-1, 1), periodic.

    It starts from :math:`x^2 \cos(\pi x)`. The example of Raissi, Perdikaris, Karniadakis
    (2019). The network is periodic by itself: it
    reads the cosine and sine of pi x. The solution is that of 512 Fourier modes, integrated by
    SciPy to a tolerance of 1e-9.
    """

    name: ClassVar[str] = "pinn-allen-cahn"
    summary: ClassVar[str] = PROBLEMS["pinn-allen-cahn"].summary
    equation = Equation((0.0, -1.0), (1.0, 1.0), ("residual", "initial"))

    @staticmethod
    def features(x: Tensor) -> Tensor:
        """Return t, and the cosine and sine of pi x."""
        angle = math.pi * x[:, 1:]
        return torch.cat([x[:, :1], angle.cos(), angle.sin()], dim=1)

    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions."""
        found: dict[int, Tensor] = {}
        if 0 in wanted:
            inside, u, slope = sloped(field, batch[0])
            bend = gradient(slope[:, 1], inside)[:, 1]
            found[0] = slope[:, 0] - DIFFUSION * bend - 5 * (u - u**3)
        if 1 in wanted:
            x = batch[1][:, 1]
            found[1] = field(batch[1])[:, 0] - x.square() * torch.cos(math.pi * x)
        return found

    def solution(self, points: Tensor) -> Tensor:
        """Return u."""
        spline = _reference()
        t, x = points[:, 0].numpy(), points[:, 1].numpy()
        return torch.from_numpy(spline(t, x, grid=False))[:, None]


@functools.lru_cache(maxsize=1)
def _reference() -> Any:
    """Return the solution as a function of t and x."""
    with imports_for("pinn-allen-cahn"):
        from scipy.integrate import solve_ivp
        from scipy.interpolate import RectBivariateSpline
    x = -1 + 2 * np.arange(MODES) / MODES
    square = (np.pi * np.fft.rfftfreq(MODES, 1 / MODES)) ** 2

    def slope(_: float, u: Any) -> Any:
        bend = np.fft.irfft(-square * np.fft.rfft(u), MODES)
        return DIFFUSION * bend + 5 * (u - u**3)

    times = np.linspace(0.0, 1.0, TIMES)
    found = solve_ivp(
        slope, (0.0, 1.0), x**2 * np.cos(np.pi * x), "DOP853", times, rtol=1e-9, atol=1e-9
    )
    whole = np.concatenate([found.y, found.y[:1]])
    return RectBivariateSpline(times, np.append(x, 1.0), whole.T)
