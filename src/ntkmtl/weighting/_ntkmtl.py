"""NTKMTL, NTKMTL-SR and NTKMTL-TK: equal largest eigenvalues of the tasks' kernels."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._method import EXACT, SearchRange, method

__all__ = ["NTKMTL", "eigenvalue_weights"]


def eigenvalue_weights(
    eigenvalues: Tensor, exponent: float = 0.5, published: bool = False
) -> Tensor:
    r"""Return ``w_i = (mean(lambda) / lambda_i) ** exponent`` (Eq. 15 and 18 of the NTKMTL paper).

    Eigenvalues may differ by any factor. Only one of exactly 0 is an exception, see
    :class:`NTKMTL`; so is one so small that its weight is beyond float64.

    Args:
        eigenvalues: Largest eigenvalue of each task's kernel, shape (k,), not negative.
        exponent: 0.5 makes all eigenvalues :math:`w_i^2 \lambda_i` equal (Eq. 14).
        published: The published code's numerator, the sum of the eigenvalues instead of their mean.

    Returns:
        float64 weights of shape (k,); NaN if an eigenvalue is not finite.

    Example:
        >>> import torch
        >>> eigenvalue_weights(torch.tensor([9.0, 1.0, 2.0]))
        tensor([0.6667, 2.0000, 1.4142], dtype=torch.float64)
    """
    # Plain numbers: for k of them, ten tensor operations cost more than the arithmetic.
    values: list[float] = eigenvalues.tolist()
    largest = max(values)
    if not all(map(math.isfinite, values)):
        weights = [math.nan] * len(values)
    elif largest <= 0.0:
        weights = [1.0] * len(values)
    else:
        # Relative to the largest: a sum of two of 1e308 overflows.
        numerator = math.fsum(value / largest for value in values)
        if not published:
            numerator /= len(values)
        weights = [_weight(numerator, largest, value, exponent) for value in values]
    return torch.tensor(weights, dtype=torch.float64, device=eigenvalues.device)


def _weight(numerator: float, largest: float, value: float, exponent: float) -> float:
    """Return the weight for an eigenvalue, the numerator being relative to the largest."""
    share = value / largest
    if share >= sys.float_info.min:
        try:
            return float((numerator / share) ** exponent)
        except OverflowError:  # an exponent beyond all use
            return math.inf
    if value > 0.0:
        logarithm = exponent * (math.log(numerator) + math.log(largest) - math.log(value))
        if logarithm < math.log(sys.float_info.max):
            return math.exp(logarithm)
    return 1.0


@method(
    "ntkmtl",
    family="ntk",
    summary="Equal largest NTK eigenvalues, kernel of the shared parameters",
    paper="Qin, Wang, Liao, Yan: NTKMTL, NeurIPS 2025",
    defaults=EXACT,
)
@method(
    "ntkmtl-sr",
    family="ntk",
    summary="Equal largest NTK eigenvalues, kernel of the shared representation",
    paper="Qin, Wang, Liao, Yan: NTKMTL, NeurIPS 2025",
    defaults={
        "source": "representation",
        "pooling": "blockwise",
        "minibatches": 4,
        "weight_heads": True,
    },
)
@method(
    "ntkmtl-tk",
    family="ntk",
    summary="Equal largest NTK eigenvalues, representation joined with the last layer's own kernel",
    paper="This library",
    defaults={
        "source": "representation",
        "pooling": "kernel",
        "minibatches": 4,
        "weight_heads": True,
    },
)
@method(
    "ntkmtl-auto",
    family="ntk",
    summary="Equal largest NTK eigenvalues of any graph of losses, measured rarely and averaged",
    paper="This library",
    defaults={"source": "auto", "weight_heads": True},
)
class NTKMTL(Weighting):
    r"""Weights from the largest NTK eigenvalue of each task.

    :math:`w_i = (\bar\lambda / \lambda_i)^p` with the largest eigenvalue :math:`\lambda_i` of task
    i's kernel and the mean :math:`\bar\lambda` of them all (Eq. 15 and 18 of the NTKMTL paper).

    The Balancer decides which kernel the eigenvalues come from: that of the shared parameters in
    every step (``ntkmtl``, Eq. 15), the same only as often as a budget allows, averaged in
    logarithms (``ntkmtl-auto``), that of the shared representation (``ntkmtl-sr``, Eq. 18), or
    that of the representation joined with the last layer's kernel (``ntkmtl-tk``).

    The representation's kernel exists where every path from a loss to the shared parameters passes
    it; elsewhere ``ntkmtl-sr`` and ``ntkmtl-tk`` raise an error, and the others are right.

    A task whose eigenvalue is exactly 0 has no gradient on the shared part: its head starts at
    zero, or its loss is saturated. It gets weight 1, that of a task whose eigenvalue is the mean.
    Eq. 15 has no limit there, its weights grow without bound, and no finite weight changes the
    shared part's step; but a head's own gradient need not vanish, and weight 1 trains that head as
    the plain sum of the losses does. A bound on the weights instead would be continuous, and wrong
    for every task whose loss is merely small: any bound is in units of the other tasks' losses. The
    zero counts in the mean, so that the other weights are continuous.

    Args:
        exponent: p; 0.5 makes all weighted eigenvalues :math:`w_i^2 \lambda_i` equal (Eq. 14).
        published: Take the sum of the eigenvalues instead of their mean, as the published code
            does.

    Raises:
        ValueError: The exponent is negative or not finite.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> NTKMTL()(ExtendedNTK(blocks=torch.tensor([[[9.0]], [[1.0]]])))
        tensor([0.7454, 2.2361], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "eigenvalues"
    search_space = (
        SearchRange(
            "exponent",
            0.25,
            1.0,
            0.5,
            reason="0.5 in the paper (Eq. 15), up to 0.75 in its scripts; 1 makes the rates equal",
        ),
    )

    def __init__(self, exponent: float = 0.5, published: bool = False) -> None:
        self.exponent = check_positive("exponent", exponent, zero=True)
        self.published = bool(published)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        return eigenvalue_weights(kernel.max_eigenvalues(), self.exponent, self.published)
