"""Subprocess of the tests of ``torch.compile``: trains with a compiled trunk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl import Balancer


class Trunk(nn.Module):
    """Elementwise operations whose compiled backward pass overwrites what was saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.layers
        h = b(a(x).sin())
        return c((h * h.sigmoid()).cos()).exp().sin()


def losses(trunk: Callable[[Tensor], Tensor], heads: list[nn.Linear], x: Tensor) -> list[Tensor]:
    z = trunk(x)
    return [10.0**i * head(z).square().mean() for i, head in enumerate(heads)]


def main(job: str) -> dict[str, Any]:
    """Train plainly, or look at weights of the compiled trunk and of the trunk as it is."""
    torch.set_num_threads(1)
    trunk, heads, x = Trunk(), [nn.Linear(64, 1) for _ in range(2)], torch.randn(64, 64)
    compiled = torch.compile(trunk)
    if job in ("plain", "early"):
        torch.stack(losses(compiled, heads, x)).sum().backward()
    if job == "plain":
        return {}
    found: dict[str, Any] = {"errors": [], "weights": []}

    def look() -> None:
        for method in ("ntkmtl", "ntkmtl-sr"):
            for hooked in (None, True):
                balancer = Balancer(method, minibatches=1, hooked=hooked)
                trunk.zero_grad()
                try:
                    out = balancer.backward(losses(compiled, heads, x))
                except RuntimeError as error:
                    found["errors"].append(str(error))
                    assert all(p.grad is None for p in trunk.parameters())
                    continue
                grads = [p.grad.clone() for p in trunk.parameters()]
                trunk.zero_grad()
                right = Balancer(method, minibatches=1).backward(losses(trunk, heads, x))
                torch.testing.assert_close(out.weights, right.weights, rtol=1e-4, atol=0.0)
                for g, p in zip(grads, trunk.parameters(), strict=True):
                    torch.testing.assert_close(g, p.grad, rtol=1e-3, atol=1e-5)
                found["weights"].append(out.weights.tolist())

    look()
    if job == "early":
        torch.compiler.reset()
        look()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
