"""The NTK weighting of physics-informed networks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import EXACT_HEADS, method

__all__ = ["PINNNTK"]


@method(
    "pinn-ntk",
    family="ntk",
    summary="NTK weighting of PINNs: the trace of all residuals' kernels by that of each",
    paper="Wang, Yu, Perdikaris: When and Why PINNs Fail to Train, JCP 2022",
)
class PINNNTK(Weighting):
    r"""Weights that bring the traces of the residuals' kernels to one value.

    Eq. 6.5 of "When and why PINNs fail to train: A neural tangent kernel perspective":
    :math:`w_i = \sum_j \mathrm{Tr} K_{jj} / \mathrm{Tr} K_{ii}`, with the kernel
    :math:`K_{ii}[s, t] = \langle \partial_\theta r_i(x_s), \partial_\theta r_i(x_t) \rangle` of the
    residuals of condition i at its B points. Traces are per point here, as numbers of points may
    differ.

    It is for losses that are means of squared residuals,
    :math:`\ell_i = \mathrm{mean}_s r_i(x_s)^2`. A step sees gradients of losses,
    not of residuals. The gradient of one point's loss is :math:`2 r \, \partial_\theta r`, so

    .. math::

        t_i = \frac{1}{n} \sum_u \frac{\|\partial_\theta \ell_{i,u}\|^2}{4 \, \ell_i}

    over n mini-batches does not depend on how large residuals are. With one mini-batch, the
    default, it is the Rayleigh quotient :math:`r^T K r / (B \, r^T r)`: the kernel as the residual
    meets it. With as many mini-batches as points it is the trace per point, each point counting by
    its squared residual: the paper's where residuals are equally large. The trace itself takes one
    backward pass per point, or random probes: :func:`ntkmtl.analysis.residual_ntk` computes it, and
    its ``weights()`` are the paper's, for the method ``fixed``.

    A condition whose loss (below 1.2e-38) or gradient is zero has weight 1 and is not in the sum.

    Raises:
        ValueError: On use, if a loss is negative or losses are not given.

    Example:
        >>> import torch
        >>> K = ExtendedNTK(torch.diag(torch.tensor([16.0, 12.0])).reshape(2, 1, 2, 1))
        >>> PINNNTK()(K, losses=torch.tensor([4.0, 1.0]))  # traces 16 / (4 * 4), 12 / (4 * 1)
        tensor([4.0000, 1.3333], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "kernel"
    balancer_defaults = EXACT_HEADS
    needs_positive_losses: ClassVar[bool] = True

    @property
    def requires_cross_terms(self) -> bool:
        """Whether blocks between tasks are looked at."""
        return False

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        if losses is None:
            raise ValueError("PINNNTK reads losses beside the kernel: pass losses of shape (k,)")
        does = "divides by losses, which are means of squared residuals,"
        live = nonzero(losses, "pinn-ntk", does)
        blocks = kernel.blocks.detach().to(torch.float64)
        squares = blocks.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(0.0).to(losses.device)
        live &= squares > 0
        # In logarithms: of numbers of any size, quotients may be beyond float64 and weights not.
        traces = torch.where(live, squares.log() - losses.log(), -torch.inf)
        if not bool(live.any()):
            return torch.ones_like(losses)
        return torch.where(live, (traces.logsumexp(0) - traces).exp(), 1.0)
