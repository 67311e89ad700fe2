"""Balancing the logarithms of the losses."""

from __future__ import annotations

import pytest
import torch

from kernel.oracle import make_case
from ntkmtl import Balancer

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def test_ls_of_log_losses_is_si() -> None:
    results = []
    for balancer in (Balancer("ls", log_losses=True), Balancer("si")):
        case = make_case()
        out = balancer.backward(case.losses(case.features()))
        results.append((out.weights, [p.grad for p in case.parameters]))
    (logs, grads), (si, expected) = results
    torch.testing.assert_close(logs, si, **EXACT)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("method", ["mgda", "cagrad", "imtl-g", "ntkmtl-sr", "graddrop"])
def test_the_method_sees_log_losses_and_reports_weights_of_losses(method: str) -> None:
    options = {"minibatches": 1} | ({"seed": 0} if method == "graddrop" else {})
    case, other = make_case(), make_case()
    z = case.features()
    out = Balancer(method, log_losses=True, **options).backward(case.losses(z), features=z)
    z = other.features()
    losses = other.losses(z)
    by_hand = Balancer(method, **options).backward([x.log() for x in losses], features=z)
    slopes = torch.stack([1.0 / x.detach() for x in losses])
    torch.testing.assert_close(out.weights, by_hand.weights * slopes, **EXACT)
    for p, q in zip(case.parameters, other.parameters, strict=True):
        torch.testing.assert_close(p.grad, q.grad, **EXACT)


def test_methods_of_logarithms_refuse() -> None:
    for method in ("si", "famo", "stch"):
        with pytest.raises(ValueError, match="logarithms of the losses already"):
            Balancer(method, log_losses=True)


def test_losses_without_a_logarithm() -> None:
    case = make_case()
    losses = case.losses(case.features())
    losses[1] = losses[1] - losses[1].detach() - 0.5
    with pytest.raises(ValueError, match=r"found -0\.5 for task 1"):
        Balancer("ls", log_losses=True).backward(losses)
    assert all(p.grad is None for p in case.parameters)


@pytest.mark.parametrize("method", ["ls", "db-mtl", "ntkmtl", "upgrad"])
def test_a_loss_of_zero_sends_nothing(method: str) -> None:
    """A hinge that is met: the others go on, finite."""
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    losses[1] = (case.heads[1](z) * 0.0 - 1.0).clamp_min(0.0).mean()
    balancer = Balancer(method, **({} if method == "db-mtl" else {"log_losses": True}))
    out = balancer.backward(losses, features=z)
    assert out.weights.isfinite().all()
    assert all(bool(p.grad.isfinite().all()) for p in case.trunk.parameters())
    assert any(bool(p.grad.any()) for p in case.trunk.parameters())
