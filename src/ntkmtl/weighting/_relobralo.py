"""Relative loss balancing with random lookback."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import SearchRange, method
from ntkmtl.weighting._random import RandomState

__all__ = ["ReLoBRaLo"]


@method(
    "relobralo",
    family="losses",
    summary="Relative loss balancing with random lookback: by losses relative to earlier ones",
    paper="Bischof, Kraus: Multi-Objective Loss Balancing for PINNs, arXiv 2021",
)
class ReLoBRaLo(LossWeighting):
    r"""A moving average of weights that compare each loss with its last and its first value.

    Section III of "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", with k
    tasks:

    .. math::

        \hat\lambda_i(t, t') &= k \, \mathrm{softmax}_i\!\left(
            \frac{\ell_i(t)}{T \, \ell_i(t')} \right) \\
        \lambda_i(t) &= \alpha \left( \rho \, \lambda_i(t-1)
            + (1 - \rho) \, \hat\lambda_i(t, 0) \right) + (1 - \alpha) \, \hat\lambda_i(t, t-1)

    :math:`\rho` is drawn in each step, 1 with the probability ``rho`` and else 0: the weights then
    look back to the first step. All weights start at 1.

    Where an earlier loss is zero, or a task has its first labels, the ratio counts as 1. A task
    without labels keeps its weight and losses, and the softmax is over those with labels.

    Args:
        alpha: :math:`\alpha`, 0.999 as in the authors' code.
        temperature: T, 1 as in the authors' code.
        rho: The mean of :math:`\rho`; the paper wants it close to 1.
        seed: Seed of its own random stream; torch's initial seed if None.

    Raises:
        ValueError: A setting is out of range, or, on use, a loss is negative.

    Example:
        >>> import torch
        >>> w = ReLoBRaLo(alpha=0.5, rho=1.0)
        >>> w(losses=torch.tensor([4.0, 4.0]))
        tensor([1., 1.], dtype=torch.float64)
        >>> w(losses=torch.tensor([4.0, 2.0]))  # (1 + 2 / (1 + exp(-.5))) / 2, ...
        tensor([1.1225, 0.8775], dtype=torch.float64)
    """

    needs_positive_losses: ClassVar[bool] = True
    search_space = (
        SearchRange("alpha", 0.9, 0.9999, 0.999, reason="memories of 10 to 10,000 steps"),
        SearchRange(
            "temperature", 0.01, 10.0, 1.0, log=True, reason="a factor of 10 and 100 around it"
        ),
    )

    def __init__(
        self,
        alpha: float = 0.999,
        temperature: float = 1.0,
        rho: float = 0.999,
        seed: int | None = None,
    ) -> None:
        for name, value in (("alpha", alpha), ("rho", rho)):
            if check_positive(name, value, zero=True) > 1:
                raise ValueError(f"{name} must be at most 1. Found {name}={value}.")
        self.alpha, self.rho = float(alpha), float(rho)
        self.temperature = check_positive("temperature", temperature)
        self._random = RandomState(seed)
        self._weights: Tensor | None = None
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._weights is None:
            self._weights = torch.ones(tasks, dtype=torch.float64, device=device)
            self._first = torch.full_like(self._weights, float("nan"))
            self._last = torch.full_like(self._weights, float("nan"))

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        live = nonzero(losses, "relobralo", "compares losses with earlier ones")
        self.prepare(len(losses), losses.device)
        assert self._weights is not None
        assert self._first is not None
        assert self._last is not None
        first, last = self._first[tasks], self._last[tasks]
        drawn = torch.rand((), dtype=torch.float64, generator=self._random.generator)
        looks_back = float(drawn) >= self.rho
        history = self._balanced(losses, first) if looks_back else self._weights[tasks]
        weights = self.alpha * history + (1 - self.alpha) * self._balanced(losses, last)
        self._weights[tasks] = weights
        self._first[tasks] = torch.where(first.isnan() & live, losses, first)
        self._last[tasks] = torch.where(live, losses, last)
        return weights

    def _balanced(self, losses: Tensor, earlier: Tensor) -> Tensor:
        ratios = torch.where(earlier.isnan(), 1.0, losses / earlier)
        return len(losses) * torch.softmax(ratios / self.temperature, dim=0)

    def _get_state(self) -> dict[str, Any]:
        return {
            "weights": self._weights,
            "first": self._first,
            "last": self._last,
            "random": self._random.get(),
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        self._weights, self._first = state["weights"], state["first"]
        self._last = state["last"]
        self._random.set(state["random"])
