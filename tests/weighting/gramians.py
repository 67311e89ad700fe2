"""Gradients of every kind that solvers meet."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = ("random", "wide", "dependent", "equal", "opposed", "cancelling", "zero", "near", "line")
SCALES = ("one", "tiny", "huge", "unlike")


def gradients(shape: str, scale: str, k: int, seed: int) -> Tensor:
    """k gradients, some of which depend on each other, of alike or very different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    width = {"wide": 10 * k, "dependent": max(1, k // 3), "line": 1}.get(shape, k + 2)
    rows = normal(k, width)
    if shape == "equal":
        rows = rows[torch.randint(max(1, k // 2), (k,), generator=generator)]
    elif shape == "opposed":
        rows = rows[torch.randint(max(1, k // 2), (k,), generator=generator)] * normal(k, 1)
    elif shape == "cancelling":
        rows[-1] = -rows[:-1].sum(dim=0)
    elif shape == "zero":
        rows[:: max(2, k // 3)] = 0.0
    elif shape == "near":  # the same, or opposite, but for 1e-7 to 1
        rows = normal(k, 1).sign() * (rows[0] + rows * 10 ** (-7 * normal(k, 1).abs()))
    factors = {"one": 1.0, "tiny": 1e-12, "huge": 1e12}
    if scale == "unlike":
        return rows * 10 ** (24 * torch.rand(k, 1, dtype=torch.float64, generator=generator) - 12)
    return rows * factors[scale]
