"""NTKMTL on the logarithms of the losses, halfway to scale-invariant weights."""

from __future__ import annotations

from ntkmtl.weighting._method import SearchRange, method
from ntkmtl.weighting._ntkmtl import NTKMTL

__all__ = ["NTKMTLLog"]


@method(
    "ntkmtl-log",
    family="ntk",
    summary="Logarithms of the losses, weighted halfway between si and ntkmtl, as by ntkmtl-auto",
    paper="This library",
    defaults={"source": "auto", "weight_heads": True, "log_losses": True},
)
class NTKMTLLog(NTKMTL):
    r"""NTKMTL's weights on the logarithms of the losses, with exponent 1/4.

    The kernel of :math:`\log L_i` is that of :math:`L_i` divided by :math:`L_i^2`, so Eq. 15 of the
    NTKMTL paper with exponent p gives the combined gradient
    :math:`c \sum_i L_i^{2p - 1} \lambda_i^{-p} \nabla L_i`,
    with a factor c common to all tasks and the largest eigenvalue :math:`\lambda_i` of the kernel
    of :math:`L_i`; it holds in a step whose own kernel is used, with one mini-batch. p = 0 is
    ``si``, which divides each gradient by its loss; p = 1/2 has the direction of ``ntkmtl``, which
    divides it by :math:`\sqrt{\lambda_i}`; p = 1/4 takes the geometric mean of both. None of them
    depends on the unit of a loss. Against ``ntkmtl`` the gradient's length does not fall with the
    losses, so a learning rate means the same early and late. Where a loss cannot reach zero,
    p = 1/2 amplifies what is left of its gradient, noise included, and p = 0 does not look at
    gradients.

    Losses must be positive. A logarithm divides each gradient by the loss of its batch, so a batch
    with rare, large errors counts no more than any other, and these errors stay large. Targets with
    a long tail need larger batches: with 8 rows a batch it lost much there, with 32 nothing
    (docs/family.md has the measurement).

    Args:
        exponent: p, from 0 (``si``) to 1/2 (the direction of ``ntkmtl``) and beyond.
        published: Take the sum of the eigenvalues instead of their mean in Eq. 15, as the published
            code does.

    Raises:
        ValueError: The exponent is negative or not finite.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> NTKMTLLog()(ExtendedNTK(blocks=torch.tensor([[[31.0]], [[1.0]]])))
        tensor([0.8476, 2.0000], dtype=torch.float64)
    """

    search_space = (
        SearchRange("exponent", 0.0, 0.5, 0.25, reason="between si (0) and ntkmtl (0.5)"),
    )

    def __init__(self, exponent: float = 0.25, published: bool = False) -> None:
        super().__init__(exponent, published)
