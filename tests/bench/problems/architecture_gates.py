"""Gates and mixtures worked out by hand, number by number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def weighted(weights: Sequence[float] | Tensor, said: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(said[0])
    for weight, one in zip(weights, said, strict=True):
        total = total + weight * one
    return total


def softmax_gate(gate: Any, read: Tensor) -> list[float]:
    powers = [math.exp(float(row @ read.detach())) for row in gate.linear.weight.detach()]
    return [power / sum(powers) for power in powers]


def selecting_gate(gate: Any, read: Tensor) -> list[float]:
    z, alpha = gate.z(read).detach(), gate.alpha(read).detach().exp()
    weights = [0.0] * 4
    for selector, expert in itertools.product(range(2), range(4)):
        product = float(alpha[selector] / alpha.sum())
        for digit in range(2):
            t = min(max(float(z[2 * selector + digit]), -0.5), 0.5)
            step = -2 * t**3 + 1.5 * t + 0.5
            product *= step if (expert >> digit) % 2 else 1 - step
        weights[expert] += product
    return weights
