"""float16 without a gradient scaler, and extreme weights: ``.grad`` is right, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.errors import NonFiniteError

ONE: dict[str, Any] = {"minibatches": 1}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("ls", {}),
    ("si", {}),
    ("ntkmtl-auto", ONE),
    ("ntkmtl-sr", ONE),
    ("ntkmtl-sr", {**ONE, "hooked": True}),
    ("ntkmtl-sr", {**ONE, "weight_heads": False}),
    ("ntkmtl", ONE),
    ("ntkmtl", {**ONE, "weight_heads": False}),
    ("ntkmtl-x", ONE),
    ("fairgrad", {"source": "representation"}),
    ("nash-mtl", {"source": "exact"}),
]


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype, size: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(2))
        self.x = size * torch.randn(64, 16)
        self.y = torch.randn(2, 64, 1)
        if size != 1.0:
            with torch.no_grad():
                self.trunk[0].weight /= size
        self.to(dtype)
        self.x, self.y = self.x.to(dtype), self.y.to(dtype)

    def losses(self, scales: tuple[float, float], wide: bool) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(self.x)
        errors = [head(z) - t for head, t in zip(self.heads, self.y, strict=True)]
        if wide:
            errors = [e.float() for e in errors]
        found = [s * e.square().mean() for s, e in zip(scales, errors, strict=True)]
        return z, found


def weighted(net: Net, scales: tuple[float, float], weights: Tensor, heads: bool) -> list[Tensor]:
    """The gradient of the weighted sum in float64."""
    same = Net(torch.float64)
    same.load_state_dict(net.state_dict())
    same.double()
    same.x, same.y = net.x.double(), net.y.double()
    losses = same.losses(scales, False)[1]
    total = (weights.double() * torch.stack(losses)).sum()
    plain = torch.stack(losses).sum()
    found = torch.autograd.grad(total, list(same.parameters()), retain_graph=True)
    if heads:
        return list(found)
    count = len(list(same.trunk.parameters()))
    return [*found[:count], *torch.autograd.grad(plain, list(same.heads.parameters()))]


@pytest.mark.parametrize("wide", [False, True], ids=["half", "float32-losses"])
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=[f"{m}-{o}" for m, o in METHODS])
def test_float16_network(method: str, options: dict[str, Any], named: bool, wide: bool) -> None:
    scales = (1e-2, 3.0)
    net = Net(torch.float16)
    z, losses = net.losses(scales, wide)
    balancer = Balancer(method, **options)
    out = balancer.backward(losses, features=z if named else None)
    expected = weighted(net, scales, out.weights, balancer.weight_heads)
    for p, right in zip(net.parameters(), expected, strict=True):
        size = float(right.abs().max())
        torch.testing.assert_close(p.grad.double(), right, rtol=0.05, atol=0.03 * size)


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(
    ("method", "options"), METHODS[1:], ids=[f"{m}-{o}" for m, o in METHODS[1:]]
)
def test_a_gradient_that_overflows_only_in_the_trunk(
    method: str, options: dict[str, Any], named: bool
) -> None:
    # Large inputs: the representation's gradient is small, the first layer's is not.
    net = Net(torch.float16, size=3e4)
    before = [torch.full_like(p, 0.5) for p in net.parameters()]
    for p, g in zip(net.parameters(), before, strict=True):
        p.grad = g.clone()
    z, losses = net.losses((1.0, 1000.0), True)
    with pytest.raises((NonFiniteError, ValueError), match=r"task|gradient"):
        Balancer(method, **options).backward(losses, features=z if named else None)
    for p, g in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("wide", [False, True], ids=["half", "float32-losses"])
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "ntkmtl-auto", "ntkmtl-x", "fairgrad"])
@pytest.mark.parametrize("heads", [False, True])
def test_a_weight_too_large_for_float16(method: str, heads: bool, named: bool, wide: bool) -> None:
    # The gradient that it would make large is too small to be known.
    net = Net(torch.float16)
    z, losses = net.losses((1e-4, 30.0), wide)
    balancer = Balancer(method, weight_heads=heads, minibatches=1)
    with pytest.raises(NonFiniteError, match=r"weight of task 0 is .* no \.grad was changed"):
        balancer.backward(losses, features=z if named else None)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("heads", [True, False])
def test_a_weight_too_large_for_float32(named: bool, heads: bool) -> None:
    net = Net(torch.float32)
    z, losses = net.losses((1e-30, 1.0), False)
    balancer = Balancer("ntkmtl-x", minibatches=1, weight_heads=heads)
    with pytest.raises(NonFiniteError, match="weight of task 0"):
        balancer.backward(losses, features=z if named else None)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "fairgrad"])
@pytest.mark.parametrize("hooked", [None, True])
def test_a_float16_gradient_that_underflows_raises(method: str, hooked: bool | None) -> None:
    options = ONE if method.startswith("ntkmtl") else {}
    net = Net(torch.float32)

    def step(scaler: torch.amp.GradScaler | None) -> Any:
        with torch.autocast("cpu", torch.float16):
            losses = net.losses((1e-8, 1.0), True)[1]
        return Balancer(method, hooked=hooked, **options).backward(losses, scaler=scaler)

    with pytest.raises(ValueError, match=r"float16 gradient of task 0 is zero.*scaler=scaler"):
        step(None)
    assert all(p.grad is None for p in net.parameters())
    out = step(torch.amp.GradScaler("cpu", init_scale=2.0**14))
    assert not out.skipped
    assert out.weights[0] > 1e3


@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "ntkmtl-auto", "fairgrad"])
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_autocast_with_a_scaler_and_weights_beyond_float16(method: str, named: bool) -> None:
    # Had the weights been cast to float16, every step would be skipped for ever.
    options = {"minibatches": 1, "weight_heads": True}
    net = Net(torch.float32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scales = (1e-4, 30.0)
    with torch.autocast("cpu", torch.float16):
        z, losses = net.losses(scales, True)
    out = Balancer(method, **options).backward(losses, features=z if named else None, scaler=scaler)
    assert out.weights[0] > 65504
    scaler.unscale_(optimizer)
    expected = weighted(net, scales, out.weights, True)
    for p, right in zip(net.parameters(), expected, strict=True):
        size = float(right.abs().max())
        torch.testing.assert_close(p.grad.double(), right, rtol=0.05, atol=0.03 * size)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", ["ls", "si", "ntkmtl-sr", "ntkmtl", "ntkmtl-auto", "fairgrad"])
def test_accumulation_by_scale(method: str, scaled: bool) -> None:
    # Weights do not change with it, and the gradient is that of the mean over micro-batches.
    options = ONE if method.startswith("ntkmtl") else {}
    found = []
    for scale in (1.0, 0.25):
        net = Net(torch.float64)
        balancer = Balancer(method, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        weights = [
            balancer.backward(net.losses((1.0, 30.0), False)[1], scaler=scaler, scale=scale).weights
            for _ in range(4)
        ]
        factor = scale * (1024.0 if scaled else 1.0)
        found.append((weights, [p.grad / factor for p in net.parameters()]))
    (whole, one), (parts, other) = found
    for a, b in zip([*whole, *one], [*parts, *other], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
