"""MoDo: multi-objective descent with double sampling; and what methods on the simplex share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._independent import independent_products
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._simplex import SimplexWeights, project_onto_simplex

__all__ = ["MoDo"]


@method(
    "modo",
    family="gradients",
    summary="Double sampling: weights that follow products of gradients of independent samples",
    paper="Chen et al.: Three-Way Trade-Off in Multi-Objective Learning, JMLR 2024",
)
class MoDo(Weighting):
    r"""Simplex weights that follow products of gradients of independent samples.

    Algorithm 1 of "Three-Way Trade-Off in Multi-Objective Learning": with the gradients
    :math:`J_1, J_2` of two independent samples,

    .. math:: \lambda \leftarrow
        \Pi_\Delta(\lambda - \gamma (J_1 J_2^T \lambda + \rho \lambda)),

    and the model follows the mean of both gradients under the new :math:`\lambda`.

    The original draws two batches. Here the two are the halves of one (``minibatches=2``): the
    blocks between mini-batches of the extended NTK are the same products
    (:func:`independent_products`, which for two mini-batches averages the two orders in which they
    could have been drawn), and the mean of both gradients is the batch's own. A batch twice as
    large is therefore the original, step for step; more mini-batches are more pairs to average.
    LibMTL draws a third batch for the model.

    Weights depend on the scale of the losses: the products are taken as they are.

    A task without labels keeps its weight, in proportion to the others.

    Args:
        gamma: Learning rate of the weights; 0.1 in the published code, 0.001 in LibMTL.
        rho: Pull toward equal weights; 0.1 as published.

    Raises:
        ValueError: A setting is out of range; on use, if there is only one mini-batch.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> J = torch.tensor([[2.0, 2.0], [1.0, -1.0]])  # two tasks on two mini-batches
        >>> K = ExtendedNTK(torch.einsum("iu,jv->iujv", J, J))
        >>> # J_1 J_2^T = [[4, 0], [0, -1]] (symmetric part): (.5, .5) - .1 (2, -.5) = (.3, .55),
        >>> MoDo(gamma=0.1, rho=0.0)(K)  # and .075 more for each to be on the simplex
        tensor([0.3750, 0.6250], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "kernel"
    # Two mini-batches of a batch are the two samples; blockwise pooling has no products of them.
    balancer_defaults: ClassVar[Mapping[str, Any]] = {
        **EXACT,
        "pooling": "pooled",
        "minibatches": 2,
    }

    def __init__(self, gamma: float = 0.1, rho: float = 0.1) -> None:
        self.gamma = check_positive("gamma", gamma)
        self.rho = check_positive("rho", rho, zero=True)
        self._weights = SimplexWeights()

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._weights.prepare(tasks)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        products = independent_products(kernel, "modo").cpu()
        self._weights.prepare(kernel.tasks)
        old = self._weights.get(tasks)
        new = project_onto_simplex(old - self.gamma * (products @ old + self.rho * old))
        self._weights.set(tasks, new)
        return new.to(kernel.blocks.device)

    def _get_state(self) -> dict[str, Any]:
        return {"weights": self._weights.values}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._weights.values = state["weights"]
