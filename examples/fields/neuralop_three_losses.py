"""A Fourier neural operator with three losses: ``python examples/fields/neuralop_three_losses.py``.

The operator maps a periodic temperature profile to the profile at a later time. Its losses are the
relative L2 and H1 errors of neuraloperator, and the squared error of the mean, which the equation
conserves. Needs ``pip install neuraloperator``.
"""

from __future__ import annotations

import math

import torch
from neuralop.losses import H1Loss, LpLoss
from neuralop.models import FNO

from ntkmtl import Balancer

POINTS = 64


def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return temperatures before and after, shape (count, 1, points), from Fourier series."""
    waves = torch.arange(POINTS // 2 + 1)
    noise = torch.randn(count, len(waves), dtype=torch.complex64)
    spectrum = noise * POINTS / (1 + waves) ** 2
    later = spectrum * torch.exp(-0.02 * waves**2)
    return tuple(torch.fft.irfft(s, n=POINTS)[:, None] for s in (spectrum, later))


def main(steps: int = 200) -> dict[str, float]:
    """Train; return the last losses."""
    torch.manual_seed(0)
    before, after = samples(256)
    model = FNO(n_modes=(12,), in_channels=1, out_channels=1, hidden_channels=16, n_layers=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    balancer = Balancer()
    value = LpLoss(d=1, p=2, reduction="mean")
    slope = H1Loss(d=1, reduction="mean", measure=2 * math.pi, periodic_in_x=True)
    for step in range(steps):
        some = torch.arange(32 * step, 32 * (step + 1)) % len(before)
        x, y = before[some], after[some]
        found = model(x)
        losses = {
            "value": value(found, y),
            "slope": slope(found, y),
            "mean": (found.mean(dim=2) - x.mean(dim=2)).square().mean(),
        }
        optimizer.zero_grad()
        result = balancer.backward(losses)
        optimizer.step()
    print("weights:", {n: f"{w:.3g}" for n, w in zip(losses, result.weights.tolist(), strict=True)})
    return {name: float(loss.detach()) for name, loss in losses.items()}


if __name__ == "__main__":
    for name, loss in main().items():
        print(f"{name}: {loss:.3g}")
