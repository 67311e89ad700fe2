"""The direction on which all gradients have the same projection, that IMTL-G and ConFIG share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ntkmtl.weighting._base import DEPENDENT

__all__ = ["EqualProjections", "equal_projections"]


class EqualProjections(NamedTuple):
    """A combination of gradients, as :func:`equal_projections` finds it.

    Attributes:
        weights: Of the gradients, shape (k,); 0 for those that vanish.
        projections: Of the combination on each unit gradient, shape (k,): 1, or as near to it as
            gradients that depend on each other allow; 0 for those that vanish.
        square: The combination's squared norm; 0 where gradients cancel, so that no direction
            serves all of them.
    """

    weights: Tensor
    projections: Tensor
    square: float


def equal_projections(gramian: Tensor) -> EqualProjections:
    r"""Combine gradients so that all have projection 1 on the result.

    With unit gradients U as rows and their cosines :math:`C = U U^T`, :math:`U^+ 1 = U^T b`,
    :math:`b = C^+ 1`: the shortest such combination, in the least-squares sense where gradients
    depend on each other.

    Args:
        gramian: float64, shape (k, k), of gradients of any scales.

    Example:
        >>> import torch
        >>> equal_projections(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))).weights
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    norms = gramian.diagonal().clamp_min(0.0).sqrt()
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    cosines = gramian * inverse[:, None] * inverse[None, :]
    values, vectors = torch.linalg.eigh(cosines)
    kept = values > DEPENDENT * values[-1]
    # All from the eigenvectors: of C^+ 1 a product with C itself would lose digits. A gradient that
    # vanishes has no part in those that are kept.
    ones = vectors[norms > 0].sum(dim=0)
    b = vectors @ torch.where(kept, ones / values, 0.0)
    square = float(torch.where(kept, ones.square() / values, 0.0).sum())
    if square <= DEPENDENT:
        return EqualProjections(torch.zeros_like(b), torch.zeros_like(b), 0.0)
    projections = vectors @ torch.where(kept, ones, 0.0)
    return EqualProjections(b * inverse, projections, square)
