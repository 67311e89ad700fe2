"""The same numbers every time, at any scale of the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernel.oracle import Case, make_case
from ntkmtl import Balancer
from weighting.by_hand import (
    OF_ENTRIES,
    OF_PAIRS,
)

OURS = (*OF_PAIRS, *OF_ENTRIES, "pivrg", "ldc-mtl")


def training(name: str, scale: float, steps: int = 4, **options: Any) -> tuple[list[Any], Case]:
    """A few steps in float32, with one label missing in the second."""
    case = make_case()
    case.trunk.float()
    case.heads.float()
    case.inputs = tuple(x.float() for x in case.inputs)
    case.targets = case.targets.float()
    balancer = Balancer(name, tasks=3, **options)
    weights = []
    for step in range(steps):
        z = case.features()
        losses: list[Tensor | None] = [scale * loss for loss in case.losses(z)]
        if step == 1:
            losses[1] = None
        out = balancer.backward(losses, features=z)
        weights.append(out.weights.tolist())
        with torch.no_grad():
            for p in [*case.parameters, *balancer.parameters()]:
                if p.grad is not None:
                    assert p.grad.isfinite().all()
                    p -= 0.01 * p.grad / p.grad.norm().clamp_min(1e-30)
                    p.grad = None
    return weights, case


@pytest.mark.parametrize("name", OURS)
def test_the_same_numbers_every_time(name: str) -> None:
    first, case = training(name, 1.0)
    second, other = training(name, 1.0)
    assert first == second
    for p, q in zip(case.parameters, other.parameters, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("exponent", [-12, 12])
@pytest.mark.parametrize("name", OURS)
def test_losses_of_any_scale(name: str, exponent: int) -> None:
    weights, case = training(name, 10.0**exponent)
    assert np.isfinite(weights).all()
    assert weights[1][1] == 0
    assert all(p.isfinite().all() for p in case.parameters)
    if name in ("sdmgrad", "ldc-mtl"):  # the same at every scale
        plain, _ = training(name, 1.0, steps=1)
        assert weights[0] == pytest.approx(plain[0], rel=1e-3)
    if name in ("db-mtl", "pivrg"):  # weights of losses; the published PIVRG scales as l ** (-4/3)
        power = -1.0 if name == "db-mtl" else -4 / 3
        plain, _ = training(name, 1.0, steps=1)
        expected = [w * (10.0**exponent) ** power for w in plain[0]]
        assert weights[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("source", ["representation", "exact"])
def test_weights_may_be_reused_between_kernels(name: str, source: str) -> None:
    weights, _ = training(name, 1.0, source=source, every=2)
    assert weights[2] == weights[3]
    assert weights[1][::2] == weights[0][::2]
