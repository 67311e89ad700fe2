"""Wrong arguments of the kernel's public functions are errors in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import ExtendedNTK, branch, extended_ntk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)

    def losses(self) -> list[Tensor]:
        self.z = self.trunk(torch.ones(6, 3)).tanh()
        return [self.z[:, :2].square().mean(), self.z[:, 2:].sum(1).mean()]


def of_parameters(losses: Callable[[Net], Any], **options: Any) -> Callable[[Net], Any]:
    def run(net: Net) -> ExtendedNTK:
        options.setdefault("parameters", list(net.trunk.parameters()))
        return extended_ntk(losses(net), **options)

    return run


def of_features(losses: Callable[[Net], Any], **options: Any) -> Callable[[Net], Any]:
    def run(net: Net) -> ExtendedNTK:
        given = losses(net)
        return extended_ntk(given, net.z, **options)

    return run


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (of_parameters(lambda net: []), ValueError, "losses is empty"),
        (of_parameters(lambda net: {}), ValueError, "losses is empty"),
        (of_parameters(lambda net: "ab"), TypeError, "a sequence or a dict of k losses"),
        (of_parameters(lambda net: net.losses()[0]), TypeError, "a sequence or a dict of k losses"),
        (of_parameters(lambda net: [1.0, 2.0]), TypeError, "task 0 must be a tensor of real"),
        (of_parameters(lambda net: [*net.losses(), None]), TypeError, "task 2 must be a tensor of"),
        (of_parameters(lambda net: [1j * v for v in net.losses()]), TypeError, "complex"),
        (of_parameters(lambda net: [v.detach() for v in net.losses()]), ValueError, "detach"),
        (of_parameters(Net.losses, parameters=nn.Linear(1, 1)), TypeError, "found the module"),
        (of_parameters(Net.losses, parameters=nn.Linear(1, 1).named_parameters()), TypeError,
         "pairs of name"),
        (of_parameters(Net.losses, parameters=nn.Linear(1, 1).weight), TypeError, "must be a list"),
        (of_parameters(Net.losses, parameters=nn.Linear(1, 1).parameters()), ValueError,
         "no loss depends on the parameters"),
        (of_parameters(Net.losses, minibatches=2.0), TypeError, "minibatches must be a whole"),
        (of_parameters(Net.losses, minibatches="2"), TypeError, "minibatches must be a whole"),
        (of_features(Net.losses, batch_dim="0"), TypeError, "batch_dim must be a whole number"),
        (of_features(Net.losses, counts=[[1] * 6] * 2), TypeError, "counts must be a tensor"),
        (of_features(Net.losses, counts=torch.ones(2, 6) * 1j), TypeError, "of real numbers"),
        (lambda net: branch([1.0], 2), TypeError, "features must be a tensor"),
        (lambda net: branch(net.trunk.weight, "2"), TypeError, "heads must be a whole number"),
        (lambda net: branch(net.trunk.weight, 1.5), TypeError, "heads must be a whole number"),
        (lambda net: ExtendedNTK(blocks=torch.ones(2, 1, 1)).weighted([1.0, 2.0]), TypeError,
         "weights must be a tensor"),
        (lambda net: ExtendedNTK(blocks=torch.ones(2, 1, 1)).select([]), ValueError, "empty"),
    ],
)  # fmt: skip
def test_wrong_arguments(call: Callable[[Net], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Net())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_kernel_of_a_graph_may_be_asked_for_where_gradients_are_off(mode: Any) -> None:
    net = Net()
    losses = net.losses()
    expected = extended_ntk(losses, parameters=net.trunk.parameters()).values
    with mode():
        found = extended_ntk(iter(losses), parameters=net.trunk.parameters()).values
    assert torch.equal(found, expected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocks_that_are_not_finite_have_no_eigenvalue(n: int) -> None:
    blocks = torch.ones(3, n, n)
    blocks[1, 0, 0] = math.nan
    found = ExtendedNTK(blocks=blocks).max_eigenvalues()
    assert found.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(found[[0, 2]], torch.full((2,), float(n), dtype=torch.float64))
