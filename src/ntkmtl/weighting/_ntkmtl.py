"""NTKMTL, NTKMTL-SR and NTKMTL-TK: equal largest eigenvalues of the tasks' kernels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Reads, Weighting, check_positive

__all__ = ["NTKMTL", "eigenvalue_weights"]


def eigenvalue_weights(
    eigenvalues: Tensor, exponent: float = 0.5, floor: float = 1e-24, published: bool = False
) -> Tensor:
    r"""Return ``w_i = (mean(lambda) / lambda_i) ** exponent`` (Eq. 15 and 18 of the NTKMTL paper).

    Args:
        eigenvalues: Largest eigenvalue of each task's kernel, shape (k,), not negative.
        exponent: 0.5 makes all eigenvalues :math:`w_i^2 \lambda_i` equal (Eq. 14).
        floor: A task whose eigenvalue is below ``floor`` times the mean has no measurable gradient
            to balance; it is treated as if it were at the mean, hence gets weight 1.
        published: The published code's numerator, the sum of the eigenvalues instead of their mean.

    Returns:
        float64 weights of shape (k,).

    Example:
        >>> import torch
        >>> eigenvalue_weights(torch.tensor([9.0, 1.0, 2.0]))
        tensor([0.6667, 2.0000, 1.4142], dtype=torch.float64)
    """
    # Plain numbers: for k of them, ten tensor operations cost more than the arithmetic.
    values: list[float] = eigenvalues.tolist()
    mean = math.fsum(values) / len(values)
    numerator = mean * len(values) if published else mean
    weights = [
        (numerator / (value if value > floor * mean else mean)) ** exponent if mean > 0 else 1.0
        for value in values
    ]
    return torch.tensor(weights, dtype=torch.float64, device=eigenvalues.device)


class NTKMTL(Weighting):
    r"""Weights from the largest NTK eigenvalue of each task.

    :math:`w_i = (\bar\lambda / \lambda_i)^p` with the largest eigenvalue :math:`\lambda_i` of task
    i's kernel and the mean :math:`\bar\lambda` of them all (Eq. 15 and 18 of the NTKMTL paper).

    Which kernel the eigenvalues come from is the Balancer's choice: of the shared parameters
    (``ntkmtl``, Eq. 15), of the shared representation (``ntkmtl-sr``, Eq. 18), of the
    representation joined with the last layer's kernel (``ntkmtl-tk``), or what a budget allows
    (``ntkmtl-auto``).

    Args:
        exponent: p; 0.5 makes all weighted eigenvalues :math:`w_i^2 \lambda_i` equal (Eq. 14).
        floor: A task whose eigenvalue is below ``floor`` times the mean has no measurable gradient
            to balance; it is treated as if it were at the mean.
        published: Take the sum of the eigenvalues instead of their mean, as the published code
            does.

    Raises:
        ValueError: A number is negative, or ``floor`` is not below 1.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> NTKMTL()(ExtendedNTK(blocks=torch.tensor([[[9.0]], [[1.0]]])))
        tensor([0.7454, 2.2361], dtype=torch.float64)
    """

    reads: ClassVar[Reads] = "eigenvalues"

    def __init__(
        self, exponent: float = 0.5, floor: float = 1e-24, published: bool = False
    ) -> None:
        self.exponent = check_positive("exponent", exponent, zero=True)
        self.floor = check_positive("floor", floor, zero=True)
        if self.floor >= 1:
            raise ValueError(f"floor must be below 1. Found floor={floor}.")
        self.published = bool(published)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        return eigenvalue_weights(
            kernel.max_eigenvalues(), self.exponent, self.floor, self.published
        )
