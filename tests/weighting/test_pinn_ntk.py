"""NTK weighting of PINNs: values by hand, and where it is the paper's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer, ExtendedNTK
from ntkmtl.weighting import create


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # Traces |g|^2 / (4 l): 8 / (4 * 2) = 1, 12 / (4 * 1) = 3, 16 / (4 * .5) = 8; their sum is 12.
    K = ExtendedNTK(torch.diag(tensor(8.0, 12.0, 16.0)).reshape(3, 1, 3, 1))
    found = create("pinn-ntk")(K, losses=tensor(2.0, 1.0, 0.5))
    assert found.tolist() == pytest.approx([12.0, 4.0, 1.5], rel=1e-12)


def test_zeros_and_sizes() -> None:
    K = ExtendedNTK(torch.diag(tensor(0.0, 4.0, 4.0)).reshape(3, 1, 3, 1))
    found = create("pinn-ntk")(K, losses=tensor(0.0, 1.0, 1.0))
    assert found.tolist() == pytest.approx([1.0, 2.0, 2.0], rel=1e-12)
    # Units of residuals do not matter beyond their square: losses c, gradients' squares c^2.
    scale = 1e-30
    K = ExtendedNTK(torch.diag(tensor(8.0, 12.0) * scale**2).reshape(2, 1, 2, 1))
    found = create("pinn-ntk")(K, losses=tensor(2.0, 1.0) * scale)
    assert found.tolist() == pytest.approx([4.0, 4 / 3], rel=1e-9)
    with pytest.raises(ValueError, match=r"pinn-ntk divides by losses.*negative"):
        create("pinn-ntk")(K, losses=tensor(-1.0, 1.0))
    with pytest.raises(ValueError, match="reads losses"):
        create("pinn-ntk")(K)
    with pytest.raises(ValueError, match="no log_losses"):
        Balancer("pinn-ntk", log_losses=True)


def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    b = 10 * torch.randn(6, 4, dtype=torch.float64, generator=generator)
    return a, b


def test_equal_residuals_give_the_traces_of_the_paper() -> None:
    # Residuals x theta - y, all of size 1: their Jacobian is x, the traces are sums of squares.
    a, b = points(torch.Generator().manual_seed(0))
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    signs = tensor(1, -1, 1, 1, -1, -1)
    losses = {"a": (a @ theta - signs).square(), "b": (b @ theta + signs).square()}
    out = Balancer("pinn-ntk", minibatches=6).backward(losses)
    traces = torch.stack([a.square().sum(), b.square().sum()])
    torch.testing.assert_close(out.weights.double(), traces.sum() / traces, rtol=1e-6, atol=0)


def test_one_minibatch_gives_rayleigh_quotients() -> None:
    a, b = points(torch.Generator().manual_seed(1))
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    losses = [(x @ theta - y).square().mean() for x in (a, b)]
    out = Balancer("pinn-ntk").backward(losses)
    quotients = torch.stack([y @ x @ x.T @ y / (y @ y) for x in (a, b)])
    torch.testing.assert_close(out.weights.double(), quotients.sum() / quotients, rtol=1e-6, atol=0)
