"""Heads whose outputs are joined: only gradients show which parameters tasks share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer


class Joined(nn.Module):
    """Heads without a bias on a trunk, and one sigmoid over the outputs of all of them."""

    def __init__(self, tasks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.last = nn.Linear(5, 7), nn.Linear(7, 7, bias=False)
        self.heads = nn.ModuleList(nn.Linear(7, 1, bias=False) for _ in range(tasks))
        self.x = torch.randn(8, 5)
        self.double()
        self.x = self.x.double()

    @property
    def shared(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *self.last.parameters()]

    def losses(self) -> list[Tensor]:
        z = self.last(self.trunk(self.x).tanh())
        y = torch.cat([head(z) for head in self.heads], 1).sigmoid()
        return [(y[:, i] - 3).square().mean() * 10.0**i for i in range(len(self.heads))]

    def rows(self, parameters: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in self.losses()]


def right(balancer: Balancer, net: Joined) -> None:
    """Check a step with a kernel, and one that may reuse weights, against single gradients."""
    exact = balancer.source == "exact"
    expected = [sum(float(g.square().sum()) for g in row) for row in net.rows(net.shared)]
    every = [*net.shared, *net.heads.parameters()]
    for _ in range(balancer.every):
        net.zero_grad()
        out = balancer.backward(net.losses())
        if exact and out.eigenvalues is not None:
            assert out.eigenvalues.tolist() == pytest.approx(expected, rel=1e-9)
        own = [1.0] * len(net.heads) if not balancer.weight_heads else out.weights.tolist()
        rows = net.rows(every)
        for j, p in enumerate(every):
            weights = out.weights.tolist() if j < len(net.shared) else own
            wanted = sum((w * row[j] for w, row in zip(weights, rows, strict=True)), 0 * rows[0][j])
            torch.testing.assert_close(p.grad, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("weight_heads", [False, True])
def test_heads_that_were_frozen_at_first(weight_heads: bool, every: int) -> None:
    net = Joined()
    balancer = Balancer("ntkmtl", weight_heads=weight_heads, every=every)
    net.heads.requires_grad_(False)
    for _ in range(every):
        balancer.backward(net.losses())
    net.heads.requires_grad_(True)
    right(balancer, net)


class Stacked(Joined):
    """Heads that run as one, with the weights of all of them in one tensor."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def losses(self) -> list[Tensor]:
        z = self.last(self.trunk(self.x).tanh())
        weights = [head.weight for head in self.heads]
        if self.form == "linear":
            y = nn.functional.linear(z, torch.cat(weights))
        elif self.form == "block_diag":
            y = torch.cat([z, z], 1) @ torch.block_diag(*weights).t()
        elif self.form == "buffer":
            whole = torch.zeros(2, 7).double()
            for i, weight in enumerate(weights):
                whole[i] = weight[0]
            y = z @ whole.t()
        else:
            y = torch.bmm(z.expand(2, 8, 7), torch.stack(weights).transpose(1, 2))[..., 0].t()
        return [(y[:, i] - 3).square().mean() * 10.0**i for i in range(2)]


@pytest.mark.parametrize("form", ["linear", "block_diag", "buffer", "batched"])
@pytest.mark.parametrize("weight_heads", [False, True])
@pytest.mark.parametrize("source", ["exact", "representation"])
def test_heads_that_run_as_one(source: str, weight_heads: bool, form: str) -> None:
    options = {"source": source, "minibatches": 1, "every": 2}
    right(Balancer("ntkmtl-sr", weight_heads=weight_heads, **options), Stacked(form))


@pytest.mark.parametrize("hooked", [None, True])
@pytest.mark.parametrize("weight_heads", [False, True])
@pytest.mark.parametrize("method", ["ntkmtl-sr", "fairgrad"])
def test_heads_below_the_representation(
    method: str, weight_heads: bool, hooked: bool | None
) -> None:
    options = {"source": "representation", "minibatches": 1, "every": 3, "hooked": hooked}
    right(Balancer(method, weight_heads=weight_heads, **options), Joined())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("weight_heads", [False, True])
def test_heads_whose_gradient_was_zero_at_first(weight_heads: bool, every: int) -> None:
    net = Joined()
    kept = net.last.weight.detach().clone()
    balancer = Balancer("ntkmtl", weight_heads=weight_heads, every=every)
    with torch.no_grad():
        net.last.weight.zero_()  # no head gets a gradient
    for _ in range(every):
        balancer.backward(net.losses())
    with torch.no_grad():
        net.last.weight.copy_(kept)
    right(balancer, net)


@pytest.mark.parametrize("every", [1, 2])
def test_a_head_that_is_zero_later_still_shares_the_trunk(every: int) -> None:
    net = Joined(tasks=3)
    balancer = Balancer("ntkmtl", every=every)
    right(balancer, net)
    with torch.no_grad():
        net.heads[0].weight.zero_()
        net.heads[1].weight.zero_()  # only task 2 sends a gradient to the trunk
    right(balancer, net)


@pytest.mark.parametrize("method", ["ntkmtl", "ntkmtl-auto"])
def test_a_head_that_starts_at_zero_is_told_from_a_frozen_trunk(method: str) -> None:
    net = Joined()
    kept = net.heads[0].weight.detach().clone()
    with torch.no_grad():
        net.heads[0].weight.zero_()
    balancer = Balancer(method, weight_heads=False)
    with pytest.warns(UserWarning, match=r"a head that starts at zero .*shared=") as caught:
        out = balancer.backward(net.losses())
    assert not any("frozen" in str(w.message) for w in caught)
    assert out.weights.tolist() == [1.0, 1.0]
    for p, rows in zip(net.shared, zip(*net.rows(net.shared), strict=True), strict=True):
        torch.testing.assert_close(p.grad, rows[0] + rows[1], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        net.heads[0].weight.copy_(kept)
    if method == "ntkmtl":
        right(balancer, net)


def test_a_recorder_changes_nothing() -> None:
    from ntkmtl.analysis import Recorder

    found = []
    for record in (None, Recorder(every=1)):
        net = Joined(tasks=3)
        balancer = Balancer("ntkmtl", every=2, record=record)
        weights = []
        for step in range(6):
            net.heads.requires_grad_(step > 1)
            net.zero_grad()
            out = balancer.backward(net.losses())
            weights += [out.weights, *(p.grad.flatten() for p in net.shared if p.grad is not None)]
        found.append(torch.cat(weights))
    assert torch.equal(*found)


def test_samples_are_checked_again_where_a_head_started_at_zero() -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(5, 7).double()
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)) for _ in range(2)
    ).double()
    x = torch.randn(8, 5, dtype=torch.float64)

    def samples() -> list[Tensor]:
        z = trunk(x).tanh()
        return [(head(z)[:, 0] - i).square() for i, head in enumerate(heads)]

    balancer = Balancer("ntkmtl-sr", minibatches=2)
    with torch.no_grad():
        for head in heads:
            head[2].weight.zero_()
    balancer.backward(samples())
    for head in heads:
        nn.init.normal_(head[2].weight)
    with pytest.raises(ValueError, match="its head mixes them"):
        balancer.backward(samples())
