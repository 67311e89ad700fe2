"""The fair allocation that Nash-MTL and FairGrad share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fair_weights"]

# Tens do for everyday gradients; hundreds for a large alpha and norms that differ by many orders.
_MAX_ITERATIONS = 2000
_SOLVED = 1e-12


def fair_weights(gramian: Tensor, alpha: float) -> Tensor:
    r"""Solve :math:`G w = w^{-1/\alpha}` for positive w.

    The solution is the only minimum of the convex function
    :math:`\frac12 w^T G w - \sum_i \psi(w_i)` with :math:`\psi'(w) = w^{-1/\alpha}`, which damped
    Newton steps find to machine precision. Published codes hand it to general solvers (a sequence
    of cone programs for Nash-MTL, least squares for FairGrad), which stop at absolute tolerances
    and, where they fail, go on with what they have.

    A task whose gradient is zero gets the weight that it would have by itself if its squared norm
    were the mean of all, :math:`(\mathrm{mean}_j G_{jj})^{-\alpha / (\alpha + 1)}`: no weight
    changes the shared part's step, and its head should not follow another task's that is nearly
    zero, whose weight is huge. Where gradients cancel exactly,
    no solution exists; directions below 1e-10 of the largest are taken as that, so that weights
    stay finite.

    Args:
        gramian: float64, shape (k, k), positive semi-definite up to rounding.
        alpha: Fairness; 1 is Nash bargaining.

    Returns:
        float64 weights of shape (k,).

    Raises:
        RuntimeError: The iteration did not converge.

    Example:
        >>> import torch
        >>> fair_weights(torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64)), 1.0)
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    norms = gramian.diagonal().clamp_min(0.0)
    live = norms > 0
    if not bool(live.all()):
        weights = torch.ones_like(norms)
        if bool(live.any()):
            weights[live] = fair_weights(gramian[live][:, live], alpha)
            weights[~live] = norms.mean().pow(-alpha / (alpha + 1.0))
        return weights
    # With w = t x and t_i what task i would get alone, only cosines and a mild power remain.
    power = 1.0 / alpha
    root = norms.sqrt()
    values, vectors = torch.linalg.eigh(gramian / root[:, None] / root[None, :])
    cosines = (vectors * values.clamp_min(1e-10 * float(values[-1]))) @ vectors.T
    t = norms.pow(-alpha / (alpha + 1.0))
    side = root * t
    matrix = cosines * side[:, None] * side[None, :]
    gain = t.pow(1.0 - power)
    scale = 1.0 / float(gain.mean())
    matrix, gain = matrix * scale, gain * scale

    rounding = 4.0 * torch.finfo(torch.float64).eps
    x = torch.ones_like(norms)
    for _ in range(_MAX_ITERATIONS):
        push = gain * x.pow(-power)
        residual = matrix @ x - push
        terms = matrix.abs() @ x + push
        if bool((residual.abs() <= rounding * terms).all()):
            return t * x
        curvature = matrix + torch.diag(power * push / x)
        # Equilibrated: scales of the tasks may differ by more than float64 can solve as it is.
        d = curvature.diagonal().sqrt()
        step: Tensor = torch.linalg.solve(curvature / d[:, None] / d[None, :], -residual / d) / d
        slope = -float(residual @ step)
        # Stay positive, then halve while the slope along the step says that the minimum is well
        # behind. Values of the objective would not do: near the minimum they are all rounding.
        shrink = float((-step / x).max())
        length = 1.0 if shrink < 1.0 else 0.95 / shrink
        while length > 1e-12:
            trial = x + length * step
            if float((matrix @ trial - gain * trial.pow(-power)) @ step) <= 0.9 * slope:
                break
            length *= 0.5
        if length < 1.0 and bool((residual.abs() <= _SOLVED * terms).all()):
            # Gradients that nearly cancel: the minimum cannot be told from its surroundings.
            return t * x
        x = x + length * step
        if length == 1.0 and bool((step.abs() <= 1e-12 * x).all()):
            # Newton converges quadratically: what is left after this step is rounding.
            return t * x
    raise RuntimeError(
        f"the fair allocation did not converge; the Gramian's diagonal is {norms.tolist()}"
    )
