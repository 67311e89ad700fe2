"""A model that is linear in its parameters, whose kernel is constant: the oracle of predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl.analysis import critical_learning_rate

F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-12}
WEIGHTS = torch.tensor([2.0, 0.3, 0.7], dtype=F64)


def linear_problem(k: int = 3, n: int = 4, p: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Features (k, n, p) of a linear model, its parameters at the start, and targets."""
    features = torch.randn(k, n, p, dtype=F64)
    features[0] *= 2  # The tasks differ in scale, so that their blocks do.
    return features, torch.randn(p, dtype=F64), torch.randn(k, n, dtype=F64)


def kernel_of(features: Tensor) -> Tensor:
    return torch.einsum("iup,jvp->iujv", features, features)


def descend(
    features: Tensor,
    theta: Tensor,
    targets: Tensor,
    steps: list[int],
    learning_rate: float,
    weights: Tensor,
    reduction: str,
) -> Tensor:
    """Gradient descent by autograd, the losses written out."""
    theta = theta.clone().requires_grad_()
    recorded = []
    for step in range(max(steps) + 1):
        if step in steps:
            recorded.append((features @ theta).detach())
        total = torch.zeros((), dtype=F64)
        for i in range(len(targets)):
            squares = [(features[i, u] @ theta - y) ** 2 for u, y in enumerate(targets[i])]
            loss = sum(squares) / 2 if reduction == "sum" else sum(squares) / len(squares)
            total = total + weights[i] * loss
        (gradient,) = torch.autograd.grad(total, theta)
        theta = (theta - learning_rate * gradient).detach().requires_grad_()
    return torch.stack(recorded)


def rate_for(kernel: Tensor, weights: Tensor | None, reduction: str) -> float:
    return 0.9 * critical_learning_rate(kernel, weights=weights, reduction=reduction)
