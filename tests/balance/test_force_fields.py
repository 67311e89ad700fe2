"""Force fields that switch ``requires_grad`` of the positions on and off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer

TASKS = ("energy", "forces")


class ForceField(nn.Module):
    """Switches the gradient of the positions on and off again, as NequIP and MACE do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions.requires_grad_(True)
        energy = self.layers(positions)[:, 0]
        (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        positions.requires_grad_(False)
        return energy, -slope


def losses(model: nn.Module) -> dict[str, Tensor]:
    positions = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    energy, forces = model(positions)
    return {"energy": (energy - 1).square().mean(), "forces": (forces - 2).square().mean()}


@pytest.mark.parametrize(
    ("method", "weight_heads"),
    [
        *((method, heads) for method in ("ntkmtl-auto", "ntkmtl", "nash-mtl") for heads in (0, 1)),
        ("ls", True),
        ("softadapt", True),
    ],
)
def test_gradients_are_the_weighted_sum(method: str, weight_heads: bool) -> None:
    model = ForceField()
    parameters = list(model.parameters())
    out = Balancer(method, tasks=TASKS, weight_heads=bool(weight_heads)).backward(losses(model))
    expected = [torch.zeros_like(p) for p in parameters]
    for weight, loss in zip(out.weights.tolist(), losses(model).values(), strict=True):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for total, gradient, p in zip(expected, found, parameters, strict=True):
            # The last bias is the energy's alone: a head.
            alone = p is parameters[-1] and not weight_heads
            total += 0 if gradient is None else (1.0 if alone else weight) * gradient
    for p, total in zip(parameters, expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, total, rtol=1e-9, atol=1e-12)
