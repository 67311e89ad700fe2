"""Small inputs for values that are worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, create

EXACT = {"rtol": 1e-9, "atol": 1e-14}


def tensor(*values: Any) -> Tensor:
    """Return float64 numbers, given one by one or as one list."""
    listed = len(values) == 1 and not isinstance(values[0], int | float)
    return torch.tensor(values[0] if listed else values, dtype=torch.float64)


def kernel_of(gramian: Tensor | Sequence[Sequence[float]]) -> ExtendedNTK:
    gramian = torch.as_tensor(gramian, dtype=torch.float64)
    k = len(gramian)
    return ExtendedNTK(gramian.reshape(k, 1, k, 1))


def weigh(weighting: Weighting | str, gramian: Any, **given: Any) -> Tensor:
    if isinstance(weighting, str):
        weighting = create(weighting)
    return weighting(kernel_of(gramian), **given)


def gradients(k: int = 3, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, width, dtype=torch.float64, generator=generator)


def slopes(total: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Differentiate a written-out total by the losses."""
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(total(losses), losses)[0]


LOSSES = tensor(0.5, 4.0, 2.0)


OF_ENTRIES = ("moco", "db-mtl")


OF_PAIRS = ("modo", "sdmgrad")


def close(found: Tensor, expected: Any, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-14)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def kernel_of_products(products: Any, own: float = 100.0) -> ExtendedNTK:
    """Two mini-batches with given products between them; those within one must not be read."""
    products = tensor(products)
    values = products[:, None, :, None].repeat(1, 2, 1, 2)
    values[:, [0, 1], :, [0, 1]] = own
    return ExtendedNTK(values)


def kernel_of_gradients(gradients: Tensor) -> ExtendedNTK:
    """From gradients of shape (k, n, P)."""
    return ExtendedNTK(torch.einsum("iup,jvp->iujv", gradients, gradients))


def through_a_file(first: Weighting, second: Weighting) -> None:
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))


def simplex_oracle(vector: Sequence[float]) -> np.ndarray:
    """Nearest point by bisection on the threshold of max(v - t, 0), whose sum falls with t."""
    v = np.asarray(vector, dtype=np.float64)
    low, high = v.min() - 1.0, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - high, 0)


PATTERNS = ([0, 1, 2], [0, 2], [0, 1, 2], [1], [1, 2], [0, 1, 2], [0, 1, 2])


def on_simplex(objective: object, k: int) -> np.ndarray:
    """Minimise over the simplex with SciPy's SLSQP from several starts."""
    best = None
    for start in [np.full(k, 1 / k), *np.eye(k) * 0.8 + 0.2 / k]:
        found = scipy.optimize.minimize(
            objective,
            start,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if best is None or found.fun < best.fun:
            best = found
    return best.x
