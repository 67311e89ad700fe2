"""DB-MTL: dual balancing of loss scales and gradient magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_jacobian, check_positive
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._tracked import TrackedGradients, norms

__all__ = ["DBMTL"]


@method(
    "db-mtl",
    family="gradients",
    summary="Dual balancing: averaged gradients of the log losses, all as long as the longest",
    paper="Lin et al.: Dual-Balancing for Multi-Task Learning, Neural Networks 2025",
)
class DBMTL(Weighting):
    r"""Averaged gradients of the log losses, all as long as the longest.

    Algorithm 1 of "Dual-Balancing for Multi-Task Learning": with the gradients :math:`g_i` of the
    log losses,

    .. math::
        \hat g_i \leftarrow \beta_t \hat g_i + (1 - \beta_t) g_i, \qquad
        \beta_t = \beta / t^{\sigma}, \qquad
        \text{and the model follows} \quad
        \max_j |\hat g_j| \sum_i \hat g_i / |\hat g_i|.

    The averages start at 0. The logarithm is the Balancer's (``log_losses``, on for this method by
    default), so the heads follow the gradients of the log losses as well, and losses must be
    positive; the published code adds 1e-8 to them, and to the norms. Here a gradient whose average
    is zero adds nothing and has weight 1.

    The weights reported are the factors :math:`\max_j |\hat g_j| / |\hat g_i|` of the averaged
    gradients; the Balancer multiplies them by :math:`1 / \ell_i` as weights of the losses. Memory
    is that of k gradients more. They must be gradients of the same parameters in every step, so
    ``source="exact"``; features of different samples cannot be averaged over steps.

    A task without labels keeps its average and its count t of updates.

    Args:
        beta: Share of the average that is kept; 0.9 in its authors' LibMTL. 0 for no average.
        beta_sigma: Its decay over steps; 0 as there, 0.5 in some of the paper's experiments.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> combined, weights = DBMTL(beta=0.0).combine(torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
        >>> combined, weights  # lengths 5 and 1: (3, 4) + 5 (0, -1)
        (tensor([ 3., -1.]), tensor([1., 5.], dtype=torch.float64))
    """

    requires: ClassVar[Requires] = "jacobian"
    tracks_gradients: ClassVar[bool] = True
    balancer_defaults: ClassVar[Mapping[str, Any]] = {**EXACT, "log_losses": True}
    search_space = (SearchRange("beta", 0.0, 0.99, 0.9, reason="all that the average can be"),)

    def __init__(self, beta: float = 0.9, beta_sigma: float = 0.0) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must be in [0, 1). Found beta={beta}.")
        self.beta = float(beta)
        self.beta_sigma = check_positive("beta_sigma", beta_sigma, zero=True)
        self._tracked = TrackedGradients()

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._tracked.prepare(tasks)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        raise ValueError(
            "db-mtl averages the gradients entry by entry, which no kernel holds; call combine"
        )

    @with_cpu_default
    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the averaged gradients of equal length, and their factors.

        Raises:
            ValueError: Gradients have another length than before.
        """
        tasks = check_jacobian(jacobian, losses, tasks, "db-mtl")
        self.prepare(len(jacobian), jacobian.device)
        kept = self.beta / self._tracked.count(tasks, "db-mtl") ** self.beta_sigma
        tracked = self._tracked.update(jacobian, tasks, 1.0 - kept, "db-mtl")
        length = norms(tracked)
        weights = torch.where(length > 0, length.max() / length, 1.0)
        return (weights.to(tracked) @ tracked).to(jacobian.dtype), weights.cpu()

    def _get_state(self) -> dict[str, Any]:
        return self._tracked.state_dict()

    def _set_state(self, state: dict[str, Any]) -> None:
        self._tracked.load_state_dict(state)
