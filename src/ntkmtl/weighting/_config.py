"""Conflict-free gradients of equal cosines."""

from __future__ import annotations

from torch import Tensor

from ntkmtl.weighting._base import GramianWeighting
from ntkmtl.weighting._equal_projections import equal_projections
from ntkmtl.weighting._method import EXACT, method

__all__ = ["ConFIG"]


@method(
    "config",
    family="gradients",
    summary="Conflict-free: the direction of equal cosine with every gradient",
    paper="Liu, Chu, Thuerey: ConFIG, ICLR 2025",
)
class ConFIG(GramianWeighting):
    r"""The direction of equal cosine with every gradient, as long as their projections on it.

    Eq. 2 of "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks": with the
    unit gradients U as rows, the direction d is that of :math:`U^+ 1`, and the gradient
    :math:`(\sum_i \langle g_i, d \rangle) d`. As :math:`U^+ = U^T (U U^T)^+`, d is the combination
    :math:`b = C^+ 1` of unit gradients, with their cosines C; so the weights need the Gramian only,
    :math:`w_i = b_i / \|g_i\| \cdot \sum_j \|g_j\| (C b)_j / (b^T C b)`. TorchJD's version combines
    the gradients themselves, which no process has of the others and no backward pass with hooks can
    do.

    Gradients that vanish have no direction and are left out. Where gradients cancel, no direction
    serves all of them and every weight is 0.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> ConFIG()(K)  # b = (1, 1): (1, 1/3) * (1 + 3) / 2
        tensor([2.0000, 0.6667], dtype=torch.float64)
    """

    balancer_defaults = EXACT

    def of_gramian(self, gramian: Tensor) -> Tensor:
        found = equal_projections(gramian)
        if found.square == 0.0:
            return found.weights
        norms = gramian.diagonal().clamp_min(0.0).sqrt()
        return found.weights * ((norms @ found.projections) / found.square)
