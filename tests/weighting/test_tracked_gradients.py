"""Methods that track gradients over steps."""

from __future__ import annotations

import pytest
import torch

from kernel.oracle import make_case
from ntkmtl import Balancer
from ntkmtl.weighting import create
from weighting.by_hand import (
    OF_ENTRIES,
    close,
    kernel_of_gradients,
    random,
)


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_no_kernel_holds_what_they_read(name: str) -> None:
    with pytest.raises(ValueError, match="entry by entry"):
        create(name)(kernel_of_gradients(random(2, 1, 3)))


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_gradients_must_be_of_the_same_parameters(name: str) -> None:
    weighting = create(name)
    weighting.combine(random(2, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"had 4 entries and now have 5.*source='exact'"):
        weighting.combine(random(2, 5), torch.ones(2))


@pytest.mark.parametrize("name", OF_ENTRIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_small_steps_are_not_lost_in_low_precision(name: str, dtype: torch.dtype) -> None:
    # 2 ** -10 of the way each time: in bfloat16, which has 8 bits, an average would not move.
    settings = {"beta": 2.0**-10, "beta_sigma": 0.0} if name == "moco" else {"beta": 1 - 2.0**-10}
    weighting = create(name, **settings)
    rows, ones = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype), torch.ones(2)
    for _ in range(1000):
        combined, _ = weighting.combine(rows, ones)
    assert combined.dtype == dtype
    expected = 1 - (1 - 2.0**-10) ** 1000
    tracked = weighting.state_dict()["tracked"]
    assert tracked.dtype == torch.float32
    assert tracked.diagonal().tolist() == pytest.approx([expected, expected], rel=1e-3)


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_a_gradient_scale_that_changes_is_not_tracked(name: str) -> None:
    results = []
    for scales in (None, [4096.0, 512.0, 2.0**30]):
        case = make_case()
        balancer = Balancer(name)
        steps = []
        for step in range(3):
            scaler = None
            if scales is not None:
                scaler = torch.amp.GradScaler("cpu", init_scale=scales[step])
            z = case.features()
            out = balancer.backward(case.losses(z), features=z, scaler=scaler)
            with torch.no_grad():
                for p in case.parameters:
                    assert p.grad is not None
                    p -= 0.1 * p.grad / (1.0 if scales is None else scales[step])
                    p.grad = None
            steps.append(out.weights)
        results.append((torch.stack(steps), [p.detach() for p in case.parameters]))
    (plain, parameters), (scaled, others) = results
    close(scaled, plain, 1e-7)
    for p, q in zip(parameters, others, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OF_ENTRIES)
def test_the_same_with_shared_parameters_and_a_scaler(name: str) -> None:
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        case = make_case()
        balancer = Balancer(name, shared=case.shared)
        balancer.backward(case.losses(case.features()), scaler=scaler)
        size = 1.0 if scaler is None else 1024.0
        grads.append([p.grad / size for p in case.parameters if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-12)
