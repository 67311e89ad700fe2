"""NTKMTL-X: other statistics of the tasks' kernels than the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._fair import fair_weights
from ntkmtl.weighting._method import EXACT, method

__all__ = ["NTKMTLX", "STATISTICS", "Statistic", "task_matrix"]

Statistic = Literal["aligned", "max", "trace", "weighted"]
STATISTICS: tuple[Statistic, ...] = ("aligned", "max", "trace", "weighted")


def task_matrix(kernel: ExtendedNTK, statistic: Statistic = "aligned") -> Tensor:
    r"""Boil the extended NTK down to one number per pair of tasks.

    Args:
        kernel: The extended NTK, of k tasks and n mini-batches. All blocks for ``"aligned"``, the
            diagonal ones are enough for the others.
        statistic: ``"aligned"``: :math:`M_{ij} = u_i^T K_{ij} u_j` with the top eigenvectors
            :math:`u_i` of the diagonal blocks, so that :math:`M_{ii} = \lambda_i` and the other
            entries say how much task j's fastest direction moves task i along its own. An
            eigenvector's sign is chosen so that its entries sum to at least 0: a step down the
            whole batch's loss goes that way. The others are diagonal: ``"max"``, the largest
            eigenvalues; ``"trace"``, the mean eigenvalues; ``"weighted"``, the means of the
            eigenvalues weighted by themselves, :math:`\mathrm{tr}(K_{ii}^2) / \mathrm{tr}(K_{ii})`.

    Returns:
        Shape (k, k), float64, positive semi-definite.

    Raises:
        ValueError: ``statistic`` is unknown, or the kernel lacks the blocks that it needs.

    Example:
        >>> import torch
        >>> K = ExtendedNTK(torch.tensor([[4.0, 2.0], [2.0, 9.0]]).reshape(2, 1, 2, 1))
        >>> task_matrix(K)
        tensor([[4., 2.],
                [2., 9.]], dtype=torch.float64)
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}. Found {statistic!r}.")
    blocks = kernel.blocks.detach().to(torch.float64)
    if statistic == "max":
        return torch.diag(kernel.max_eigenvalues())
    trace = blocks.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(0.0)
    if statistic == "trace":
        return torch.diag(trace / blocks.shape[1])
    if statistic == "weighted":
        # Divided first: squares of tiny numbers vanish.
        safe = torch.where(trace > 0, trace, 1.0)
        return torch.diag((blocks / safe[:, None, None]).square().sum(dim=(1, 2)) * trace)
    _, vectors = torch.linalg.eigh(blocks)
    top = vectors[:, :, -1]
    top = torch.where(top.sum(dim=1, keepdim=True) < 0, -top, top)
    values = kernel.values.detach().to(torch.float64)
    matrix: Tensor = torch.einsum("iu,iujv,jv->ij", top, values, top)
    return (matrix + matrix.T) / 2


@method(
    "ntkmtl-x",
    family="ntk",
    summary="Fairer by the largest NTK eigenvalues, exponent 2/3; or other statistics, cross terms",
    paper="This library",
)
class NTKMTLX(Weighting):
    r"""Fairer weights from the largest eigenvalues, from other statistics, or with cross terms.

    NTKMTL makes :math:`w_i^2 \lambda_i` the same for all tasks (Eq. 14), with
    :math:`\lambda_i` the largest eigenvalue. Here that may be another statistic of the extended
    NTK, and it may have cross terms: with M from :func:`task_matrix`, the weights solve

    .. math:: (M w)_i = w_i^{-1/\alpha},

    the alpha-fair allocation of :class:`~ntkmtl.weighting._fairgrad.FairGrad`. For a diagonal M and
    :math:`\alpha = 1` that is Eq. 15 with :math:`M_{ii}` in the place of :math:`\lambda_i`. For
    ``"aligned"``, :math:`w_i \sum_j w_j M_{ij}` is task i's rate along the top eigenvector of its
    own block, what the other tasks do to it included. The weights are multiplied by
    :math:`(\mathrm{mean}\, M_{ii})^{\alpha / (\alpha + 1)}`, so that the scale of the losses does
    not matter, as in Eq. 15.

    The default, the largest eigenvalues of four mini-batches with :math:`\alpha = 2`, is Eq. 15
    with exponent 2/3. It did best of eight candidates on ``qm9-mini``, better than NTKMTL with as
    many mini-batches; docs/statistics.md has the table.

    Args:
        statistic: ``"max"``, the largest eigenvalue of each task's block; ``"trace"``, their mean,
            which is the mean squared length of the mini-batches' gradients; ``"weighted"``, their
            mean weighted by themselves; ``"aligned"``, the largest, and what tasks do to each other
            along its directions. See :func:`task_matrix`.
        alpha: Fairness; larger values care more for the slowest task.

    Raises:
        ValueError: A setting is unknown or out of range.

    Example:
        >>> import torch
        >>> K = ExtendedNTK(torch.diag(torch.tensor([9.0, 1.0])).reshape(2, 1, 2, 1))
        >>> NTKMTLX()(K)  # (5 / 9) ** (2 / 3), (5 / 1) ** (2 / 3)
        tensor([0.6758, 2.9240], dtype=torch.float64)
        >>> NTKMTLX(alpha=1.0)(K)  # n = 1: NTKMTL
        tensor([0.7454, 2.2361], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "kernel"
    balancer_defaults: ClassVar[Mapping[str, Any]] = {**EXACT, "minibatches": 4}

    def __init__(self, statistic: Statistic = "max", alpha: float = 2.0) -> None:
        if statistic not in STATISTICS:
            raise ValueError(
                f"statistic must be one of {', '.join(STATISTICS)}. Found statistic={statistic!r}."
            )
        self.statistic = statistic
        self.alpha = check_positive("alpha", alpha)

    @property
    def requires_cross_terms(self) -> bool:
        """Whether blocks between tasks are looked at."""
        return self.statistic == "aligned"

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        matrix = task_matrix(kernel, self.statistic)
        mean = float(matrix.diagonal().mean())
        if mean <= 0.0:
            return torch.ones_like(matrix.diagonal())
        return fair_weights(matrix / mean, self.alpha)
