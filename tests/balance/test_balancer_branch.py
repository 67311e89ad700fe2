"""Views of one representation, one for each head."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from kernel.oracle import Case, make_case
from ntkmtl import Balancer, branch, extended_ntk

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def with_a_tail(case: Case, views: list[Tensor] | object) -> list[Tensor]:
    """Losses that come out of one operation: every loss is made from every head's view."""
    return list(torch.stack(case.losses(views)).mul(2.0).unbind())


@pytest.mark.parametrize(
    ("method", "weight_heads"),
    [("ls", True), *itertools.product(["ntkmtl-sr", "ntkmtl", "nash-mtl"], [True, False])],
)
def test_losses_with_a_common_tail(method: str, weight_heads: bool) -> None:
    case, other = make_case(), make_case()
    views = branch(case.features(), 3)
    options = {"minibatches": 2, "weight_heads": weight_heads}
    out = Balancer(method, **options).backward(with_a_tail(case, views), features=views)
    z = other.features()
    expected = Balancer(method, **options).backward(with_a_tail(other, z), features=z)
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)
    for p, q in zip(case.parameters, other.parameters, strict=True):
        torch.testing.assert_close(p.grad, q.grad, **EXACT)


def test_the_kernel_of_losses_with_a_common_tail() -> None:
    case = make_case()
    views = branch(case.features(), 3)
    found = extended_ntk(with_a_tail(case, views), views, minibatches=2)
    z = case.features()
    expected = extended_ntk(with_a_tail(case, z), z, minibatches=2)
    torch.testing.assert_close(found.values, expected.values, **EXACT)
