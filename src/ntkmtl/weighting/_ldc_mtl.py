"""LDC-MTL: loss discrepancy control."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._method import SearchRange, method
from ntkmtl.weighting._task_parameter import TaskParameter

__all__ = ["LDCMTL"]


@method(
    "ldc-mtl",
    family="losses",
    summary="Loss discrepancy control: learned weights, a penalty on differences between neighbors",
    paper="Xiao, Dong, Zou, Ji: LDC-MTL, arXiv 2502.08585, 2025",
)
class LDCMTL(LossWeighting):
    r"""Learned weights, and a penalty on how much the weighted losses of neighbors differ.

    The single-loop algorithm of "LDC-MTL: Balancing Multi-Task Learning through Scalable Loss
    Discrepancy Control" (arXiv 2502.08585), as in its published code for CelebA: model and router W
    both descend

    .. math:: \frac{\sum_i \sigma_i \ell_i}{\sum_i \sigma_i}
        + \lambda \sum_{i=1}^{k-1} |\tau_i \ell_i - \tau_{i+1} \ell_{i+1}|,
        \qquad \sigma_i = \mathrm{sigmoid}(W_i),

    where :math:`\tau` is :math:`\sigma` or 1, and the denominator is a constant to W. The published
    router for CelebA and QM9 is a vector W, as here, for NYUv2 and CityScapes a small network that
    reads the features. W_i start at 1. They are :meth:`parameters`: give them to the optimizer
    beside the model's.

    The weights are :math:`\sigma_i / \sum_j \sigma_j + \lambda \tau_i (s_i - s_{i-1})` with
    :math:`s_i` the sign of :math:`\tau_i \ell_i - \tau_{i+1} \ell_{i+1}`: a task above both its
    neighbors gains, one below both loses and may go below zero, where
    :math:`2 \lambda \tau_i` exceeds its share. The order of the tasks matters. Tasks without labels
    are left out, which makes those before and after them neighbors.

    For QM9 the published code balances log losses (relative to the first ones):
    ``log_losses=True``.

    Args:
        penalty: :math:`\lambda`; 0.01 as published for CelebA, 0.05 for QM9, 0.1 for CityScapes.
        tau: ``"sigma"`` as published for CelebA, QM9 and NYUv2, or ``"one"`` as for CityScapes.
        tasks: Number of tasks; learned from the first step if None. Until then the parameter is an
            ``UninitializedParameter``, which optimizers accept.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> w = LDCMTL(penalty=0.1, tau="one")
        >>> w(losses=torch.tensor([1.0, 4.0]))  # equal shares; the larger loss gains 0.1
        tensor([0.4000, 0.6000], dtype=torch.float64)
    """

    depends_on_order: ClassVar[bool] = True
    search_space = (
        SearchRange(
            "penalty", 0.001, 0.1, 0.01, log=True, reason="a factor of 10 around the default"
        ),
    )

    def __init__(self, penalty: float = 0.01, tau: str = "sigma", tasks: int | None = None) -> None:
        self.penalty = check_positive("penalty", penalty, zero=True)
        if tau not in ("sigma", "one"):
            raise ValueError(f"tau must be 'sigma' or 'one'. Found {tau!r}.")
        self.tau = tau
        self._router = TaskParameter(1.0, tasks)

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._router.prepare(tasks, device)

    def _sigma(self, tasks: Tensor) -> Tensor:
        if int(tasks.max()) >= len(self._router):
            raise ValueError(
                f"ldc-mtl was made for {len(self._router)} tasks, found position {int(tasks.max())}"
            )
        return torch.sigmoid(self._router.of(tasks))

    def _pull(self, losses: Tensor, sigma: Tensor) -> Tensor:
        """Return d penalty / d (tau_i l_i)."""
        scaled = sigma * losses if self.tau == "sigma" else losses
        signs = self.penalty * torch.sign(scaled[:-1] - scaled[1:])
        pull = torch.zeros_like(losses)
        pull[:-1] += signs
        pull[1:] -= signs
        return pull

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        sigma = self._sigma(tasks)
        tau = sigma if self.tau == "sigma" else torch.ones_like(sigma)
        return sigma / sigma.sum() + tau * self._pull(losses, sigma)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self._router.parameter

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        sigma = self._sigma(tasks)
        slope = losses / sigma.sum()
        if self.tau == "sigma":
            slope = slope + self._pull(losses, sigma) * losses
        slope = slope * sigma * (1.0 - sigma) * scale
        self._router.accumulate(slope, tasks)

    def _get_state(self) -> dict[str, Any]:
        return {"router": self._router.get()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._router.set(state["router"])
