"""Quadratic programs in the Gramian of k gradients."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cancellation", "cosines", "nonnegative_qp", "shortest_combination"]

_EPS = torch.finfo(torch.float64).eps
# Multipliers and slacks count as negative below these shares of the terms they are sums of.
_NEGATIVE = 1e-12
_RESIDUAL = 1e-9
_RIDGE = 1e-12
# Rounds that may pass without fewer violations.
_PATIENCE = 3
# No Gramian has an eigenvalue of its cosines below this; rounding in float32 leaves -1e-7.
_INDEFINITE = -1e-4


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines between k gradients, and their norms.

    Args:
        gramian: float64, shape (k, k).

    Returns:
        The cosines, 0 beside a gradient that vanishes, with a diagonal of 1; and the norms. Squared
        norms below the smallest normal number count as 0.

    Example:
        >>> import torch
        >>> cosines(torch.tensor([[4.0, 3.0], [3.0, 9.0]], dtype=torch.float64))
        (tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64), tensor([2., 3.], dtype=torch.float64))
    """
    squares = gramian.diagonal()
    live = squares >= torch.finfo(torch.float64).tiny
    norms = torch.where(live, squares, 0.0).sqrt()
    inverse = torch.where(live, 1.0 / norms, 0.0)
    # Divided one side at a time: the product of two norms may overflow or vanish.
    found = (gramian * inverse[:, None] * inverse[None, :]).clamp(-1.0, 1.0)
    return found.fill_diagonal_(1.0), norms


def nonnegative_qp(matrix: Tensor, linear: Tensor) -> Tensor:
    r"""Minimize :math:`\frac12 x^T Q x - q^T x` over :math:`x \ge 0`.

    Its multipliers are what the projection of a gradient onto an intersection of half-spaces is
    made of: with the Gramian Q of :math:`g_1, ..., g_k`, the nearest point to a gradient h under
    :math:`\langle g_i, d \rangle \ge b_i` is :math:`h + \sum_i x_i g_i` for
    :math:`q_i = b_i - \langle g_i, h \rangle`.

    Block principal pivoting (Portugal, Judice, Vicente 1994): the set of positive entries is
    guessed, the linear system is solved on it, and all entries that violate an optimality condition
    change sides, which takes a few rounds for any k. Where their number stops falling, Lawson and
    Hanson's method starts again from zero, one entry at a time. Variables are scaled so that Q has
    a diagonal of 1, hence norms of gradients may differ by any factor. 1e-12 is added to that
    diagonal, which makes the solution unique, alike for equal gradients, and is taken out again by
    iterative refinement.

    What float64 permits: a Gramian holds squares, so two unit gradients that differ (or two
    opposite ones whose sum is) less than about 1e-8 long cannot be told from equal (opposite) ones.
    The optimality conditions hold for the Gramian as it is given.

    Args:
        matrix: Q, float64, shape (k, k), positive semi-definite up to rounding. A diagonal entry of
            0 stands for a gradient that vanishes, whose x is 0.
        linear: q, float64, shape (k,) or (B, k) for B programs with one Q.

    Returns:
        x, of the shape of ``linear``. The program must have a minimum: where it has none, x is
        huge, along a combination of gradients that cancels; see :func:`cancellation`.

    Raises:
        ValueError: A number is NaN or infinite.
        RuntimeError: The optimality conditions were not met to 1e-9 of the terms that they sum;
            or Q has an eigenvalue that is negative beyond rounding.

    Example:
        >>> import torch
        >>> Q = torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> nonnegative_qp(Q, torch.tensor([[1.0, 1.0], [2.0, -3.0]], dtype=torch.float64)).float()
        tensor([[1., 1.],
                [1., 0.]])
    """
    _require_finite(matrix)
    _require_finite(linear)
    unit, norms = cosines(matrix)
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    right = linear.reshape(-1, len(norms)) * inverse
    if not bool((right > 0).any()):
        return torch.zeros_like(linear)
    ridge = _ridge(unit)
    y, free = _pivot(unit, right, ridge)
    y, worst = _refine(unit, right, ridge, y, free)
    if not worst <= max(_RESIDUAL, 10.0 * ridge):
        raise RuntimeError(
            f"the quadratic program of {len(norms)} gradients was not solved: its optimality "
            f"conditions are violated by {worst:.1e} of their terms; the norms of the gradients "
            f"are {norms.tolist()}"
        )
    return (y * inverse).reshape(linear.shape)


def shortest_combination(gramian: Tensor) -> Tensor:
    r"""Minimize :math:`w^T G w` over the simplex: the convex combination of least norm.

    For :math:`x \ge 0`, :math:`x^T G x + s^2 (1^T x - 1)^2` has its minimum on the same ray,
    whatever s; it is that of a :func:`nonnegative_qp`. s is the shortest gradient's norm.

    Args:
        gramian: G, float64, shape (k, k), positive semi-definite up to rounding.

    Returns:
        w, float64, shape (k,). Gradients that vanish share all of it.

    Raises:
        ValueError: As for :func:`nonnegative_qp`.
        RuntimeError: Likewise.

    Example:
        >>> import torch
        >>> shortest_combination(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    _require_finite(gramian)
    unit, norms = cosines(gramian)
    zero = norms == 0
    if bool(zero.any()):
        return zero.to(gramian) / zero.sum()
    slope = norms.min() / norms
    y = nonnegative_qp(unit + slope[:, None] * slope[None, :], slope)
    w = y * slope
    return w / w.sum()


def cancellation(gramian: Tensor, weights: Tensor) -> float:
    """Return how much of its terms a combination of gradients is: 0 where they cancel.

    Args:
        gramian: float64, shape (k, k).
        weights: float64, shape (k,).

    Returns:
        The squared norm of the combination over the square of the sum of its terms' norms; 0 if
        all vanish.

    Example:
        >>> import torch
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> cancellation(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64), one)
        0.25
    """
    unit, norms = cosines(gramian)
    terms = weights * norms
    total = float(terms.abs().sum())
    if total == 0.0:
        return 0.0
    terms = terms / total
    return max(float(terms @ unit @ terms), 0.0)


def _require_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(f"a quadratic program needs finite numbers, found {values.tolist()}")


def _ridge(unit: Tensor) -> float:
    """Return what to add to the diagonal of the cosines to make them positive definite."""
    k = len(unit)
    ridge = _RIDGE
    _, failed = torch.linalg.cholesky_ex(unit + torch.eye(k, dtype=unit.dtype) * ridge)
    if bool(failed):
        least = float(torch.linalg.eigvalsh(unit)[0])
        if not least > _INDEFINITE:
            raise RuntimeError(
                f"no Gramian of gradients: the matrix of their cosines has the eigenvalue {least}"
            )
        ridge += 2.0 * abs(least)
    return ridge


def _solve(unit: Tensor, right: Tensor, ridge: float, free: Tensor) -> Tensor:
    """Solve the system of the free variables of each program; the others are 0."""
    mask = free.to(unit)
    system = unit * mask[:, :, None] * mask[:, None, :]
    system.diagonal(dim1=1, dim2=2).copy_(1.0 + ridge * mask)
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve((right * mask)[:, :, None], factor)[:, :, 0]


def _pivot(unit: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the solutions with a ridge on the diagonal, and which variables are free."""
    free = right > 0
    fewest = torch.full((len(right), 1), unit.shape[0] + 1)
    patience = torch.full_like(fewest, _PATIENCE)
    while True:
        y = _solve(unit, right, ridge, free)
        top = y.abs().amax(dim=1, keepdim=True)
        negative = _slack(unit, right, y) < -_NEGATIVE
        violated = torch.where(free, y < -_NEGATIVE * top, negative)
        count = violated.sum(dim=1, keepdim=True)
        if not bool(count.any()):
            return y.clamp_min(0.0), free
        fewer = count < fewest
        fewest = torch.where(fewer, count, fewest)
        patience = torch.where(fewer, _PATIENCE, patience - 1)
        stuck = (patience < 0) & (count > 0)
        if bool(stuck.any()):
            break
        free = free ^ violated
    y = y.clamp_min(0.0)
    for program in count.flatten().nonzero().flatten().tolist():
        y[program], free[program] = _one_by_one(unit, right[program], ridge)
    return y, free


def _one_by_one(unit: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Solve one program by Lawson and Hanson's method, which lowers its value in every step."""
    y = torch.zeros_like(right)
    free = torch.zeros_like(right, dtype=torch.bool)
    barred = free.clone()
    for _ in range(10 * len(right) + 100):
        slack = _slack(unit, right[None], y[None])[0].masked_fill(free | barred, 0.0)
        entering = int(slack.argmin())
        if float(slack[entering]) >= -_NEGATIVE:
            break
        free[entering] = True
        target = _solve(unit, right[None], ridge, free[None])[0]
        if float(target[entering]) <= 0.0:  # its slack was rounding
            free[entering] = False
            barred[entering] = True
            continue
        barred.zero_()
        while bool((free & (target <= 0)).any()):
            ratio = torch.where(free & (target <= 0), y / (y - target), torch.inf)
            length = ratio.min()
            y = torch.where(ratio <= length, 0.0, y + length * (target - y))
            free &= y > 0
            target = _solve(unit, right[None], ridge, free[None])[0]
        y = target
    return y, free


def _refine(
    unit: Tensor, right: Tensor, ridge: float, y: Tensor, free: Tensor
) -> tuple[Tensor, float]:
    """Take the ridge's share out of the solutions as long as that brings them nearer.

    Returns:
        The solutions, and by how much the optimality conditions are violated at worst.
    """
    worst = _residual(unit, right, y)
    for _ in range(10):
        if bool((worst <= 4.0 * _EPS).all()):
            break
        moved = (y + _solve(unit, right - y @ unit, ridge, free)).clamp_min(0.0)
        residual = _residual(unit, right, moved)
        better = residual < worst
        if not bool(better.any()):
            break
        y = torch.where(better, moved, y)
        worst = torch.where(better, residual, worst)
    return y, float(worst.amax())


def _residual(unit: Tensor, right: Tensor, y: Tensor) -> Tensor:
    """Return by how much each program's optimality conditions are violated, shape (B, 1).

    The largest of |min(slack, y)|, as shares of the terms of the slack and of the largest y.
    """
    top = y.abs().amax(dim=1, keepdim=True)
    share = torch.where(top > 0, y / top, 0.0)
    return torch.minimum(_slack(unit, right, y), share).abs().amax(dim=1, keepdim=True)


def _slack(unit: Tensor, right: Tensor, y: Tensor) -> Tensor:
    """Return Q y - q as a share of its terms."""
    terms = y.abs() @ unit.abs() + right.abs()
    return torch.where(terms > 0, (y @ unit - right) / terms, 0.0)
