"""MoDo: multi-objective descent with double sampling; and what methods on the simplex share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Reads, Weighting, check_positive

__all__ = ["MoDo", "SimplexWeights", "independent_products", "project_onto_simplex"]


def project_onto_simplex(vector: Tensor) -> Tensor:
    """Return the nearest vector of non-negative entries that sum to 1.

    Args:
        vector: float64, shape (k,), of any scale.

    Example:
        >>> import torch
        >>> project_onto_simplex(torch.tensor([1.0, 0.6, -3.0], dtype=torch.float64))
        tensor([0.7000, 0.3000, 0.0000], dtype=torch.float64)
    """
    # Only differences matter; taken from the largest, 1 is not lost beside numbers of 1e24.
    centred = vector - vector.max()
    descending = centred.sort(descending=True).values
    count = torch.arange(1, len(vector) + 1, dtype=vector.dtype, device=vector.device)
    levels = (descending.cumsum(0) - 1.0) / count
    active = int((descending > levels).sum())
    return (centred - levels[active - 1]).clamp_min(0.0)


def independent_products(kernel: ExtendedNTK, method: str) -> Tensor:
    r"""Estimate the Gramian of the tasks' expected gradients without bias.

    A gradient's product with itself overestimates the squared norm of its mean by its variance;
    the product of the gradients of two independent samples does not. Those products are the blocks
    :math:`K_{iu,jv}` of two different mini-batches, :math:`u \ne v`. All pairs are averaged, each
    by the product of the shares of labelled samples that the two mini-batches hold. Two tasks
    without such a pair get 0.

    Args:
        kernel: With all blocks.
        method: Its name, for errors.

    Returns:
        float64, shape (k, k), symmetric, not always positive semi-definite.

    Raises:
        ValueError: The kernel has one mini-batch only, diagonal blocks only, or no products
            between mini-batches.

    Example:
        >>> import torch
        >>> J = torch.tensor([3.0, 1.0])  # one task: its gradients on two mini-batches
        >>> independent_products(ExtendedNTK(torch.outer(J, J).reshape(1, 2, 1, 2)), "modo")
        tensor([[3.]], dtype=torch.float64)
    """
    n = kernel.minibatches
    if n < 2:
        raise ValueError(
            f"{method} multiplies gradients of different mini-batches, found one mini-batch: set "
            "minibatches to 2 or more"
        )
    if kernel._diagonal:
        raise ValueError(
            f"{method} multiplies gradients of different mini-batches, which pooling='blockwise' "
            "takes as zero: set pooling='pooled' or 'kernel', or source='exact'"
        )
    values = kernel.values.detach().to(torch.float64)
    shares = kernel.shares.to(values)
    other = 1.0 - torch.eye(n, dtype=torch.float64, device=values.device)
    total = torch.einsum("iu,iujv,jv,uv->ij", shares, values, shares, other)
    weight = torch.einsum("iu,jv,uv->ij", shares, shares, other)
    return torch.where(weight > 0, total / weight, 0.0)


class SimplexWeights:
    """Task weights that sum to 1 and are remembered by the tasks' positions.

    The tasks with labels share what they had together before: the ratio of the others' weights, and
    everything about a task without labels, stays.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def prepare(self, tasks: int) -> None:
        """Start at equal weights, unless there are weights already."""
        if self.values is None:
            self.values = torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)

    def get(self, tasks: Tensor) -> Tensor:
        """Return the weights of the tasks at these positions, summing to 1, on the CPU."""
        assert self.values is not None
        own = self.values[tasks.to(self.values.device)].cpu()
        total = own.sum()
        return own / total if total > 0 else torch.full_like(own, 1.0 / len(own))

    def set(self, tasks: Tensor, weights: Tensor) -> None:
        """Replace the weights of the tasks at these positions by others that sum to 1."""
        assert self.values is not None
        at = tasks.to(self.values.device)
        total = float(self.values[at].sum())
        mass = total if total > 0 else len(at) / len(self.values)
        self.values[at] = mass * weights.to(self.values)


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
        rho: Pull towards equal weights; 0.1 as published.

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

    reads: ClassVar[Reads] = "kernel"

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

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._weights.values = state["weights"]
