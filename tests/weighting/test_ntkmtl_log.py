"""ntkmtl-log: values worked out by hand, and the two methods that it stands between."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create
from weighting.by_hand import EXACT, tensor


def test_ntkmtl_log() -> None:
    # Eq. 15 with exponent 1/4: lambda = (9, 1, 2), mean 4.
    blocks = torch.diag_embed(tensor([[9.0, 1.0], [1.0, 0.5], [2.0, 2.0]]))
    found = create("ntkmtl-log")(ExtendedNTK(blocks=blocks))
    torch.testing.assert_close(found, tensor([(4 / 9) ** 0.25, math.sqrt(2), 2**0.25]), **EXACT)


def test_each_kernel_is_divided_by_its_loss_squared() -> None:
    # Losses 3 x and 8 y at x = y = 1, gradients (3, 0) and (0, 8): of the logarithms (1, 0) and
    # (0, 1), so both eigenvalues are 1, both weights 1, and the gradient is (1, 1).
    point = tensor([1.0, 1.0]).requires_grad_()
    found = Balancer("ntkmtl-log", shared=[point]).backward([3 * point[0], 8 * point[1]])
    torch.testing.assert_close(found.eigenvalues, tensor([1.0, 1.0]), **EXACT)
    torch.testing.assert_close(point.grad, tensor([1.0, 1.0]), **EXACT)
    # Losses of other slopes: gradients (6, 0) and (0, 8) over losses of 3 and 8, eigenvalues 4 and
    # 1, mean 2.5, weights (2.5 / 4) ** (1/4) and 2.5 ** (1/4) on gradients of 2 and 1.
    point = tensor([1.0, 1.0]).requires_grad_()
    losses = [3 * point[0] ** 2, 8 * point[1]]
    found = Balancer("ntkmtl-log", shared=[point]).backward(losses)
    torch.testing.assert_close(found.eigenvalues, tensor([4.0, 1.0]), **EXACT)
    expected = tensor([2 * 0.625**0.25, 2.5**0.25])
    torch.testing.assert_close(point.grad, expected, **EXACT)


def gradients(point: Tensor, maps: Tensor, name: str, **options: float) -> Tensor:
    """Return the combined gradient of three losses."""
    point.grad = None
    Balancer(name, shared=[point], **options).backward([(m @ point).square().mean() for m in maps])
    assert point.grad is not None
    return point.grad


@pytest.mark.parametrize(("exponent", "other"), [(0.0, "si"), (0.5, "ntkmtl")])
def test_its_ends_are_si_and_ntkmtl(exponent: float, other: str) -> None:
    generator = torch.Generator().manual_seed(3)
    point = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    maps = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    ours = gradients(point, maps, "ntkmtl-log", exponent=exponent)
    cosine = torch.nn.functional.cosine_similarity(ours, gradients(point, maps, other), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-12)


def test_it_is_the_geometric_mean_of_both() -> None:
    # Losses of one parameter each: their gradients do not mix.
    point = tensor([1.0, 2.0, 0.5]).requires_grad_()
    maps = torch.stack([torch.diag(row) for row in tensor([[2, 0, 0], [0, 7, 0], [0, 0, 0.3]])])
    ours = gradients(point, maps, "ntkmtl-log")
    mean = (gradients(point, maps, "si") * gradients(point, maps, "ntkmtl")).sqrt()
    torch.testing.assert_close(ours / ours.norm(), mean / mean.norm(), **EXACT)


def test_the_unit_of_a_loss_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(4)
    point = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    maps = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    ours = gradients(point, maps, "ntkmtl-log")
    scaled = gradients(point, maps * tensor([1e-3, 1.0, 1e3])[:, None, None], "ntkmtl-log")
    torch.testing.assert_close(scaled, ours, **EXACT)
