"""Complex networks give the results of real networks on pairs of numbers, for every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, Probe
from ntkmtl.weighting import accepted_options, create, names, spec

METHODS = [name for name in names() if name != "stl"]
ALONE = [m for m in METHODS if spec(m).requires == "jacobian" or create(m).has_head_objective]
TASKS, BATCH = 3, 7


class Complex(nn.Module):
    """Two complex layers below, one above."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def draw(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(rows, columns, dtype=torch.complex128))

        self.first, self.second = draw(4, 6), draw(6, 5)
        self.heads = nn.ParameterList([draw(5, 1) for _ in range(TASKS)])
        self.x = torch.randn(BATCH, 4, dtype=torch.complex128)

    def features(self) -> Tensor:
        hidden = self.x @ self.of(self.first)
        hidden = torch.complex(hidden.real.tanh(), hidden.imag.tanh())
        return self.to(hidden @ self.of(self.second))

    def losses(self, z: Tensor) -> list[Tensor]:
        a, b, c = (self.of(z) @ self.of(head) for head in self.heads)
        return [
            a.abs().square().mean(),
            10 * (b.imag - 1).square().mean(),
            (0.3 * (c.real - 2)).square().mean(),
        ]

    def of(self, tensor: Tensor) -> Tensor:
        return tensor

    def to(self, tensor: Tensor) -> Tensor:
        return tensor


class Real(Complex):
    """The same network of real parameters and features, pairs of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.view_as_real(p.detach())) for p in (self.first, self.second)
        )
        self.heads = nn.ParameterList(
            [nn.Parameter(torch.view_as_real(p.detach())) for p in self.heads]
        )

    def of(self, tensor: Tensor) -> Tensor:
        return torch.view_as_complex(tensor)

    def to(self, tensor: Tensor) -> Tensor:
        return torch.view_as_real(tensor)


def train(net: Complex, method: str, named: bool, options: dict[str, Any]) -> Any:
    seeded = {"seed": 0} if "seed" in accepted_options(method) else {}
    balancer = Balancer(method, **options, **seeded)
    torch.manual_seed(1)
    for _ in range(2):
        net.zero_grad()
        z = net.features()
        out = balancer.backward(net.losses(z), features=z if named else None)
    return out, [p.grad for p in net.parameters()]


def cases() -> list[Any]:
    made = []
    for method in METHODS:
        forms: list[dict[str, Any]] = [{}]
        if spec(method).requires != "losses":
            forms = [{"batch_dim": 0}, {"batch_dim": 0, "source": "exact"}]
            if method not in ALONE:
                forms.append({"batch_dim": 0, "hooked": True})
            if spec(method).requires == "kernel" and not create(method).requires_cross_terms:
                forms.append({"minibatches": 1})
        for options in forms:
            needs_names = method == "ntkmtl-tk" or create(method).has_head_objective
            made += [
                (method, named, options) for named in (False, True) if named or not needs_names
            ]
    return made


@pytest.mark.parametrize(("method", "named", "options"), cases(), ids=str)
def test_a_complex_network_is_a_real_one(method: str, named: bool, options: dict[str, Any]) -> None:
    if method == "ntkmtl-tk" and options.get("source") == "exact":
        options = {"batch_dim": 0}
    out, grads = train(Complex(), method, named, options)
    expected, right = train(Real(), method, named, options)
    torch.testing.assert_close(out.weights, expected.weights, rtol=1e-6, atol=1e-9)
    if expected.eigenvalues is not None:
        torch.testing.assert_close(out.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=1e-12)
    for a, b in zip(grads, right, strict=True):
        torch.testing.assert_close(torch.view_as_real(a), b, rtol=1e-6, atol=1e-9)


class Trunk(nn.Module):
    """The trunk of a network, as probes run it."""

    def __init__(self, net: Complex) -> None:
        super().__init__()
        self.first, self.second = net.first, net.second
        self.net = [net]  # in a list, so that its heads are not the trunk's

    def forward(self, x: Tensor) -> Tensor:
        (net,) = self.net
        hidden = x @ net.of(self.first)
        hidden = torch.complex(hidden.real.tanh(), hidden.imag.tanh())
        return net.to(hidden @ net.of(self.second))


@pytest.mark.parametrize("mode", ["difference", "forward"])
@pytest.mark.parametrize("corrected", [False, True])
def test_probes_of_complex_parameters(mode: Any, corrected: bool) -> None:
    found = []
    for net in (Complex(), Real()):
        trunk = Trunk(net)
        probe = Probe(trunk, probes=4, mode=mode, corrected=corrected)
        balancer = Balancer("ntkmtl", source="probe", probe=probe, batch_dim=0, minibatches=2)
        z = trunk(net.x)
        found.append(balancer.backward(net.losses(z), features=z).eigenvalues)
    torch.testing.assert_close(*found, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("where", ["complex", "real"])
def test_both_parts_of_a_feature_count(where: str) -> None:
    torch.manual_seed(0)
    u = torch.randn(6, 4, 2, dtype=torch.float64, requires_grad=True)
    z = torch.view_as_complex(2 * u)
    losses = [z.real.square().mean(), 10 * (z.imag - 1).square().mean()]
    features = {"complex": z, "real": None}[where]
    options: dict[str, Any] = {"shared": [u], "source": "exact"} if where == "real" else {}
    out = Balancer("ntkmtl-sr", minibatches=1, **options).backward(losses, features=features)
    # Means over 24 entries: the sums of (2 x / 24)^2 and of (20 (y - 1) / 24)^2.
    x, y = z.detach().real, z.detach().imag
    right = torch.stack([(x / 12).square().sum(), ((y - 1) / 1.2).square().sum()])
    factor = 4.0 if where == "real" else 1.0  # through z = 2 u
    torch.testing.assert_close(out.eigenvalues, factor * right, rtol=1e-9, atol=0.0)


def test_a_complex_loss_is_refused() -> None:
    net = Complex()
    losses = net.losses(net.features())
    with pytest.raises(ValueError, match="loss of task 1 is complex"):
        Balancer().backward([losses[0], losses[1] * 1j])
    assert all(p.grad is None for p in net.parameters())
