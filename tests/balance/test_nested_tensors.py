"""A trunk that returns nested tensors: right gradients, or an error that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graph.zoo import linear, weights
from ntkmtl import Balancer

LAYOUTS = [torch.jagged, torch.strided]


class Net:
    def __init__(self, layout: torch.layout) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = linear(5, 7), [linear(7, 2) for _ in range(2)]
        parts = [torch.randn(n, 5, dtype=torch.float64) for n in (2, 3, 4)]
        self.x = torch.nested.nested_tensor(parts, layout=layout)

    def trunk_output(self) -> Tensor:
        return self.trunk(self.x).relu()

    def losses(self, z: Tensor) -> list[Tensor]:
        outputs = [torch.cat(list(head(z).unbind())) for head in self.heads]
        return [(out - i).square().mean() for i, out in enumerate(outputs)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return weights(self.trunk, *self.heads)  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["ntkmtl-auto", "ntkmtl", "mgda", "moco"])
def test_exact_kernels_are_right(layout: torch.layout, method: str) -> None:
    net, same = Net(layout), Net(layout)
    balancer = Balancer(method, weight_heads=True)
    out = balancer.backward(net.losses(net.trunk_output()))
    losses = same.losses(same.trunk_output())
    shared = list(same.trunk.parameters())
    if out.eigenvalues is not None:
        for value, loss in zip(out.eigenvalues, losses, strict=True):
            found = torch.autograd.grad(loss, shared, retain_graph=True)
            torch.testing.assert_close(value, sum(g.square().sum() for g in found))
    if method == "moco":
        return  # its gradient is not a weighted sum of this step's
    total = sum(w * loss for w, loss in zip(out.weights, losses, strict=True))
    for p, g in zip(net.parameters, torch.autograd.grad(total, same.parameters), strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [False, True])
def test_kernels_of_a_nested_representation_are_refused(layout: torch.layout, named: bool) -> None:
    net = Net(layout)
    z = net.trunk_output()
    with pytest.raises(ValueError, match=r"nested tensor.*source='auto'"):
        Balancer("ntkmtl-sr", minibatches=1).backward(net.losses(z), z if named else None)
    assert all(p.grad is None for p in net.parameters)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_explain_and_record(layout: torch.layout) -> None:
    net, kernels = Net(layout), []

    class Record:
        source = minibatches = pooling = None

        def wants(self, step: int) -> bool:
            return True

        def __call__(self, snapshot: object) -> None:
            kernels.append(snapshot.kernel)  # type: ignore[attr-defined]

    balancer = Balancer(record=Record())
    assert "2 tasks" in str(balancer.explain(net.losses(net.trunk_output())))
    balancer.backward(net.losses(net.trunk_output()))
    assert kernels[0] is not None
