"""A head on detached features, as a probe of what a trunk has learned, shares nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.double()
        self.x = torch.randn(12, 5).double()

    def losses(self) -> tuple[list[Tensor], Tensor]:
        z = self.trunk(self.x)
        read = (z, z.detach(), z)
        heads = zip(self.heads, read, strict=True)
        return [(head(own) - 2.0 * i).square().mean() for i, (head, own) in enumerate(heads)], z


def weights_of(method: str, *, named: str, probe: bool, **options: Any) -> Tensor:
    net = Net()
    if named == "shared":
        options["shared"] = net.trunk.parameters()
    losses, z = net.losses()
    balancer = Balancer(method, minibatches=1, tasks=3, **options)
    features = z if named == "features" else None
    out = balancer.backward([losses[0], losses[1] if probe else None, losses[2]], features)
    assert not probe or all(p.grad is not None for p in net.parameters())
    return out.weights


@pytest.mark.parametrize("named", ["", "features", "shared"])
@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-sr", "ntkmtl-auto", "mgda", "imtl-g"])
def test_it_changes_no_other_weight(method: str, named: str) -> None:
    expected = weights_of(method, named=named, probe=False)
    found = weights_of(method, named=named, probe=True)
    assert found[1] == 1.0
    torch.testing.assert_close(found[::2], expected[::2], rtol=1e-12, atol=0.0)


def test_a_task_whose_gradient_is_zero_still_counts() -> None:
    net = Net()
    losses, z = net.losses()
    losses[1] = losses[1] + 0.0 * z.sum()
    out = Balancer("ntkmtl").backward(losses, features=z)
    expected = weights_of("ntkmtl", named="features", probe=False)
    assert out.weights[1] == 1.0
    assert out.weights[0] < 0.9 * expected[0]  # the mean of three eigenvalues, one of them zero


@pytest.mark.parametrize(
    ("method", "options", "kernels"),
    [
        ("ntkmtl-auto", {}, 7),
        ("fairgrad", {"source": "auto"}, 7),
        ("ntkmtl", {"every": 10}, 4),
        ("ntkmtl-sr", {"every": 10, "minibatches": 1}, 4),
    ],
)
def test_kernels_are_as_rare_as_without_it(
    method: str, options: dict[str, Any], kernels: int
) -> None:
    net, balancer = Net(), Balancer(method, **options)
    assert sum(balancer.backward(net.losses()[0]).kernel is not None for _ in range(40)) == kernels
