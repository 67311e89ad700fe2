"""Exact eigenvalues along a training with ``Balancer()``, and how near several estimates come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from auto_workloads import WORKLOADS
from torch import Tensor, nn

import ntkmtl
from ntkmtl.balance import _auto
from ntkmtl.graph import crossing_gradients, find_cut, starts

__all__ = ["WINDOW", "errors", "log_weights", "record", "smoothed"]

WINDOW = 21
"""Steps of the centered mean that counts as the truth."""


def _gradients(losses: list[Tensor], parameters: list[nn.Parameter]) -> list[tuple[Any, ...]]:
    return [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]


def exact_eigenvalues(losses: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """Return squared norms over the parameters in which two or more losses have a gradient."""
    rows = _gradients(losses, parameters)
    squares = torch.tensor(
        [[0.0 if g is None else float(g.double().square().sum()) for g in row] for row in rows],
        dtype=torch.float64,
    )
    shared = (squares > 0).sum(dim=0) >= 2
    return squares[:, shared].sum(dim=1)


def free_eigenvalues(losses: list[Tensor]) -> Tensor | None:
    """Return squared norms on the representation, None where it does not carry all gradients."""
    cut = find_cut(losses)
    if not cut.clean or not cut.targets:
        return None
    own, _ = crossing_gradients(starts(losses), cut, retain=True)
    return torch.tensor(
        [sum(float(g.double().square().sum()) for g in task.values()) for task in own],
        dtype=torch.float64,
    )


def record(name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train with ``Balancer()`` and record.

    Returns:
        Logarithms of exact eigenvalues (``exact``), of the representation's (``free``, None where
        there are none) and of the Balancer's weights (``auto``), each of shape (steps, k), and the
        longest ``period`` between its exact kernels.
    """
    torch.manual_seed(seed)
    balancer = ntkmtl.Balancer()
    workload = WORKLOADS[name][1](1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(workload.parameters, lr=workload.learning_rate)
    exact, free, weights = [], [], []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = workload.losses(generator)
        exact.append(exact_eigenvalues(losses, workload.parameters))
        free.append(free_eigenvalues(losses))
        weights.append(balancer.backward(losses).weights.double())
        optimizer.step()
    known = [row for row in free if row is not None]
    return {
        "exact": torch.stack(exact).log(),
        "free": torch.stack(known).log() if len(known) == steps else None,
        "auto": torch.stack(weights).log(),
        "period": _auto.period(balancer._core, len(exact[0])),
    }


def log_weights(logs: Tensor) -> Tensor:
    """Return log weights of Eq. 15 with exponent 0.5, each step's mean taken off."""
    weights = -0.5 * logs
    return weights - weights.mean(dim=1, keepdim=True)


def smoothed(logs: Tensor, window: int = WINDOW) -> Tensor:
    """Return a centered mean over steps; at the ends over the steps that there are.

    Example:
        >>> smoothed(torch.tensor([[1.0], [2.0], [6.0]]), 3).flatten().tolist()
        [1.5, 3.0, 4.0]
    """
    half = window // 2
    total = len(logs)
    rows = [logs[max(0, t - half) : t + half + 1].mean(dim=0) for t in range(total)]
    return torch.stack(rows)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def errors(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return root mean squares over tasks and steps of log weights less smoothed exact ones."""
    exact, free, auto = run["exact"], run["free"], run["auto"]
    truth = log_weights(smoothed(exact))
    held = exact[torch.arange(len(exact)) // 10 * 10]
    return {
        "tasks": exact.shape[1],
        "period": run["period"],
        "errors": {
            "`Balancer()`": _distance(auto - auto.mean(dim=1, keepdim=True), truth),
            "exact, each step": _distance(log_weights(exact), truth),
            "exact, each 10th step, held": _distance(log_weights(held), truth),
            "representation": None if free is None else _distance(log_weights(free), truth),
            "equal weights": _distance(torch.zeros_like(truth), truth),
        },
    }
