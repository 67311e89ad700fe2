"""The cut of many kinds of networks, and the gradients there, against a division by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graph.zoo import ZOO, Network
from ntkmtl import Balancer
from ntkmtl.graph import Cut, find_cut

EXACT = {"rtol": 1e-9, "atol": 1e-14}
CUT = [name for name, make in ZOO.items() if not make().bypass]
AROUND = [name for name in ZOO if name not in CUT]


def make(name: str) -> Network:
    torch.manual_seed(0)
    return ZOO[name]()


def flat_gradients(losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Shape (k, P), complex entries as two."""
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1)
                    for p, g in zip(parameters, grads, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def found_gradient(parameters: list[Tensor]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
    )


def assert_disconnected(cut: Cut, losses: list[Tensor]) -> None:
    """Without the edges of the cut and the bypasses no loss reaches a shared parameter."""
    shared = {id(p) for p in cut.shared}
    walk = cut.walk
    for task in range(len(losses)):
        removed = {(c.node, c.position) for c in cut.crossings[task]}
        stack, seen, reached = [walk.roots[task][0]], set(), []
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in walk.leaves and id(walk.leaves[node]) in shared:
                reached.append(walk.leaves[node])
            taken = walk.edges(node, task)
            for position, edge in enumerate(walk.children[node]):
                if edge[0] is None or edge not in taken or (node, position) in removed:
                    continue
                stack.append(edge[0])
        assert bool(reached) == bool(cut.bypasses[task]), f"task {task}"


@pytest.mark.parametrize("name", list(ZOO))
def test_the_cut_is_at_the_border_found_by_hand(name: str) -> None:
    network = make(name)
    losses = network.losses()
    cut = find_cut(losses)
    assert {i for i, around in enumerate(cut.bypasses) if around} == set(network.bypass)
    if not network.bypass:
        assert sorted(node.name() for node, _ in cut.targets) == sorted(network.operations)
    assert {id(p) for p in cut.shared} == {id(p) for p in network.shared}
    heads = [p for head in cut.heads for p in head]
    assert {id(p) for p in heads} == {id(p) for p in network.private}
    assert_disconnected(cut, losses)


@pytest.mark.parametrize("options", [{}, {"hooked": True}])
@pytest.mark.parametrize("name", CUT)
def test_the_representation_is_that_found_by_hand(name: str, options: dict[str, Any]) -> None:
    network = make(name)
    expected = network.of_border()
    jacobian = flat_gradients(network.losses(), network.parameters)
    network = make(name)
    out = Balancer("ntkmtl-sr", minibatches=1, **options).backward(network.losses())
    torch.testing.assert_close(out.eigenvalues, expected, **EXACT)
    torch.testing.assert_close(found_gradient(network.parameters), out.weights @ jacobian, **EXACT)


@pytest.mark.parametrize("name", AROUND)
def test_bypasses_are_refused_with_an_explanation(name: str) -> None:
    network = make(name)
    with pytest.raises(ValueError, match=r"the loss of task \d .* use source='auto'") as info:
        Balancer("ntkmtl-sr", minibatches=1).backward(network.losses())
    assert str(network.bypass[0]) in str(info.value)
    assert all(p.grad is None for p in network.parameters)


@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "mgda", "imtl-g"])
@pytest.mark.parametrize("name", list(ZOO))
def test_the_exact_kernel_is_right_everywhere(name: str, method: str) -> None:
    network = make(name)
    losses = network.losses()
    shared = flat_gradients(losses, list(network.shared))
    jacobian = flat_gradients(losses, network.parameters)
    out = Balancer(method, weight_heads=True).backward(losses)
    gramian = shared @ shared.T
    if out.eigenvalues is None:
        torch.testing.assert_close(out.kernel.gramian(), gramian, **EXACT)
    else:
        torch.testing.assert_close(out.eigenvalues, gramian.diagonal(), **EXACT)
    torch.testing.assert_close(found_gradient(network.parameters), out.weights @ jacobian, **EXACT)


@pytest.mark.parametrize("name", list(ZOO))
def test_heads_may_be_unweighted(name: str) -> None:
    network = make(name)
    losses = network.losses()
    shared = flat_gradients(losses, list(network.shared))
    private = flat_gradients(losses, list(network.private) or list(network.shared))
    out = Balancer("ntkmtl").backward(losses)
    torch.testing.assert_close(found_gradient(network.shared), out.weights @ shared, **EXACT)
    if network.private:
        torch.testing.assert_close(found_gradient(network.private), private.sum(0), **EXACT)


@pytest.mark.parametrize("name", list(ZOO))
def test_the_explanation_names_bypasses(name: str, capsys: pytest.CaptureFixture) -> None:
    network = make(name)
    found = Balancer().explain(network.losses())
    assert capsys.readouterr().out.strip() == str(found)
    assert set(found.bypasses) == {str(i) for i in network.bypass}
    assert found.entries == sum(p.numel() for p in network.shared)
