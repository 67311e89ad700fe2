"""A small network with k heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network(k: int = 3, seed: int = 0) -> tuple[nn.Sequential, nn.ModuleList]:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()).double()
    heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(k)).double()
    return trunk, heads


def inputs(rows: int = 12, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64)


def losses_of(heads: nn.ModuleList, z: Tensor) -> list[Tensor]:
    return [
        10.0**i * (head(z).squeeze(1) - z.detach().sum(1) - i).square().mean()
        for i, head in enumerate(heads)
    ]


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]


def close(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
