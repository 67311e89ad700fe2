"""The Balancer: shared parameters that the user names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from balance.small_network import close, gradients, inputs, losses_of, network
from ntkmtl import Balancer


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("what", ["network", "balancer"])
@pytest.mark.parametrize("method", ["ntkmtl", "nash-mtl", "pcgrad"])
def test_shared_parameters_of_another_network_are_refused(
    method: str, what: str, given: bool
) -> None:
    trunk, heads = network()
    balancer = Balancer(method, shared=trunk.parameters())
    if what == "network":
        trunk = copy.deepcopy(trunk)
    else:
        balancer = copy.deepcopy(balancer)
    z = trunk(inputs())
    with pytest.raises(ValueError, match="no loss depends on the shared parameters"):
        balancer.backward(losses_of(heads, z), features=z if given else None)
    assert all(p.grad is None for p in [*trunk.parameters(), *heads.parameters()])


def test_inputs_that_require_a_gradient_are_not_parameters() -> None:
    found = []
    for asked in (False, True):
        trunk, heads = network()
        x = inputs().requires_grad_(asked)
        z = trunk(x)
        out = Balancer("ntkmtl").backward(losses_of(heads, z), features=z)
        assert out.eigenvalues is not None
        found.append((out.eigenvalues, gradients(trunk, heads)))
        if asked:
            trunk, heads = network()
            twin = inputs().requires_grad_()
            rows = losses_of(heads, trunk(twin))
            total = sum(w * loss for w, loss in zip(out.weights.tolist(), rows, strict=True))
            assert isinstance(total, Tensor)
            assert x.grad is not None
            torch.testing.assert_close(x.grad, torch.autograd.grad(total, twin)[0])
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0.0)
    close(found[1][1], found[0][1])


@pytest.mark.parametrize("given", [True, False])
def test_shared_parameters_may_be_frozen_later(given: bool) -> None:
    trunk, heads = network()
    balancer = Balancer("ntkmtl", shared=trunk.parameters())
    trunk[0].requires_grad_(False)
    z = trunk(inputs())
    found = balancer.backward(losses_of(heads, z), features=z if given else None).eigenvalues
    other, twins = network()
    other[0].requires_grad_(False)
    z = other(inputs())
    expected = Balancer("ntkmtl", shared=other[2].parameters()).backward(
        losses_of(twins, z), features=z if given else None
    )
    assert found is not None
    assert expected.eigenvalues is not None
    torch.testing.assert_close(found, expected.eigenvalues, rtol=1e-12, atol=0.0)
    trunk.requires_grad_(False)
    z = trunk(inputs()).requires_grad_()
    with pytest.raises(ValueError, match="every shared parameter is frozen"):
        balancer.backward(losses_of(heads, z), features=z if given else None)


@pytest.mark.parametrize("hooked", [None, True])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", ["ntkmtl", "fairgrad", "moco", "mgda"])
def test_shared_parameters_may_start_frozen(method: str, given: bool, hooked: bool | None) -> None:
    if method == "moco" and hooked:
        return
    trunk, heads = network()
    trunk[0].requires_grad_(False)
    balancer = Balancer(method, shared=trunk.parameters(), hooked=hooked)
    if method != "moco":  # which follows the same parameters in every step
        z = trunk(inputs())
        balancer.backward(losses_of(heads, z), features=z if given else None)
        assert trunk[0].weight.grad is None
        trunk.zero_grad()
        heads.zero_grad()
    trunk.requires_grad_(True)
    z = trunk(inputs())
    out = balancer.backward(losses_of(heads, z), features=z if given else None)
    other, twins = network()
    rows = [
        torch.autograd.grad(loss, list(other.parameters()), retain_graph=True)
        for loss in losses_of(twins, other(inputs()))
    ]
    if method == "ntkmtl":
        exact = [sum(float(g.square().sum()) for g in row) for row in rows]
        assert out.eigenvalues is not None
        assert out.eigenvalues.tolist() == pytest.approx(exact, rel=1e-9)
    if method == "moco":
        fresh = Balancer("moco", shared=other.parameters())
        fresh.backward(losses_of(twins, other(inputs())))
        close(gradients(trunk), gradients(other))
        return
    for p, column in zip(trunk.parameters(), zip(*rows, strict=True), strict=True):
        weighted = [w * g for w, g in zip(out.weights.tolist(), column, strict=True)]
        torch.testing.assert_close(p.grad, sum(weighted[1:], weighted[0]), rtol=1e-9, atol=1e-12)


def test_followed_gradients_do_not_go_on_over_other_parameters() -> None:
    trunk, heads = network()
    trunk[0].requires_grad_(False)
    balancer = Balancer("moco", shared=trunk.parameters())
    balancer.backward(losses_of(heads, trunk(inputs())))
    trunk.requires_grad_(True)
    trunk.zero_grad()
    with pytest.raises(ValueError, match="new Balancer where parameters are frozen, unfrozen"):
        balancer.backward(losses_of(heads, trunk(inputs())))
    assert all(p.grad is None for p in trunk.parameters())
