"""ldc-mtl: values worked out by hand, and independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kernel.oracle import make_case
from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    close,
    random,
    tensor,
    through_a_file,
)


def ldc_total(router: Tensor, losses: Tensor, penalty: float, tau: str) -> Tensor:
    """What the published training loops descend, as one differentiable number."""
    weights = torch.sigmoid(router)
    scaled = weights * losses if tau == "sigma" else losses
    gaps = [(scaled[i] - scaled[i + 1]).abs() for i in range(len(losses) - 1)]
    return (weights * losses).sum() / weights.sum().detach() + penalty * sum(gaps)


def test_ldc_mtl_by_hand() -> None:
    # W = 1: equal shares. Losses 1 < 4 > 2: signs -1, +1; the middle one gains twice.
    sigma = 1 / (1 + math.exp(-1))
    losses = tensor([1.0, 4.0, 2.0])
    ldc = create("ldc-mtl")
    bend = 0.01 * sigma
    close(ldc(losses=losses), [1 / 3 - bend, 1 / 3 + 2 * bend, 1 / 3 - bend])
    close(create("ldc-mtl", penalty=0.1, tau="one")(losses=losses), [0.7 / 3, 1.6 / 3, 0.7 / 3])
    # d total / d W_i = sigma (1 - sigma) (l_i / (3 sigma) + .01 (s_i - s_{i-1}) l_i).
    ldc.accumulate(losses, torch.arange(3), 2.0)
    (router,) = ldc.parameters()
    slope = 2 * sigma * (1 - sigma)
    expected = [
        slope * (1 / (3 * sigma) - 0.01),
        slope * (4 / (3 * sigma) + 0.08),
        slope * (2 / (3 * sigma) - 0.02),
    ]
    assert router.grad is not None
    close(router.grad, expected, 1e-6)


def test_ldc_mtl_weights_may_be_negative() -> None:
    # Three equal shares; a loss below both its neighbors loses 2 * .2.
    found = create("ldc-mtl", penalty=0.2, tau="one")(losses=tensor([2.0, 1.0, 2.0]))
    close(found, [1 / 3 + 0.2, 1 / 3 - 0.4, 1 / 3 + 0.2])


@pytest.mark.parametrize("tau", ["sigma", "one"])
@pytest.mark.parametrize("seed", range(4))
def test_ldc_mtl_is_the_gradient_of_its_total(seed: int, tau: str) -> None:
    ldc = create("ldc-mtl", penalty=0.3, tau=tau, tasks=5)
    (router,) = ldc.parameters()
    with torch.no_grad():
        router.copy_(random(5, seed=seed))
    for here in ([0, 1, 2, 3, 4], [0, 2, 3], [4]):
        at = torch.tensor(here)
        losses = random(len(here), seed=seed + 10).abs().requires_grad_()
        own = router.detach().double()[at].requires_grad_()
        expected, on_router = torch.autograd.grad(ldc_total(own, losses, 0.3, tau), [losses, own])
        close(ldc(losses=losses.detach(), tasks=at), expected)
        router.grad = None
        ldc.accumulate(losses.detach(), at, 1.0)
        assert router.grad is not None
        torch.testing.assert_close(router.grad[at], on_router.float(), rtol=1e-5, atol=1e-7)
        absent = [i for i in range(5) if i not in here]
        assert not router.grad[absent].any()


def test_ldc_mtl_trains_its_router_beside_the_model() -> None:
    # Against the published loop: one optimizer, one backward pass of the total.
    results = []
    for by_balancer in (True, False):
        case = make_case()
        balancer = Balancer("ldc-mtl", penalty=0.05, tasks=3)
        own = nn.Parameter(torch.ones(3))
        learned = list(balancer.parameters()) if by_balancer else [own]
        optimizer = torch.optim.Adam([*case.parameters, *learned], lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            losses = case.losses(case.features())
            if by_balancer:
                balancer.backward(losses)
            else:
                ldc_total(own, torch.stack(losses), 0.05, "sigma").backward()
            optimizer.step()
        results.append([p.detach().double() for p in [*case.parameters, *learned]])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ldc_mtl_bad_input() -> None:
    ldc = create("ldc-mtl", tasks=2)
    with pytest.raises(ValueError, match="made for 2 tasks, found position 2"):
        ldc(losses=torch.ones(3))
    with pytest.raises(ValueError, match="the state has 3 tasks, this method 2"):
        ldc.load_state_dict({"router": torch.ones(3)})
    empty = create("ldc-mtl")
    assert empty.state_dict() == {"router": None}
    empty.load_state_dict({"router": None})
    through_a_file(create("ldc-mtl", tasks=2), empty)
    assert empty.state_dict()["router"].tolist() == [1.0, 1.0]
